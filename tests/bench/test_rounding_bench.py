"""The rounding bench: its faults are real, its right quantizations right, and a few cases of it are answered."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bench.rounding import folding, score
from bench.rounding.faults import size
from bench.rounding.models import NAMES, outputs, subject
from bench.rounding.schemes import FORMS, CodesLinear, DynamicLinear, Recipe, cells, quantize

FAULTS = [f"fault/{scheme}-{bits}/00" for scheme, bits in cells()]
# One of each scheme and width, over several models and foldings.
RIGHT = [f"right/{index:02}" for index in (0, 3, 4, 6, 9, 12, 15, 18, 21, 24, 25, 27, 28)]
SAME = 1e-5


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_named(name: str) -> None:
    result = score.run_case(name)
    assert (result.outcome, result.first, result.innocent) == ("fault", True, 0), result.words


@pytest.mark.parametrize("name", RIGHT)
def test_right_quantization_raises_no_alarm(name: str) -> None:
    result = score.run_case(name)
    assert not result.named, result.words
    assert result.outcome in ("drift", "clean")


@pytest.mark.parametrize("name", score.ids("fault/*/1[0-2]") + score.ids("size/*/00"))
def test_fault_is_of_its_size_and_alone(name: str) -> None:
    """The candidate differs from the right quantization at one layer, and there by the size that is told."""
    built = score.build(name)
    skip = () if built.recipe.head else built.subject.heads
    right = quantize(copy.deepcopy(built.subject.model), built.recipe, skip)
    assert built.path is not None
    measured = {
        path: size(
            built.subject.linear(path),
            right.get_submodule(path),
            built.candidate.get_submodule(path),
            received,
        )
        for path, received in built.subject.received.items()
        if path not in skip
    }
    assert measured.pop(built.path) == built.ratio
    assert set(measured.values()) == {0.0}
    if name.startswith("fault/"):
        assert built.ratio is not None
        assert score.LEAST <= built.ratio < float("inf")


@pytest.mark.parametrize("kind", folding.FOLDINGS)
@pytest.mark.parametrize("name", NAMES)
def test_folding_leaves_the_results_alone(name: str, kind: str) -> None:
    for seed in (0, 1):
        chosen = subject(name, seed)
        changed = folding.float_model(chosen, kind, score.seeded(name))
        expected = outputs(chosen.model, chosen.inputs)
        assert _distance(outputs(changed, chosen.inputs), expected) < SAME


@pytest.mark.parametrize("kind", [folding.SCALED, folding.TURNED])
def test_scales_and_rotations_are_undone(kind: str) -> None:
    """Per group at 8 bits, what is left of them is rounding."""
    chosen = subject("mixer", 1)
    for form in FORMS:
        model = folding.quantized(chosen, kind, Recipe("group", 8, form, False, True), score.seeded(form))
        assert _distance(outputs(model, chosen.inputs), outputs(chosen.model, chosen.inputs)) < 0.03


@pytest.mark.parametrize(("scheme", "bits"), cells())
@pytest.mark.parametrize("affine", [False, True])
def test_every_form_is_the_nearest_code(scheme: str, bits: int, affine: bool) -> None:
    """All forms restore the same weight, and each value is at most half a step from the right one."""
    weight = subject("decoder", 0).linear("model.layers.1.mlp.down_proj").weight.detach()
    eye = torch.eye(weight.shape[1])
    restored = []
    for form in FORMS:
        recipe = Recipe(scheme, bits, form, affine, True)
        stored = recipe.store(weight)
        layer = recipe.layer(stored, None)
        layer = layer.linear if isinstance(layer, DynamicLinear) else layer
        assert isinstance(layer, nn.Linear if form == "weights" else CodesLinear)
        with torch.no_grad():
            restored.append(layer(eye).T)
    assert all(torch.equal(one, restored[0]) for one in restored)
    # The steps of floats widen: a sixteenth of the value with 3 bits of mantissa, a quarter with 1.
    wide = {8: 1 / 16, 4: 1 / 4}[bits] * weight.abs() if scheme == "float" else torch.zeros_like(weight)
    step = stored.scale.expand(stored.codes.shape).flatten(1) * (2**-9 if (scheme, bits) == ("float", 8) else 1)
    # An affine zero point is rounded too, so that the ends of the range may be clipped by up to half a step more.
    most = torch.maximum(wide, step * (1.0 if affine else 0.5))
    assert bool(((restored[0] - weight).abs() <= most * 1.001).all())


def test_bench_is_as_wide_as_promised() -> None:
    assert len(score.ids("fault/*")) == 20 * len(cells()) == 200
    assert len(score.ids("right/*")) == 100
    assert len(score.ids("size/*")) == 15 * len(score.BINS)
    parts = [score.right_parts(index) for index in range(score.RIGHT)]
    assert {part[2] for part in parts} == set(folding.FOLDINGS)
    assert len({(part[0].name, part[1].scheme, part[1].bits) for part in parts}) == 30
