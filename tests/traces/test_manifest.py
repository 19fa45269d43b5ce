"""What a manifest may say: whatever it is, it opens and can be compared, or is refused in a sentence."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qtrace
from qtrace.cli.recorder import recorded
from qtrace.errors import QtraceError, SourceError
from qtrace.traces import Form, Trace, skeleton
from qtrace.traces.capture import capture
from qtrace.traces.manifest_file import DIGEST, MANIFEST, digest_line
from qtrace.traces.reader import contents_of, facts_of, samples_of
from tests.helpers.models import Cache, Returns

X = torch.arange(8.0).reshape(2, 4) / 3
# What stands in place of a value; LEFT_OUT takes the key away.
LEFT_OUT = object()
VALUES: list[Any] = [
    None,
    -1,
    0,
    3,
    10**30,
    "",
    "x",
    "y\0",
    [],
    [0, 10**20],
    [-1],
    {},
    {"tuple": 5},
    True,
    1.5,
    LEFT_OUT,
]


class Model(nn.Module):
    """Something of each: a module in two places, a buffer, complex numbers, an object, an empty tensor, a NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.again = self.layer
        self.register_buffer("kept", torch.ones(2))
        self.eval()

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        y = self.layer(x)
        z = self.again(y)
        return {"complex": torch.complex(y, z), "cache": Cache(z), "empty": y[:0], "plain": (1, float("nan"))}


def write(folder: Path, text: bytes) -> None:
    (folder / MANIFEST).write_bytes(text)
    (folder / DIGEST).write_text(digest_line(text))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, held in items:
        yield from places(held, (*path, key))


def changed(plain: Any, path: tuple[Any, ...], value: Any) -> None:
    for part in path[:-1]:
        plain = plain[part]
    if value is LEFT_OUT:
        del plain[path[-1]]
    else:
        plain[path[-1]] = value


@pytest.mark.parametrize("form", [Form(), Form(sketches=True)], ids=["whole", "sketches"])
def test_whatever_it_says_it_can_be_used_or_is_refused(form: Form, tmp_path: Path) -> None:
    capture(Model(), X, tmp_path / "good", form)
    shutil.copytree(tmp_path / "good", tmp_path / "bad")
    text = (tmp_path / "good" / MANIFEST).read_text()
    everywhere = list(places(json.loads(text)))
    chance = random.Random(0)
    used, said = 0, list[str]()
    for _ in range(250):
        plain = json.loads(text)
        changed(plain, chance.choice(everywhere), chance.choice(VALUES))
        write(tmp_path / "bad", json.dumps(plain).encode())
        try:
            trace = Trace(tmp_path / "bad")
            for number in range(len(trace.manifest.tensors)):
                trace.tensor(number)
            contents_of(trace.manifest)
            assert dict(facts_of(trace.manifest))["samples"]
            list(recorded(trace, ["**"]))
            qtrace.trace(skeleton(Trace(tmp_path / "good")), skeleton(trace), [()])
            used += 1
            samples_of(trace)
        except QtraceError as error:
            said.append(str(error))
    assert min(used, len(said)) > 20
    assert not any("\n" in one for one in said)


WRONG: dict[str, tuple[Callable[[str], str], str]] = {
    "NaN": (lambda text: text.replace('"arguments":{', '"x":NaN,"arguments":{', 1), "it has no number NaN"),
    "a key twice": (
        lambda text: text.replace('"bytes":', '"bytes":1,"bytes":', 1),
        "'bytes' stands twice in one object",
    ),
    "nested without end": (lambda text: '{"a":' * 10**5, "it is no JSON"),
    "a module inside itself": (
        lambda text: text.replace('"alias_of":"layer"', '"alias_of":""'),
        "there is no module '' before it",
    ),
    "a module that goes on after its place": (
        lambda text: text.replace('"alias_of":"layer"}', '"alias_of":"layer"},{"path":"layer.x","type":"A"}'),
        "'layer.x' comes after the module around it was put in another place",
    ),
    "a module twice": (
        lambda text: text.replace('"path":"again"', '"path":"layer"'),
        "modules.2: 'layer' was told before",
    ),
    "a call twice": (
        lambda text: text.replace(
            '"module":"layer","type":"Linear","call":1', '"module":"layer","type":"Linear","call":0'
        ),
        "calls.2: call 0 of 'layer' was told before",
    ),
    "halves of complex numbers": (
        lambda text: text.replace('"shape":[2,4,2]', '"shape":[2,8]'),
        r"\[2, 8\] holds no pairs of a real and an imaginary part",
    ),
    "a parameter of no shape": (
        lambda text: text.replace('"weight":{"shape":[4,4]', '"weight":{"shape":[-4,4]'),
        r"weight has \[-4, 4\], which is no shape",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_hold_is_refused(wrong: str, tmp_path: Path) -> None:
    capture(Model(), X, tmp_path / "t")
    changes, said = WRONG[wrong]
    text = (tmp_path / "t" / MANIFEST).read_text()
    assert changes(text) != text
    write(tmp_path / "t", changes(text).encode())
    with pytest.raises(SourceError, match=f"manifest\\.json: .*{said}"):
        Trace(tmp_path / "t")


@pytest.mark.parametrize("name", [MANIFEST, DIGEST, "tensors-00001.safetensors"])
def test_nobody_waits_for_what_is_no_file(name: str, tmp_path: Path) -> None:
    capture(Model(), X, tmp_path / "t")
    (tmp_path / "t" / name).unlink()
    os.mkfifo(tmp_path / "t" / name)
    with pytest.raises(SourceError, match=rf"{name}: it is no file; the trace is not used"):
        Trace(tmp_path / "t")
    (tmp_path / "t" / name).unlink()
    (tmp_path / "t" / name).symlink_to("/dev/zero")
    with pytest.raises(SourceError, match=rf"{name}: it is no file"):
        Trace(tmp_path / "t")


def test_a_tensor_counts_for_the_module_that_made_it(tmp_path: Path) -> None:
    """And not for those around it, which return it as well."""
    capture(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5)), X, tmp_path / "t")
    sizes = {one.module: one.bytes for one in contents_of(Trace(tmp_path / "t").manifest)}
    assert sizes == {"": X.numel() * 4, "0": 2 * 6 * 4, "1": 2 * 5 * 4}


def test_text_that_is_no_unicode_is_spelt_out(tmp_path: Path) -> None:
    """As in the name of a source file that is no UTF-8."""
    capture(Returns(lambda y: {"a": "half \ud83d", "\udcff": y, "ü": y + 1}), X, tmp_path / "t")
    call = Trace(tmp_path / "t").manifest.samples[0].calls[0]
    assert [(leaf.path, leaf.plain) for leaf in call.outputs.leaves] == [
        ("a", "half \\ud83d"),
        ("\\udcff", None),
        ("ü", None),
    ]
