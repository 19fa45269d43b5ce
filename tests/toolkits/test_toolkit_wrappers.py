"""The wrappers of toolkits: those that torch brings along run; of the others, what is said without them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qtrace
from qtrace import toolkits
from qtrace.engine.samples import Sample, as_samples
from qtrace.errors import SourceError, UsageError
from qtrace.report.records import Outcome
from qtrace.sources import wrappers
from qtrace.sources.wrappers import apply_wrapper
from qtrace.toolkits import calibration
from qtrace.zoo import llama
from tests.helpers.models import Chain, Stack

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


def wrapped(name: str, reference: nn.Module, sample: Any, **args: Any) -> nn.Module:
    return apply_wrapper(name, reference, as_samples(sample), args)


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("compile", {"backend": "eager"}),
        ("export", {}),
        ("accelerate", {"offload": "cpu"}),
        ("accelerate", {"offload": "disk"}),
    ],
)
def test_what_changes_no_number_is_aligned_whole_and_clean(name: str, args: Mapping[str, Any]) -> None:
    reference, sample = llama.tiny(), {**llama.tokens(length=8), "use_cache": False}
    report = qtrace.trace(reference, wrapped(name, reference, sample, **args), sample)
    assert report.outcome is Outcome.CLEAN
    assert (report.coverage.compared, report.coverage.reference_calls) == (31, 31)


def test_a_compiled_model_says_that_compiled_numbers_were_not_measured() -> None:
    reference = Chain()
    report = qtrace.trace(reference, wrapped("compile", reference, X, backend="eager"), X)
    assert any("compiled numerics were not measured" in warning for warning in report.warnings)


def test_dynamic_int8_is_aligned_whole_and_in_the_references_mode() -> None:
    reference = Stack()
    ids = torch.arange(6)[None]
    candidate = wrapped("torch_ao", reference, ids)
    assert not any(module.training for module in candidate.modules())
    report = qtrace.trace(reference, candidate, ids)
    assert report.coverage.compared == report.coverage.reference_calls
    assert 0 < (report.row("head").peir or 0) < 0.1


@pytest.mark.parametrize("convert", [False, True])
@pytest.mark.parametrize(("mode", "args"), [("static", {"fuse": [["0", "1", "2"]]}), ("fx", {})])
def test_a_fused_convolution_is_compared_with_nothing_that_it_is_not(
    mode: str, args: Mapping[str, Any], convert: bool
) -> None:
    reference = convolutions()
    candidate = wrapped("torch_ao", reference, IMAGE, mode=mode, convert=convert, **args)
    report = qtrace.trace(reference, candidate, IMAGE)
    compared = {row.module: row for row in report.rows if row.peir is not None}
    # Neither the convolution nor the norm inside the group has a counterpart that returns the same.
    assert {"", "2", "3"} <= compared.keys()
    assert not {"0", "1"} & compared.keys()
    assert all((row.peir or 0) < 0.1 for row in compared.values())


MISSING = {
    "torchao": "torchao",
    "quanto": "optimum-quanto",
    "peft": "peft",
    "accelerate": "accelerate",
    "bitsandbytes": "bitsandbytes",
    "compressed_tensors": "compressed-tensors",
    "modelopt": "nvidia-modelopt",
    "brevitas": "brevitas",
    "nncf": "nncf",
    "neural_compressor": "neural-compressor[pt]",
    "quark": "amd-quark",
    "aimet": "aimet-torch",
}


@pytest.mark.parametrize(("name", "package"), MISSING.items())
def test_a_missing_toolkit_is_one_sentence_with_its_package(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "find_spec", lambda module: None)
    with pytest.raises(SourceError) as caught:
        wrapped(name, Chain(), X)
    assert str(caught.value) == (
        f"the wrapper {name} needs the package {package}, which is missing: pip install {package}"
    )


def test_a_toolkit_inside_a_package_that_is_missing_is_missing() -> None:
    with (
        pytest.raises(SourceError, match="needs the package p, which is missing"),
        calibration.toolkit("w", "nowhere.x", "p"),
    ):
        pass


def test_a_toolkit_that_cannot_be_imported_says_why() -> None:
    with pytest.raises(SourceError) as caught, calibration.toolkit("w", "torch"):
        raise ImportError("needs CUDA\n 12")
    assert str(caught.value) == "the installed torch cannot be used by the wrapper w: needs CUDA 12"


def test_what_a_toolkit_prints_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with calibration.toolkit("w", "torch"):
        print("Inserted 3 quantizers")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "Inserted 3 quantizers\n")


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("torchao", {"scheme": "int8"}, "the wrapper torchao has no scheme int8; did you mean"),
        ("quanto", {"weights": "int8"}, "the wrapper quanto has no type int8; did you mean qint8"),
        ("peft", {"state": "merge"}, "the wrapper peft has no state merge; did you mean merged?"),
        ("torch_ao", {"mode": "eager"}, "the wrapper torch_ao has no mode eager; known: dynamic, fx, static"),
        ("accelerate", {"offload": "gpu"}, "the wrapper accelerate has no place to offload to gpu; "),
        ("bitsandbytes", {"bits": 3}, "the wrapper bitsandbytes has 4 and 8 bits, and was asked for 3"),
    ],
)
def test_an_unknown_choice_is_refused_before_anything_is_imported(
    name: str, args: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        wrapped(name, Chain(), X, **args)
    assert str(caught.value).startswith(message)


def test_what_follows_the_model_needs_a_sample() -> None:
    with pytest.raises(UsageError, match="the wrapper export follows the model on a sample, and there is none"):
        apply_wrapper("export", Chain(), [], {})


def test_a_toolkit_that_refuses_the_model_says_so_in_one_sentence_of_bearable_length(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(SourceError) as caught:
        wrapped("export", Branches(), X)
    said = str(caught.value)
    assert said.startswith("the wrapper export failed on Branches: ")
    assert "\n" not in said
    assert len(said) < 400
    assert "def forward" not in capsys.readouterr().err


def test_what_bitsandbytes_says_of_every_call_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    from qtrace.toolkits.bitsandbytes import _Once

    logger = logging.getLogger("tests.once")
    once = _Once()
    logger.addFilter(once)
    try:
        for dtype in ("float32", "float32", "float16"):
            logger.warning("inputs will be cast from %s", dtype)
    finally:
        logger.removeFilter(once)
    assert [record.getMessage()[-7:] for record in caplog.records] == ["float32", "float16"]


def test_calibration_leaves_the_samples_as_they_are() -> None:
    class Writes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.zero_()

    sample = Sample((X.clone(),))
    calibration.calibrate(Writes(), [sample])
    assert torch.equal(sample.args[0], X)


def test_every_built_in_wrapper_is_announced_as_others_are() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    announced = project.split(f'[project.entry-points."{wrappers.GROUP}"]\n')[1].split("\n\n")[0]
    lines = [f'{name} = "qtrace.toolkits.{name}:wrap"' for name in toolkits.TOOLKITS]
    assert announced.splitlines() == lines
