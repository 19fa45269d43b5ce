"""`Forcing` where the candidate's tensors are no plain ones: quantized, or of a subclass that dequantizes itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import qtrace
from qtrace.engine.events import Bound, Call, Enter, Exit
from qtrace.engine.forcing import IN, OUT, Forcing
from qtrace.engine.pair import CallPair, PairComparer

CALL = Call("norm", "norm", "Norm", 0, "")
HERE = frozenset({"norm"})
RAW = Forcing(entries=HERE, exits=HERE)


class Packed(torch.Tensor):
    """Holds levels and a scale, as toolkits' tensors do: only `dequantize` says which numbers they are."""

    levels: Tensor
    scale: float

    @staticmethod
    def __new__(cls, levels: Tensor, scale: float) -> Packed:
        made: Packed = torch.Tensor._make_wrapper_subclass(cls, levels.shape, dtype=torch.float32)
        made.levels, made.scale = levels, scale
        return made

    def dequantize(self) -> Tensor:
        return self.levels * self.scale

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func is torch.ops.aten.detach.default:
            return args[0]
        return func(*(arg.dequantize() if isinstance(arg, Packed) else arg for arg in args), **(kwargs or {}))


class Packing(nn.Linear):
    """Returns its output packed in levels of 0.05."""

    def forward(self, x: Tensor) -> Tensor:
        return Packed(torch.round(super().forward(x) / 0.05), 0.05)


def handed_over(forcing: Forcing, reference: Tensor, candidate: Tensor) -> list[tuple[Tensor, bool]]:
    """Return what the candidate goes on with, and whether that counts as the reference's: at the entry, at the exit."""
    pair = PairComparer().compare(reference, candidate)
    assert pair is not None
    met = CallPair(CALL, CALL)
    entered = Enter(CALL, Bound({"x": candidate}, ("x",), frozenset({"x"})), (candidate,))
    taken = forcing.arguments(met, entered, [("x", reference, candidate, pair)])
    returned = forcing.outputs(met, Exit(CALL, candidate), [("", reference, candidate, pair)])
    return [
        (candidate if taken is None else taken.value[0][0], IN + "x" in met.forced),
        (candidate if returned is None else returned.value, OUT in met.forced),
    ]


def test_a_quantized_tensor_is_replaced_by_one_on_its_own_grid() -> None:
    reference = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    candidate = torch.quantize_per_tensor(reference + 0.5, 0.05, 7, torch.qint8)
    for handed, clean in handed_over(RAW, reference, candidate):
        assert clean
        assert (handed.qscheme(), handed.q_scale(), handed.q_zero_point()) == (torch.per_tensor_affine, 0.05, 7)
        assert torch.equal(handed.int_repr(), torch.quantize_per_tensor(reference, 0.05, 7, torch.qint8).int_repr())


def test_plain_numbers_stand_in_for_a_subclass_that_dequantizes_itself() -> None:
    reference = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    candidate: Tensor = Packed(torch.round(reference / 0.05) + 3, 0.05)
    for handed, clean in handed_over(RAW, reference, candidate):
        assert clean
        assert type(handed) is Tensor
        assert torch.equal(handed, reference)
    for kept, clean in handed_over(Forcing(entries=HERE, exits=HERE, unwraps=False), reference, candidate):
        assert kept is candidate
        assert not clean


def test_modules_that_return_packed_tensors_show_the_error_of_their_own() -> None:
    reference = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    candidate = nn.Sequential(*(Packing(8, 8) for _ in range(4)))
    candidate.load_state_dict(reference.state_dict())
    report = qtrace.trace(reference, candidate, torch.randn(16, 8, generator=torch.Generator().manual_seed(1)))
    own = [report.row(str(place)).peir_local for place in range(4)]
    assert all(error is not None and 1e-3 < error < 0.05 for error in own)
    assert report.findings == ()
