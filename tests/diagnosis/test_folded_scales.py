"""What was multiplied into a weight before it was rounded is found: scales of norms, rotations and gains."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import qtrace
from qtrace.diagnosis.quantization.folded_scales import Folds, Unrounded
from qtrace.report.records import Outcome

WIDTH, OUT = 64, 96
PATH = "layers.1.up"


def chance(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weight() -> Tensor:
    return chance(OUT, WIDTH) / 8


def rounded(values: Tensor, bits: int = 8) -> Tensor:
    step: Tensor = values.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (values / step).round() * step


def scales(seed: int = 3) -> Tensor:
    return torch.exp2(chance(WIDTH, seed=seed))


def turn(width: int = WIDTH) -> Tensor:
    found: Tensor = torch.linalg.qr(chance(width, width, seed=4)).Q
    return found


class Norm(nn.Module):
    """A norm's weight, which it may add 1 to."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(values)


class Table(nn.Embedding):
    """An embedding with these rows."""

    def __init__(self, values: Tensor) -> None:
        super().__init__(*values.shape)
        self.weight = nn.Parameter(values)


def folds(**pairs: tuple[nn.Module, nn.Module]) -> Folds:
    """Return what pairs show; of a name, `__` is a dot."""
    known: dict[str, tuple[nn.Module, Sequence[nn.Module]]] = {
        name.replace("__", "."): (mine, [theirs]) for name, (mine, theirs) in pairs.items()
    }
    return Folds(known)


def before(found: Folds, candidate: Tensor, path: str = PATH) -> Unrounded:
    known = found.before(path, weight(), candidate)
    assert known is not None
    return known


def near(one: Tensor, other: Tensor, relative: float = 1e-5) -> bool:
    return float((one.double() - other.double()).norm() / other.double().norm()) <= relative


BITS = pytest.mark.parametrize("bits", [8, 4])


@BITS
def test_a_weight_that_is_only_rounded_is_the_reference(bits: int) -> None:
    known = before(folds(), rounded(weight(), bits))
    assert (known.is_exact, known.is_same, known.fitted) == (True, True, "")
    assert torch.equal(known.weight, weight())


@BITS
@pytest.mark.parametrize("one", [0.0, 1.0])
def test_the_scales_of_a_norm_are_found_exactly(bits: int, one: float) -> None:
    # GIVEN a norm that multiplies by its weight, or by 1 and its weight, and hands on values divided by s
    s, gain = scales(), 1 + 0.1 * chance(WIDTH, seed=7)
    found = folds(layers__1__norm=(Norm(gain - one), Norm(gain / s - one)))
    known = before(found, rounded(weight() * s, bits))
    assert (known.is_exact, known.is_same, known.fitted) == (True, False, "")
    assert near(known.weight, weight() * s)
    assert known.columns is not None
    assert near(known.columns, s)


def test_the_scales_of_the_nearest_norm_are_taken() -> None:
    s, other = scales(), scales(seed=5)
    gain = torch.ones(WIDTH)
    found = folds(
        layers__0__norm=(Norm(gain), Norm(gain / other)),
        layers__1__norm=(Norm(gain), Norm(gain / s)),
    )
    assert near(before(found, rounded(weight() * s)).weight, weight() * s)
    assert near(before(found, rounded(weight() * other), "layers.0.up").weight, weight() * other)


def test_a_weight_that_does_not_take_up_the_scales_of_its_norm_is_seen_as_such() -> None:
    gain = torch.ones(WIDTH)
    known = before(folds(layers__1__norm=(Norm(gain), Norm(gain / scales()))), rounded(weight()))
    assert known.is_same
    assert known.columns is None


def test_scales_of_another_width_are_left() -> None:
    gain = torch.ones(WIDTH // 2)
    known = before(folds(layers__1__norm=(Norm(gain), Norm(gain / 3))), rounded(weight()))
    assert known.is_same


@BITS
def test_a_rotation_is_seen_at_the_embedding_and_found_in_what_reads_the_stream(bits: int) -> None:
    table = chance(200, WIDTH, seed=6)
    found = folds(embed=(Table(table), Table(table @ turn())))
    known = before(found, rounded(weight() @ turn(), bits))
    assert (known.is_exact, known.is_same, known.fitted) == (True, False, "")
    assert near(known.weight, weight() @ turn())


@BITS
def test_a_rotation_is_found_in_what_writes_to_the_stream(bits: int) -> None:
    table = chance(200, OUT, seed=6)
    found = folds(embed=(Table(table), Table(table @ turn(OUT))))
    known = before(found, rounded(turn(OUT).t() @ weight(), bits))
    assert known.is_exact
    assert near(known.weight, turn(OUT).t() @ weight())


@BITS
def test_a_norm_that_was_folded_before_the_rotation_is_found_with_it(bits: int) -> None:
    table, gain = chance(200, WIDTH, seed=6), scales()
    found = folds(embed=(Table(table), Table(table @ turn())), layers__1__norm=(Norm(gain), Norm(torch.ones(WIDTH))))
    known = before(found, rounded(weight() * gain @ turn(), bits))
    assert known.is_exact
    assert near(known.weight, weight() * gain @ turn())


def test_an_embedding_that_is_rounded_or_another_shows_no_rotation() -> None:
    table = chance(200, WIDTH, seed=6)
    for other in (rounded(table), chance(200, WIDTH, seed=8)):
        found = folds(embed=(Table(table), Table(other)))
        assert found.before(PATH, weight(), rounded(weight() @ turn())) is None


@BITS
@pytest.mark.parametrize("axis", [1, 0])
def test_gains_of_rows_and_columns_are_fitted_and_told(bits: int, axis: int) -> None:
    name, count = ("row", OUT) if axis == 1 else ("column", WIDTH)
    gains = torch.linspace(1.5, 3, count).unsqueeze(axis)
    known = before(folds(), rounded(weight() * gains, bits))
    words, low, _, high = known.fitted.rsplit(" ", 3)
    assert words == f"with a factor for each {name},"
    assert [float(low), float(high)] == pytest.approx([1.5, 3], rel=0.03)
    assert near(known.weight, weight() * gains, relative=0.03)
    # Each gain is known up to what the rounding leaves of it.
    assert not known.is_exact


def test_one_gain_of_all_and_one_of_a_single_row_are_told() -> None:
    known = before(folds(), rounded(weight() * 1.3))
    assert known.fitted == "times 1.3"
    assert near(known.weight, weight() * 1.3, relative=1e-3)
    other = rounded(weight())
    other[17] *= -1.5
    words, gain = before(folds(), other).fitted.rsplit(" ", 1)
    assert words == "with row 17 times"
    assert float(gain) == pytest.approx(-1.5, rel=0.005)


def test_a_power_of_two_is_taken_for_exact() -> None:
    known = before(folds(), rounded(weight(), 4) * 4)
    assert known.fitted == "times 4"
    assert torch.equal(known.weight, weight() * 4)


def test_what_is_no_rounding_of_any_of_these_is_none() -> None:
    found = folds()
    assert found.before(PATH, weight(), rounded(chance(OUT, WIDTH, seed=9) / 8)) is None
    assert found.before(PATH, weight(), rounded(weight()).flip(0)) is None
    step = weight().abs().amax(1, keepdim=True) / 127
    assert found.before(PATH, weight(), rounded(weight()) + step) is None


class OnePlus(nn.Module):
    """A norm that multiplies by 1 + weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, (WIDTH,)) * (1 + self.weight)


class Gated(nn.Module):
    """A norm with two readers, as the feed-forward part of a decoder has it."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.gate, self.up = nn.Linear(WIDTH, OUT, bias=False), nn.Linear(WIDTH, OUT, bias=False)
        self.down = nn.Linear(OUT, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        found: Tensor = x + self.down(torch.sigmoid(self.gate(normed)) * self.up(normed))
        return found


def smoothed(one: float, *forgets: str) -> tuple[nn.Module, nn.Module]:
    """Return a model, and one with scales moved and rounded; of the second block, `forgets` are not multiplied by s."""
    torch.manual_seed(0)
    norms = [OnePlus() if one else nn.RMSNorm(WIDTH) for _ in range(3)]
    reference = nn.Sequential(*map(Gated, norms)).eval()
    with torch.no_grad():
        for norm in norms:
            norm.weight.copy_(0.5 + torch.rand(WIDTH) - one)
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        for number in range(3):
            moved = scales(seed=number + 10) ** 0.5
            weight = candidate.get_parameter(f"{number}.norm.weight")
            weight.copy_((weight + one) / moved - one)
            for name in ("gate", "up", "down"):
                weight = candidate.get_parameter(f"{number}.{name}.weight")
                takes = name != "down" and (number != 1 or name not in forgets)
                weight.copy_(rounded(weight * moved if takes else weight))
    return reference, candidate


def traced(reference: nn.Module, candidate: nn.Module) -> qtrace.Report:
    return qtrace.trace(reference, candidate, chance(4, 16, WIDTH, seed=3))


@pytest.mark.parametrize("one", [0.0, 1.0])
def test_scales_that_all_readers_take_up_are_no_fault(one: float) -> None:
    report = traced(*smoothed(one))
    assert (report.outcome, report.findings) == (Outcome.DRIFT, ())


@pytest.mark.parametrize("one", [0.0, 1.0])
@pytest.mark.parametrize("name", ["gate", "up"])
def test_the_reader_that_is_not_multiplied_by_the_scales_is_named_with_the_reason(name: str, one: float) -> None:
    report = traced(*smoothed(one, name))
    assert report.outcome is Outcome.FAULT
    (finding,) = report.findings
    assert (finding.module, finding.members) == (f"1.{name}", ())
    assert "weight is not multiplied by the scales that 1.norm was divided by" in finding.evidence


def test_where_no_reader_takes_the_scales_up_it_is_the_norm() -> None:
    report = traced(*smoothed(0.0, "gate", "up"))
    assert report.outcome is Outcome.FAULT
    assert report.findings[0].module == "1.norm"
    assert not any("not multiplied" in said for finding in report.findings for said in finding.evidence)
