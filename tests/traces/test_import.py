"""Tensors of other runtimes as traces: found by mapping, by name, by value; what is not found is named."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import qtrace
from qtrace.errors import SourceError, UsageError
from qtrace.report.records import Outcome, Status
from qtrace.traces import Form, Trace, skeleton
from qtrace.traces.capture import capture
from qtrace.traces.foreign_tensors import import_trace
from qtrace.traces.mapping import read_mapping
from tests.cli.test_run import Ended, folder, options
from tests.helpers.models import Stack

__all__ = ["folder"]
MINILM = Path(__file__).resolve().parents[2] / ".cache" / "qtrace" / "minilm"
DOCS = Path(__file__).resolve().parents[2] / "docs" / "traces.md"
IDS = {"ids": torch.arange(12).reshape(1, 12)}


@pytest.fixture
def reference(tmp_path: Path) -> Trace:
    capture(Stack(), IDS, tmp_path / "reference")
    return Trace(tmp_path / "reference")


def outputs_of(trace: Trace) -> dict[str, np.ndarray]:
    """Return the outputs of all calls by module, those of the root by their paths."""
    return {
        ".".join(filter(None, (call.module, leaf.path))): trace.tensor(leaf.tensor).numpy()
        for call in trace.manifest.samples[0].calls
        for leaf in call.outputs.leaves
        if leaf.tensor is not None
    }


def compared(reference: Trace, folder: Path) -> qtrace.Report:
    return qtrace.trace(skeleton(reference), skeleton(Trace(folder)), [()])


def write(place: Path, tensors: dict[str, np.ndarray]) -> Path:
    if place.suffix == ".npz":
        np.savez(place, **tensors)  # type: ignore[arg-type]
    elif place.suffix == ".safetensors":
        save_file({name: torch.from_numpy(array.copy()) for name, array in tensors.items()}, place)
    else:
        for name, array in tensors.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            np.save(place / f"{name}.npy", array)
    return place


@pytest.mark.parametrize("kind", ["f.npz", "f.safetensors", "f"])
def test_names_that_are_the_modules(kind: str, reference: Trace, tmp_path: Path) -> None:
    named = outputs_of(reference)
    named["layers.1.out"] = named["layers.1.out"] + 1
    found = import_trace(write(tmp_path / kind, named), reference, tmp_path / "t", by_value=False)
    assert {match.rule for match in found.matches} == {"name"}
    assert (found.alone, found.unused) == ((), ())
    report = compared(reference, tmp_path / "t")
    # Whoever is right: they had the same inputs.
    assert compared(Trace(tmp_path / "t"), reference.folder).coverage.fraction == 1
    assert report.row("layers.1.out").peir == pytest.approx(1 / np.ptp(outputs_of(reference)["layers.1.out"]), rel=1e-6)
    assert report.row("layers.0").peir == 0
    assert report.coverage.fraction == 1


def test_names_with_slashes_and_a_mapping_file(reference: Trace, tmp_path: Path) -> None:
    named = {f"/{name.replace('.', '/')}": array for name, array in outputs_of(reference).items()}
    named["x"] = named.pop("/layers/0")
    named["y"] = named.pop("/logits")
    (tmp_path / "map.yaml").write_text("x: layers.0\ny: <root>:logits\n")
    given = read_mapping(tmp_path / "map.yaml")
    found = import_trace(write(tmp_path / "f.npz", named), reference, tmp_path / "t", given=given, by_value=False)
    assert {match.name: match.rule for match in found.matches if match.rule == "given"} == {"x": "given", "y": "given"}
    assert found.alone == ()
    assert compared(reference, tmp_path / "t").outcome is Outcome.CLEAN


def test_values_in_any_order_and_layout_and_what_is_far_off_is_missing(reference: Trace, tmp_path: Path) -> None:
    named = outputs_of(reference)
    del named["layers.0.norm"]
    named["layers.1.query"] = named["layers.1.query"] * -1
    strange = {f"n{number}": array + 1e-5 for number, array in enumerate(reversed(named.values()))}
    strange["zeros"] = np.zeros((1, 12, 8), np.float32)
    found = import_trace(write(tmp_path / "f.npz", strange), reference, tmp_path / "t")
    assert [str(place) for place in found.alone] == ["layers.0.norm", "layers.1.query"]
    assert "zeros" in found.unused
    report = compared(reference, tmp_path / "t")
    assert report.coverage.reasons == {"alone": 2}
    assert report.row("layers.1.query").status is Status.REFERENCE_ONLY
    said = "outputs of the candidate that were recognised by their values when they were imported: "
    assert any(warning.startswith(f"{said}{len(found.matches)}; none of them") for warning in report.warnings)


def test_a_sketched_reference_is_enough_to_recognise(tmp_path: Path) -> None:
    model = Stack(width=128)
    capture(model, IDS, tmp_path / "whole")
    capture(model, IDS, tmp_path / "few", Form(sketches=True))
    named = {f"n{i}": array for i, array in enumerate(outputs_of(Trace(tmp_path / "whole")).values())}
    few = Trace(tmp_path / "few")
    found = import_trace(write(tmp_path / "f.npz", named), few, tmp_path / "t")
    assert found.alone == ()
    assert compared(few, tmp_path / "t").outcome is Outcome.CLEAN


def test_what_goes_wrong_is_said(reference: Trace, tmp_path: Path) -> None:
    place = write(tmp_path / "f.npz", {"a": np.arange(3.0)})
    with pytest.raises(UsageError, match=r"none of its 1 tensors \(a\) stands for an output of trace:"):
        import_trace(place, reference, tmp_path / "t")
    with pytest.raises(UsageError, match="names a tensor 'b' that was not written; known: a"):
        import_trace(place, reference, tmp_path / "t", given={"b": "head"})
    with pytest.raises(UsageError, match="names an output 'heat' that the reference has not; did you mean head"):
        import_trace(place, reference, tmp_path / "t", given={"a": "heat"})
    with pytest.raises(SourceError, match="no such file or folder to import"):
        import_trace(tmp_path / "no.npz", reference, tmp_path / "t")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04nonsense")
    with pytest.raises(SourceError, match=r"bad\.npz: cannot be read as \.npz"):
        import_trace(tmp_path / "bad.npz", reference, tmp_path / "t")
    np.savez(tmp_path / "pickled.npz", a=np.array([{}], dtype=object))
    with pytest.raises(SourceError, match="allow_pickle=False"):
        import_trace(tmp_path / "pickled.npz", reference, tmp_path / "t")
    with pytest.raises(UsageError, match="reference: this is a trace already; compare it by qtrace diff"):
        import_trace(reference.folder, reference, tmp_path / "t")
    (tmp_path / "x.csv").touch()
    with pytest.raises(UsageError, match=r"x\.csv: expected \.npz, \.npy, \.safetensors, \.pt, \.json or a folder"):
        import_trace(tmp_path / "x.csv", reference, tmp_path / "t")
    (tmp_path / "map.yaml").write_text("a: 5\n")
    with pytest.raises(UsageError, match="expected a mapping, of a tensor's name to a module's; both are text"):
        read_mapping(tmp_path / "map.yaml")
    assert not (tmp_path / "t").exists()


def test_the_command_says_how_much_it_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Ended(capsys, "capture", *options(), "--out", "a").code == 0
    named = outputs_of(Trace("a"))
    named["spare"] = named.pop("layers.0.up")
    named["layers.1"] = named["layers.1"] + 0.25
    write(folder / "f.npz", named)
    ended = Ended(capsys, "import", "f.npz", "--reference", "a", "--out", "b", "--no-by-value")
    assert ended.code == 0
    assert ended.out.splitlines() == [
        "found 8 of the reference's 9 outputs (88.8 %): 8 by name",
        "not found: layers.0.up",
        "1 tensor stands for no output of the reference",
    ]
    ended = Ended(capsys, "import", "f.npz", "--reference", "a", "--out", "b", "--force", "--explain")
    assert ["layers.0.up", "spare", "value"] in [line.split() for line in ended.out.splitlines()]
    ended = Ended(capsys, "diff", "a", "b")
    assert ended.code == 0
    # It is none of torch's business what the other runtime went on with.
    assert any(line.split()[:2] == ["layers.1", "absorbed"] for line in ended.out.splitlines()), ended.out


MODELS = """
import torch
from transformers import AutoModel, BertConfig, BertModel

def minilm():
    if {place!r}:
        return AutoModel.from_pretrained({place!r}, attn_implementation="eager").eval()
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=2, vocab_size=1100)
    return BertModel(BertConfig(attn_implementation="eager", **sizes)).eval()

def batch():
    ids = torch.arange(1000, 1016).reshape(1, 16)
    return {{"input_ids": ids, "attention_mask": torch.ones_like(ids)}}
"""
IS_THERE = (MINILM / "model.safetensors").exists()
WITHOUT = pytest.mark.skipif(IS_THERE, reason="MiniLM itself is there")
WITH = pytest.mark.skipif(not IS_THERE, reason="MiniLM is not there; `make models`")


@pytest.mark.parametrize(
    ("place", "found"),
    [
        pytest.param(str(MINILM), "126 of the reference's 126", marks=[pytest.mark.real_model, WITH], id="MiniLM"),
        pytest.param("", "50 of the reference's 50", marks=WITHOUT, id="a tiny one of random weights"),
    ],
)
def test_the_documented_example_with_onnx_runtime(
    place: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not there; it comes with the extra qtrace[onnx]")
    (example,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example.py").write_text(example)
    (tmp_path / "models.py").write_text(MODELS.format(place=place))
    # The exporter changes much of torch for good: it runs in a process of its own.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        [sys.executable, "example.py"], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    commands = [line for line in DOCS.read_text().split("```python")[1].splitlines() if line.startswith("qtrace ")]
    assert len(commands) == 3
    said = ""
    for command in commands:
        run = Ended(capsys, *command.split()[1:])
        assert run.code == 0, run.err
        said += run.out
    assert f"found {found} outputs (100 %)" in said
    calls = re.search(r"compared (\d+) of (\d+) calls \(100 %\)", said)
    assert calls is not None
    assert calls[1] == calls[2]
    assert said.splitlines()[-1] == "outcome: clean. The candidate computes what the reference computes."
