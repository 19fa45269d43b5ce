"""Module paths that fit a column: shortened on the left by whole components, never in the last one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

ROOT = "<root>"
CUT = "…"


def shown(path: str) -> str:
    """Return a module path as people see it; the root's empty path is `<root>`."""
    return path or ROOT


def shorten(path: str, width: int) -> str:
    """Return `path` in at most `width` characters where its last component allows that.

    >>> shorten("model.language_model.layers.0.self_attn.o_proj", 30)
    '…layers.0.self_attn.o_proj'
    >>> shorten("model.a_very_long_component", 10)
    '…a_very_long_component'
    """
    path = shown(path)
    if len(path) <= width:
        return path
    components = path.split(".")
    for dropped in range(1, len(components)):
        short = CUT + ".".join(components[dropped:])
        if len(short) <= width or dropped == len(components) - 1:
            return short
    return path


def shorten_all(paths: Iterable[str], width: int) -> dict[str, str]:
    """Return each path with its short form; paths whose short forms would be the same stay whole.

    >>> shorten_all(["encoder.layers.0.out", "decoder.layers.0.out"], 15)["encoder.layers.0.out"]
    'encoder.layers.0.out'
    """
    short = {path: shorten(path, width) for path in paths}
    times = Counter(short.values())
    return {path: text if times[text] == 1 else shown(path) for path, text in short.items()}


def pattern(paths: Sequence[str]) -> str:
    """Return paths of one shape with `*` where they differ, others as a list.

    >>> pattern(["layers.0.mlp", "layers.7.mlp"]), pattern(["embed", "layers.0.mlp"])
    ('layers.*.mlp', 'embed, layers.0.mlp')
    """
    split = [path.split(".") for path in paths]
    if len({len(components) for components in split}) == 1:
        columns = list(zip(*split, strict=True))
        differing = [set(column) for column in columns if len(set(column)) > 1]
        if all(name.isdecimal() for names in differing for name in names):
            return ".".join(column[0] if len(set(column)) == 1 else "*" for column in columns)
    return ", ".join(map(shown, paths))
