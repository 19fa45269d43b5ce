"""Where a trace may be put, and what is there already, or was left there."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest
import torch

from qtrace.errors import OutputError
from qtrace.traces import Trace
from qtrace.traces.capture import capture
from qtrace.traces.writer import check_target, leftovers
from tests.helpers.models import Returns, Stack

IDS = {"ids": torch.arange(12).reshape(1, 12)}


@pytest.mark.parametrize("mine", ["notes.txt", "tensors-1.txt", ".git"])
def test_what_somebody_else_put_beside_a_trace_is_not_taken_away(mine: str, tmp_path: Path) -> None:
    """A `manifest.json` alone makes no trace: packages and web pages have one."""
    capture(Stack(), IDS, tmp_path / "t")
    (tmp_path / "t" / mine).write_text("mine")
    with pytest.raises(OutputError, match="something is there and is no trace, or not only one; choose another place"):
        capture(Stack(), IDS, tmp_path / "t", replaces=True)
    assert (tmp_path / "t" / mine).read_text() == "mine"


def test_a_damaged_trace_may_be_replaced(tmp_path: Path) -> None:
    capture(Stack(), IDS, tmp_path / "t")
    (tmp_path / "t" / "manifest.sha256").unlink()
    (tmp_path / "t" / "tensors-00001.safetensors").write_bytes(b"")
    capture(Stack(), IDS, tmp_path / "t", replaces=True)
    assert Trace(tmp_path / "t").tensor(0).shape == (1, 12)


def test_a_folder_that_takes_no_files_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(OutputError, match=rf"trace .*t: the folder {tmp_path} cannot be written to; choose another"):
        check_target(tmp_path / "t")


def test_a_file_that_cannot_grow_leaves_nothing(tmp_path: Path) -> None:
    """The system refuses in the middle of a file, as a disk does that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(OutputError, match=r"trace .*t: File too large after [1-9][0-9,]* bytes; nothing was kept"):
            capture(Returns(lambda y: y.repeat(10_000, 1)), torch.ones(2, 4), tmp_path / "t")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_capture_left_is_named_by_the_next(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        capture(Returns(lambda y: os.kill(os.getpid(), signal.SIGKILL)), torch.ones(2, 4), tmp_path / "t")
        os._exit(0)
    os.waitpid(child, 0)
    (left,) = tmp_path.iterdir()
    assert leftovers(tmp_path / "t") == [left]
    told = capture(Stack(), IDS, tmp_path / "t")
    assert told.warnings == (
        f"{left} was left by a capture to the same place that was killed; delete it, unless that one is still running",
    )
    # That is no concern of those who read the trace.
    assert Trace(tmp_path / "t").manifest.warnings == ()
    assert capture(Stack(), IDS, tmp_path / "other").warnings == ()
