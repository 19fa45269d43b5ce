"""Where the candidate raises: who handed the callee what it cannot take, else the module that raised."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import qtrace
from qtrace.errors import ForwardError


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.out = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scores = self.query(x) @ x.transpose(-1, -2) + mask
        out: Tensor = self.out(torch.softmax(scores, -1) @ x)
        return out


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(), nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = self.mlp(x + self.attention(x, mask=mask))
        return out


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))

    def mask(self, mask: Tensor) -> Tensor:
        return (1 - mask)[:, None, :] * -1e9

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        large = self.mask(mask)
        for layer in self.layers:
            x = layer(x, mask=large)
        return x


class CutMask(Model):
    def mask(self, mask: Tensor) -> Tensor:
        return super().mask(mask)[:, :, :-1]


class Casts(Model):
    """Computes in the dtype of its weights."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        dtype = next(self.parameters()).dtype
        return super().forward(x.to(dtype), mask.to(dtype))


class Narrow(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :-1]


class Refuses(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("not built for this")


def report_of(candidate: nn.Module, reference: nn.Module, *, local: bool | None = None) -> qtrace.Report:
    inputs = {"x": torch.randn(2, 5, 8), "mask": torch.ones(2, 5)}
    with pytest.raises(ForwardError) as raised:
        qtrace.trace(reference, candidate, inputs, local=local)
    assert isinstance(raised.value.report, qtrace.Report)
    return raised.value.report


def pair(kind: type[Model] = Model) -> tuple[Model, Model]:
    reference = (kind if kind is Casts else Model)().eval()
    candidate = kind().eval()
    candidate.load_state_dict(reference.state_dict())
    return reference, candidate


def test_who_hands_over_an_argument_that_the_callee_cannot_take_is_named() -> None:
    reference, candidate = pair(CutMask)
    (finding,) = report_of(candidate, reference).findings
    assert (finding.kind, finding.module, finding.argument, finding.callee) == ("miscalls", "", "mask", "layers.0")
    assert finding.confirmed
    assert finding.evidence[-1].startswith("the candidate raised RuntimeError in layers.0.attention: The size of")


def test_a_module_whose_output_somebody_else_cannot_take_is_named() -> None:
    reference, candidate = pair()
    layer = candidate.get_submodule("layers.1.mlp")
    narrow = Narrow(8, 8)
    narrow.load_state_dict(layer.state_dict())
    candidate.set_submodule("layers.1.mlp", narrow)
    (finding,) = report_of(candidate, reference).findings
    assert (finding.kind, finding.module, finding.confirmed) == ("introduces", "layers.1.mlp", True)
    assert finding.evidence[-1].startswith("the candidate raised RuntimeError in layers.2.attention")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_module_whose_output_its_own_caller_cannot_take_is_named(dtype: torch.dtype) -> None:
    reference, candidate = pair(Casts)
    narrow = Narrow(8, 8)
    narrow.load_state_dict(candidate.get_submodule("layers.1.attention.out").state_dict())
    candidate.set_submodule("layers.1.attention.out", narrow)
    (finding,) = report_of(candidate.to(dtype), reference).findings
    assert (finding.kind, finding.module, finding.confirmed) == ("introduces", "layers.1.attention.out", True)
    assert finding.evidence[-1].startswith("the candidate raised RuntimeError in layers.1: The size of")


@pytest.mark.parametrize("local", [None, False])
def test_a_module_that_raises_on_what_the_reference_takes_is_named_itself(local: bool | None) -> None:
    reference, candidate = pair()
    candidate.set_submodule("layers.1.mlp", Refuses(8, 8))
    (finding,) = report_of(candidate, reference, local=local).findings
    assert (finding.kind, finding.module) == ("raises", "layers.1.mlp")


def test_without_further_passes_it_is_the_module_that_raised() -> None:
    reference, candidate = pair(CutMask)
    (finding,) = report_of(candidate, reference, local=False).findings
    assert (finding.kind, finding.module) == ("raises", "layers.0.attention")


def test_nobody_is_to_blame_where_the_reference_raises_as_well() -> None:
    reference = CutMask().eval()
    assert report_of(copy.deepcopy(reference), reference).findings == ()
