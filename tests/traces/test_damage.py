"""A damaged trace is refused with the file and the reason, or opens whole: never a wrong number."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qtrace.errors import ForwardError, OutputError, SourceError
from qtrace.traces import shards
from qtrace.traces.capture import capture
from qtrace.traces.manifest_file import DIGEST, MANIFEST, digest_line
from qtrace.traces.reader import Trace
from qtrace.traces.writer import Form
from tests.helpers.models import Returns, Stack

IDS = {"ids": torch.arange(12).reshape(1, 12)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Several shards, two of one size.
    monkeypatch.setattr(shards, "GATHERED", 2000)
    made = tmp_path / "trace"
    capture(Stack(), IDS, made)
    assert len(Trace(made).manifest.shards) > 2
    return made


def read_whole(folder: Path) -> list[torch.Tensor]:
    trace = Trace(folder)
    return [trace.tensor(number) for number in range(len(trace.manifest.tensors))]


def shard(folder: Path, number: int = 1) -> Path:
    return folder / f"tensors-{number:05d}.safetensors"


def resign(folder: Path, change: Callable[[Any], None]) -> None:
    """Edit the manifest and make its digest fit, as somebody would who means it."""
    plain = json.loads((folder / MANIFEST).read_text())
    change(plain)
    sign(folder, json.dumps(plain).encode())


def sign(folder: Path, text: bytes) -> None:
    (folder / MANIFEST).write_bytes(text)
    (folder / DIGEST).write_text(digest_line(text))


def cut(path: Path, left: int) -> None:
    with path.open("r+b") as file:
        file.truncate(left if left >= 0 else path.stat().st_size + left)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def swap(folder: Path) -> None:
    one, other = shard(folder, 1), shard(folder, 2)
    data = one.read_bytes(), other.read_bytes()
    one.write_bytes(data[1])
    other.write_bytes(data[0])


def edit(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"layers.0"', '"layers.1"', 1))


def schema(plain: Any) -> None:
    plain.update(schema="qtrace-trace/2", qtrace="9.1")


def key(*path: str | int, to: Any) -> Callable[[Any], None]:
    def change(plain: Any) -> None:
        for part in path[:-1]:
            plain = plain[part]
        plain[path[-1]] = to

    return change


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a truncated shard": (lambda f: cut(shard(f), -1), r"tensors-00001\.safetensors: it has \d+ bytes, and \d+ were"),
    "an empty shard": (lambda f: cut(shard(f), 0), r"tensors-00001\.safetensors: it has 0 bytes"),
    "a longer shard": (lambda f: shard(f).write_bytes(shard(f).read_bytes() + b"x"), r"safetensors: it has \d+ bytes"),
    "a missing shard": (lambda f: shard(f, 2).unlink(), r"tensors-00002\.safetensors: it is missing"),
    "swapped shards": (swap, r"tensors-0000[12]\.safetensors: (it has|its header is not)"),
    "a changed header": (lambda f: flip(shard(f), 20), r"tensors-00001\.safetensors: its header is not"),
    "a changed element": (lambda f: flip(shard(f), -3), r"tensors-00001\.safetensors: the bytes from \d+ on are not"),
    "an edited manifest": (edit, r"manifest\.json: its SHA-256 is not the one in manifest\.sha256"),
    "a truncated manifest": (lambda f: cut(f / MANIFEST, 1000), r"manifest\.json: its SHA-256 is not"),
    "a missing manifest": (lambda f: (f / MANIFEST).unlink(), r"manifest\.json: it is missing: this is no trace"),
    "a missing digest": (lambda f: (f / DIGEST).unlink(), r"manifest\.sha256: it is missing"),
    "a newer schema": (lambda f: resign(f, schema), r"schema is 'qtrace-trace/2', written by qtrace 9\.1, and this"),
    "no JSON": (
        lambda f: (f / MANIFEST).write_bytes(b"\xff{") and (f / DIGEST).write_text(digest_line(b"\xff{")),
        "JSON",
    ),
    "a list": (
        lambda f: (f / MANIFEST).write_bytes(b"[]") and (f / DIGEST).write_text(digest_line(b"[]")),
        "schema is",
    ),
    "a wrong type": (lambda f: resign(f, key("tensors", 0, "bytes", to="12")), r"manifest\.json: tensors\.0\.bytes: "),
    "a missing key": (lambda f: resign(f, lambda p: p.pop("model")), r"manifest\.json: model: Field required"),
    "a size that does not fit": (lambda f: resign(f, key("tensors", 0, "shape", to=[10**15])), r"tensors\.0: .* fit"),
    "a negative size": (lambda f: resign(f, key("tensors", 0, "shape", to=[-1, -12])), r"tensors\.0: .* fit"),
    "an offset outside": (lambda f: resign(f, key("tensors", 0, "offset", to=10**12)), r"tensors\.0: .* fit"),
    "a shard that is not there": (
        lambda f: resign(f, key("tensors", 0, "shard", to=99)),
        r"tensors\.0: there is no sh",
    ),
    "a file elsewhere": (lambda f: resign(f, key("shards", 0, "file", to="../x.safetensors")), r"shards\.0: '\.\./x"),
    "a parent that comes later": (lambda f: resign(f, key("samples", 0, "calls", 1, "parent", to=5)), "its parent is"),
    "an unknown tensor": (
        lambda f: resign(f, key("samples", 0, "calls", 0, "outputs", "leaves", 0, "tensor", to=10**6)),
        r"samples\.0\.calls\.0: it names a tensor that is not there",
    ),
    "an unknown alias": (
        lambda f: resign(f, key("modules", 1, "alias_of", to="x")),
        r"modules\.1: there is no module 'x' before it",
    ),
    "an unknown module": (
        lambda f: resign(f, key("samples", 0, "calls", 1, "module", to="x")),
        "there is no module 'x'",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_with_the_file_and_the_reason(damage: str, folder: Path) -> None:
    does, said = DAMAGES[damage]
    read_whole(folder)
    does(folder)
    with pytest.raises(SourceError, match=said) as raised:
        read_whole(folder)
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_byte_can_change_unseen(folder: Path) -> None:
    """Of each file, a hundred bytes spread over it."""
    whole = read_whole(folder)
    for path in sorted(folder.iterdir()):
        size = path.stat().st_size
        for place in range(0, size, max(1, size // 100)):
            flip(path, place)
            with pytest.raises(SourceError):
                read_whole(folder)
            flip(path, place)
    assert all(torch.equal(one, other) for one, other in zip(whole, read_whole(folder), strict=True))


def test_what_another_version_added_is_passed_over(folder: Path) -> None:
    def change(plain: Any) -> None:
        plain.update(qtrace="9.9", novelty={"x": 1})
        plain["tensors"][0]["colour"] = "red"

    resign(folder, change)
    assert Trace(folder).manifest.qtrace == "9.9"


def test_memory_is_not_taken_for_what_a_file_only_claims(folder: Path) -> None:
    def change(plain: Any) -> None:
        size = 1 << 50
        plain["shards"][0]["bytes"] = plain["shards"][0]["header"] + size
        plain["tensors"][0].update(dtype="U8", shape=[size], bytes=size, offset=0)

    resign(folder, change)
    with pytest.raises(SourceError, match=r"tensors-00001\.safetensors: it has \d+ bytes, and 1125899906"):
        read_whole(folder)


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_a_full_disk_leaves_nothing(failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "GATHERED", 2000)
    calls = iter(range(100))
    sync = os.fsync

    def full(handle: int) -> None:
        if next(calls) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"trace .*t: No space left on device after [\d,]+ bytes; nothing was kept"):
        capture(Stack(), IDS, tmp_path / "t")
    assert list(tmp_path.iterdir()) == []


def test_a_limit_stops_the_capture_and_says_where(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"more than 3,000 bytes are needed, reached at layers\.0.* \(call 0\)"):
        capture(Stack(), IDS, tmp_path / "t", Form(max_bytes=3000))
    assert list(tmp_path.iterdir()) == []
    told = capture(Stack(), IDS, tmp_path / "t", Form(max_bytes=10**6))
    written = sum(path.stat().st_size for path in (tmp_path / "t").iterdir() if path.suffix != ".sha256")
    headers = sum(shard.header for shard in Trace(tmp_path / "t").manifest.shards)
    assert told.bytes == written - headers


def test_a_model_that_raises_leaves_nothing(tmp_path: Path) -> None:
    def fails(y: torch.Tensor) -> torch.Tensor:
        raise ValueError("too bad")

    with pytest.raises(
        ForwardError, match="the model raised ValueError in <root> \\(Returns\\): too bad; nothing was kept"
    ):
        capture(Returns(fails), torch.ones(1, 4), tmp_path / "t")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    capture(Stack(), IDS, tmp_path / "t")
    with pytest.raises(OutputError, match="something is there already; --force replaces a trace"):
        capture(Stack(), IDS, tmp_path / "t")
    capture(Stack(depth=1), IDS, tmp_path / "t", replaces=True)
    assert len(Trace(tmp_path / "t").manifest.samples[0].calls) == 8
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputError, match="something is there and is no trace"):
        capture(Stack(), IDS, tmp_path / "mine", replaces=True)
    with pytest.raises(OutputError, match="does not exist; create it first"):
        capture(Stack(), IDS, tmp_path / "no" / "t")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "t"]


def test_links_are_followed_and_stay(tmp_path: Path) -> None:
    capture(Stack(), IDS, tmp_path / "t")
    (tmp_path / "link").symlink_to("t")
    (tmp_path / "nowhere").symlink_to("missing")
    capture(Stack(depth=1), IDS, tmp_path / "link", replaces=True)
    assert (tmp_path / "link").is_symlink()
    assert len(Trace(tmp_path / "t").manifest.samples[0].calls) == 8
    with pytest.raises(OutputError, match="something is there already"):
        capture(Stack(), IDS, tmp_path / "nowhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "nowhere", "t"]


def test_what_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capture(Stack(), IDS, tmp_path / "t")
    rename = os.rename

    def refuses(source: Path, target: Path) -> None:
        if ".partial-" in str(source):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuses)
    with pytest.raises(OutputError, match="Input/output error"):
        capture(Stack(depth=1), IDS, tmp_path / "t", replaces=True)
    assert len(Trace(tmp_path / "t").manifest.samples[0].calls) > 8
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def _captured(folder: Path) -> int:
    """Capture in a process of its own and return its id."""
    child = os.fork()
    if child == 0:
        try:
            capture(Stack(width=32, depth=6), IDS, folder)
        finally:
            os._exit(0)
    return child


def test_a_capture_that_is_killed_leaves_no_half_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "GATHERED", 4000)
    begin = time.perf_counter()
    os.waitpid(_captured(tmp_path / "whole"), 0)
    took = time.perf_counter() - begin
    whole = [hashlib.sha256(t.numpy().tobytes()).hexdigest() for t in read_whole(tmp_path / "whole")]
    moments = random.Random(0)
    opened = refused = 0
    for number in range(50):
        folder = tmp_path / f"killed-{number}"
        child = _captured(folder)
        time.sleep(moments.uniform(0, 1.2 * took))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left = [path for path in tmp_path.iterdir() if path.name.lstrip(".").startswith(folder.name)]
        for path in left:
            if path.name.startswith(".") and not (path / DIGEST).exists():
                with pytest.raises(SourceError, match=r"(manifest\.json|manifest\.sha256): it is missing"):
                    Trace(path)
                refused += 1
            else:
                assert [hashlib.sha256(t.numpy().tobytes()).hexdigest() for t in read_whole(path)] == whole
                opened += 1
    assert refused
    assert refused + opened <= 50
