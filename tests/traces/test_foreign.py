"""The files that other tools write, as `qtrace import` reads them: formats, names, and what is refused."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qtrace.errors import SourceError, UsageError
from qtrace.traces import Trace
from qtrace.traces.capture import capture
from qtrace.traces.foreign_tensors import foreign_tensors, import_trace
from tests.helpers.models import Chain, Stack

A, B = torch.arange(6.0).reshape(2, 3), torch.ones(2, dtype=torch.int64)


def polygraphy(place: Path, *runners: str, kind: str = "ndarray") -> Path:
    """Write what `polygraphy run --save-outputs` of version 0.53 writes."""

    def told(tensor: torch.Tensor) -> Any:
        file = io.BytesIO()
        np.save(file, tensor.numpy())
        text = base64.b64encode(file.getvalue()).decode()
        return {"values": {"array": text, "polygraphy_class": kind}, "polygraphy_class": "LazyArray"}

    outputs = {"/a": told(A), "b.c": told(B)}
    iteration = {"outputs": outputs, "runtime": None, "runner_name": "", "polygraphy_class": "IterationResult"}
    document = {"lst": [[name, [iteration]] for name in runners], "polygraphy_class": "RunResults"}
    place.write_text(json.dumps(document, indent=4))
    return place


def folder_of_all(place: Path) -> Path:
    (place / "in").mkdir(parents=True)
    np.save(place / "a.npy", A.numpy())
    torch.save(B, place / "in" / "b.c.pt")
    save_file({"data": A}, place / "in" / "one.safetensors")
    np.savez(place / "two.npz", x=A.numpy(), y=B.numpy())
    (place / "dump.json").write_text("{}")
    (place / "notes.txt").write_text("mine")
    return place


def test_polygraphy(tmp_path: Path) -> None:
    found = foreign_tensors(polygraphy(tmp_path / "out.json", "onnxrt-runner-N0"))
    assert list(found) == ["/a", "b.c"]
    assert torch.equal(found["/a"](), A)
    assert torch.equal(found["b.c"](), B)


def test_a_file_of_torch(tmp_path: Path) -> None:
    torch.save({"a": A, "more": [B, 5, "text"]}, tmp_path / "f.pt")
    found = foreign_tensors(tmp_path / "f.pt")
    assert list(found) == ["a", "more.0"]
    assert torch.equal(found["more.0"](), B)


def test_a_folder_of_files_of_any_format(tmp_path: Path) -> None:
    found = foreign_tensors(folder_of_all(tmp_path / "f"))
    assert list(found) == ["a", "in/b.c", "in/one", "two/x", "two/y"]
    assert torch.equal(found["in/b.c"](), B)
    assert torch.equal(found["in/one"](), A)
    assert torch.equal(found["two/y"](), B)


class Code:
    """Would run code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code ran",))


WRONG: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "two runners": (
        lambda p: polygraphy(p / "f.json", "onnxrt", "trt"),
        UsageError,
        r"f\.json: expected one iteration of one runner, and it holds 2: onnxrt, trt; save one",
    ),
    "no runner": (lambda p: polygraphy(p / "f.json"), UsageError, "it holds 0: none"),
    "other JSON": (
        lambda p: (p / "f.json").write_text("[1]"),
        UsageError,
        r"f\.json: expected the outputs that Polygraphy saves",
    ),
    "no JSON": (lambda p: (p / "f.json").write_text("{"), SourceError, r"f\.json: cannot be read as \.json"),
    "its pickles": (
        lambda p: polygraphy(p / "f.json", "trt", kind="Tensor"),
        SourceError,
        r"f\.json: '/a' cannot be read \(it is a Tensor, which may hold a pickle",
    ),
    "code": (lambda p: torch.save({"a": Code()}, p / "f.pt"), SourceError, r"f\.pt: cannot be read as \.pt"),
    "text": (
        lambda p: np.savez(p / "f.npz", a=np.array(["x"])),
        SourceError,
        r"f\.npz: 'a' cannot be read \(can't convert np\.ndarray",
    ),
    "no tensors": (lambda p: np.savez(p / "f.npz"), UsageError, r"f\.npz: there are no tensors in it; expected \.npz"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_read_is_said(wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writes, kind, said = WRONG[wrong]
    writes(tmp_path)
    with pytest.raises(kind, match=said) as raised:
        [read() for read in foreign_tensors(next(tmp_path.iterdir())).values()]
    assert "\n" not in str(raised.value)
    assert "code ran" not in capsys.readouterr().out


def test_an_archive_is_opened_once_however_much_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "f.npz", **{f"n{number}": np.ones(3) for number in range(50)})  # type: ignore[arg-type]
    opened: list[Path] = []
    load = np.load

    def counted(place: Path, **more: Any) -> Any:
        opened.append(place)
        return load(place, **more)

    monkeypatch.setattr(np, "load", counted)
    assert sum(int(read().sum()) for read in foreign_tensors(tmp_path / "f.npz").values()) == 150
    assert len(opened) == 1


def test_names_as_msprobe_gives_them(tmp_path: Path) -> None:
    capture(model := Chain(), X := torch.linspace(-1, 1, 8), tmp_path / "ref")
    reference = Trace(tmp_path / "ref")
    outputs = {
        (call.module, call.call, call.type): reference.tensor(call.outputs.leaves[0].tensor or 0)
        for call in reference.manifest.samples[0].calls
    }
    assert ("first", 1, "Linear") in outputs
    (tmp_path / "dump_tensor_data").mkdir()
    for (module, call, kind), tensor in outputs.items():
        if module:
            name = f"Module.{module}.{kind}.forward.{call}"
            torch.save(tensor * -1, tmp_path / "dump_tensor_data" / f"{name}.output.0.pt")
            torch.save(tensor, tmp_path / "dump_tensor_data" / f"{name}.input.0.pt")
    found = import_trace(tmp_path / "dump_tensor_data", reference, tmp_path / "t", by_value=False)
    assert {str(match.place): match.name for match in found.matches} == {
        "first": "Module.first.Linear.forward.0.output.0",
        "act": "Module.act.ReLU.forward.0.output.0",
        "second": "Module.second.Linear.forward.0.output.0",
        "first#1": "Module.first.Linear.forward.1.output.0",
    }
    assert [str(place) for place in found.alone] == ["<root>"]
    first = Trace(tmp_path / "t").manifest.samples[0].calls[0]
    assert torch.equal(Trace(tmp_path / "t").tensor(first.outputs.leaves[0].tensor or 0), -model.first(X))


def test_names_of_calls_and_of_several_outputs(tmp_path: Path) -> None:
    capture(Chain(), torch.linspace(-1, 1, 8), tmp_path / "chain")
    np.savez(tmp_path / "f.npz", **{"first#1": np.ones(8), "second#0": np.ones(8), "first": np.ones(8)})  # type: ignore[arg-type]
    found = import_trace(tmp_path / "f.npz", Trace(tmp_path / "chain"), tmp_path / "t", by_value=False)
    assert [(str(match.place), match.name) for match in found.matches] == [
        ("first", "first"),
        ("second", "second#0"),
        ("first#1", "first#1"),
    ]
    capture(Stack(), {"ids": torch.arange(12).reshape(1, 12)}, tmp_path / "stack")
    np.savez(tmp_path / "g.npz", **{"<root>:logits": np.ones(8), "hidden": np.ones(8)})  # type: ignore[arg-type]
    found = import_trace(tmp_path / "g.npz", Trace(tmp_path / "stack"), tmp_path / "u", by_value=False)
    assert {str(match.place): match.name for match in found.matches} == {
        "<root>:logits": "<root>:logits",
        "<root>:hidden": "hidden",
    }
