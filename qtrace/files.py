"""Find the files that a config or an option names, and say which were near when one is missing. No torch."""

from __future__ import annotations

from pathlib import Path

from qtrace.errors import near


def find_path(name: str, folder: Path | None = None) -> Path | None:
    """Return the file or folder called `name`, or None.

    A relative name is looked for in the current directory first, then in `folder` (a config's own). `~` is
    the home directory.
    """
    path = Path(name).expanduser()
    places = [path] if path.is_absolute() or folder is None else [path, folder / path]
    return next((place for place in places if place.exists()), None)


def near_paths(name: str, folder: Path | None = None) -> list[str]:
    """Return names of existing files near a missing one, in its own folder (or the nearest one that exists).

    Of `configs/qwen3vl.yaml` the answer may be `["configs/qwen3_vl.yaml"]`.
    """
    path = Path(name).expanduser()
    parents = [path.parent] if path.is_absolute() or folder is None else [path.parent, folder / path.parent]
    for parent in parents:
        try:
            names = sorted(entry.name for entry in parent.iterdir())
        except OSError:
            continue
        matches = near(path.name, names, most=2)
        if matches:
            return [str(path.parent / match) if path.parent != Path() else match for match in matches]
    return []


def missing(kind: str, name: str, folder: Path | None = None) -> str:
    """Return the sentence for a missing file: `no such config file: x.yaml; did you mean y.yaml?`"""
    matches = near_paths(name, folder)
    if matches:
        return f"no such {kind}: {name}; did you mean {' or '.join(matches)}?"
    if Path(name).expanduser().is_absolute():
        return f"no such {kind}: {name}"
    looked = "the current directory" if folder is None else f"the current directory or {folder}"
    return f"no such {kind}: {name} (looked in {looked})"
