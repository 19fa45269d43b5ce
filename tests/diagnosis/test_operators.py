"""The operator view on small models: where two modules part, on the arguments that they really receive."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qtrace.diagnosis.operators import compare_operators
from qtrace.errors import ForwardError, UsageError
from qtrace.report.records.operators import CodePlace, Operator, OperatorView
from tests.helpers.models import Chain, Wrapped, hooks_of, twin

HEADS, WIDTH, TOKENS = 2, 32, 12


class Attention(nn.Module):
    """All heads at once; the scale is applied to the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.scale = (WIDTH // HEADS) ** -0.5

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:-1], HEADS, -1).transpose(1, 2)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v = self.heads(self.query(x)), self.heads(self.key(x)), self.heads(self.value(x))
        logits = q @ k.transpose(-1, -2) * self.scale
        if mask is not None:
            logits = logits + mask  # the mask comes in
        weights = logits.softmax(-1)
        joined = (weights @ v).transpose(1, 2).flatten(2)
        return self.out(joined), weights


class Unrolled(Attention):
    """One head after the other, the scale folded into the queries: it never holds the whole logits."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v = self.heads(self.query(x) * self.scale), self.heads(self.key(x)), self.heads(self.value(x))
        weights, results = [], []
        for head in range(HEADS):
            logits = q[:, head] @ k[:, head].transpose(-1, -2)
            if mask is not None:
                logits = self.masked(logits, mask)
            weights.append(self.softmax(logits))
            results.append(weights[-1] @ v[:, head])
        return self.out(torch.cat(results, -1)), torch.stack(weights, 1)

    def masked(self, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return logits + mask.reshape(-1, *mask.shape[-2:])  # the mask comes in

    def softmax(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(-1)


class Hotter(Unrolled):
    def softmax(self, logits: torch.Tensor) -> torch.Tensor:
        return (logits / 0.9).softmax(-1)  # too hot


class Untransposed(Attention):
    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v = self.heads(self.query(x)), self.heads(self.key(x)), self.heads(self.value(x))
        weights = (q @ k.transpose(-1, -2) * self.scale).softmax(-1)
        joined = (weights @ v).permute(0, 2, 3, 1).flatten(2)  # in another order
        return self.out(joined), weights


class Scaled(Attention):
    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        self.scale, right = 0.5, self.scale  # a wrong factor
        try:
            return super().forward(x, mask)
        finally:
            self.scale = right


class Model(nn.Module):
    """Attention behind a norm, handed a causal mask, or with `raw` the padding mask as it is."""

    def __init__(self, attention: Callable[[], nn.Module] = Attention, *, masked: bool = True, raw: bool = False):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(WIDTH), attention()
        self.masked, self.raw = masked, raw
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = None
        if self.masked:
            mask = torch.full((TOKENS, TOKENS), torch.finfo(x.dtype).min).triu(1)[None, None]
        if self.raw:
            mask = torch.arange(TOKENS)[None, None, None]
        out: torch.Tensor = x + self.attention(self.norm(x), mask=mask)[0]
        return out


def pair(candidate: Callable[[], nn.Module], **options: bool) -> tuple[Model, Model]:
    reference = Model(masked=options.get("masked", True))
    made = Model(candidate, **options)
    made.load_state_dict(reference.state_dict())
    return reference, made


def viewed(models: tuple[nn.Module, nn.Module], module: str = "attention", **options: Any) -> OperatorView:
    return compare_operators(*models, torch.randn(2, TOKENS, WIDTH), module, **options)


def parted(view: OperatorView) -> tuple[Operator, Operator]:
    assert view.split is not None
    assert view.split.reference is not None
    assert view.split.candidate is not None
    return view.reference_operators[view.split.reference], view.candidate_operators[view.split.candidate]


def code_at(place: CodePlace | None) -> str:
    assert place is not None
    return next(line.text for line in place.around if line.number == place.line).strip()


def test_unrolled_heads_agree_with_all_heads_at_once() -> None:
    view = viewed(pair(Unrolled))
    assert view.agrees
    assert view.split is None
    assert view.outputs == () == view.arguments
    heads = [one for one in view.candidate_operators if "softmax" in one.name]
    assert len(heads) == HEADS
    for head, operator in enumerate(heads):
        assert operator.partner is not None
        assert operator.partner.relation is not None
        assert operator.partner.relation.kind == "slice"
        assert operator.partner.relation.parameters == {"axis": 1, "index": head}
        (index,) = operator.partner.operators
        assert view.reference_operators[index].name == operator.name


def test_a_wrong_mask_parts_where_it_is_added() -> None:
    view = viewed(pair(Unrolled, raw=True))
    assert [one.name for one in view.arguments] == ["mask"]
    first, second = parted(view)
    assert first.name == second.name == "aten.add.Tensor"
    assert code_at(first.place).endswith("# the mask comes in")
    assert code_at(second.place).endswith("# the mask comes in")
    assert second.place is not None
    assert second.place.function == "masked"
    assert view.split is not None
    assert view.split.arguments == ("mask",)
    agreed = view.split.agreed
    assert agreed is not None
    assert agreed.error is not None
    assert agreed.error < 1e-5
    assert view.reference_operators[agreed.reference].name == "aten.mul.Tensor"


def test_a_fault_in_one_operator_is_found_behind_a_folded_scale_and_a_mask() -> None:
    _, second = parted(viewed(pair(Hotter)))
    assert code_at(second.place) == "return (logits / 0.9).softmax(-1)  # too hot"


def test_another_order_of_the_same_values_is_a_fault_where_nobody_undoes_it() -> None:
    first, second = parted(viewed(pair(Untransposed, masked=False)))
    assert second.name == "aten.permute.default"
    assert code_at(second.place).endswith("# in another order")
    assert first.name == "aten.transpose.int"


def test_a_factor_is_a_fault_where_nobody_undoes_it() -> None:
    first, second = parted(viewed(pair(Scaled)))
    assert first.name == second.name == "aten.mul.Tensor"
    assert (first.settings, second.settings) == ("other=0.25", "other=0.5")


def test_what_a_side_leaves_out_is_said() -> None:
    class Plain(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.attention(self.norm(x))[0]
            return out

    reference = Model(masked=False)
    candidate = Plain(masked=False)
    candidate.load_state_dict(reference.state_dict())
    view = viewed((reference, candidate), "<root>")
    assert view.module == ""
    assert view.split is not None
    assert view.split.left_out == (False, True)
    assert parted(view)[0].name == "aten.add.Tensor"


def test_where_both_pick_something_else_nothing_is_left_out() -> None:
    class Picks(nn.Module):
        def __init__(self, at: int) -> None:
            super().__init__()
            self.at = at

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * 2)[:, self.at]

    view = viewed((Picks(0), Picks(3)), "")
    assert view.split is not None
    assert view.split.left_out == (False, False)
    first, second = parted(view)
    assert first.name == second.name == "aten.select.int"
    assert (first.settings, second.settings) == ("dim=1, index=0", "dim=1, index=3")


def test_the_line_of_a_module_inside_stands_beside_that_of_the_module_itself() -> None:
    class Norm(nn.Module):
        def __init__(self, eps: float) -> None:
            super().__init__()
            self.eps = eps

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()
            return out

    class Outer(nn.Module):
        def __init__(self, eps: float) -> None:
            super().__init__()
            self.norm = Norm(eps)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = 2 * self.norm(x)
            return out

    first, second = parted(viewed((Outer(1e-6), Outer(1e-1)), ""))
    for operator in (first, second):
        assert operator.module == "norm"
        assert code_at(operator.place).startswith("out: torch.Tensor = x * (x.square()")
        assert code_at(operator.own) == "out: torch.Tensor = 2 * self.norm(x)"


def test_a_written_tensor_is_what_was_written_last() -> None:
    class Writes(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = torch.zeros_like(x)
            out[:, :4] = x[:, :4] * 3
            out[:, 4:] = x[:, 4:] * self.factor
            out.add_(1)
            return out

    view = viewed((Writes(2.0), Writes(2.0)), "")
    assert view.agrees
    first, second = parted(viewed((Writes(2.0), Writes(5.0)), ""))
    assert first.name == second.name == "aten.mul.Tensor"
    assert (first.settings, second.settings) == ("other=2.0", "other=5.0")


def test_a_call_is_chosen_by_its_number() -> None:
    reference = Chain()
    candidate = twin(reference)
    with torch.no_grad():
        candidate.get_submodule("second").weight[0] *= -1  # type: ignore[operator, index]
    given = torch.randn(3, 8)
    first = compare_operators(reference, candidate, given, "first")
    assert first.agrees
    assert first.calls == (2, 2)
    second = compare_operators(reference, candidate, given, "first", call_index=1)
    assert not second.agrees
    assert second.call == 1
    assert [one.name for one in second.arguments] == ["input"]
    assert second.split is not None
    assert second.split.arguments == ("input",)


def test_a_wrapper_is_looked_into_under_the_names_of_what_it_wraps() -> None:
    reference = Model()
    candidate = Model(lambda: Wrapped(Attention()), raw=True)
    candidate.norm.load_state_dict(reference.norm.state_dict())
    candidate.attention.wrapped.load_state_dict(reference.attention.state_dict())  # type: ignore[union-attr]
    view = viewed((reference, candidate))
    assert view.candidate == "attention"
    assert [one.name for one in view.arguments] == ["mask"]
    second = parted(view)[1]
    assert second.own == second.place or (second.own is not None and second.own.function == "forward")
    assert code_at(second.place).endswith("# the mask comes in")


def test_both_sides_draw_the_same_random_numbers() -> None:
    class Drops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(TOKENS)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.drop(x))  # type: ignore[no-any-return]

    reference = Drops().train()
    candidate = copy.deepcopy(reference)
    before = torch.get_rng_state()
    means = [model.norm.running_mean.clone() for model in (reference, candidate)]  # type: ignore[union-attr]
    given = torch.randn(2, TOKENS, WIDTH)
    torch.set_rng_state(before)
    assert compare_operators(reference, candidate, given, "").agrees
    assert torch.equal(torch.get_rng_state(), before)
    for mean, model in zip(means, (reference, candidate), strict=True):
        assert torch.equal(model.norm.running_mean, mean)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_any_grad_mode_gives_the_same_answer(mode: Callable[[], Any]) -> None:
    with mode():
        first, second = parted(viewed(pair(Unrolled, raw=True)))
    assert first.name == second.name == "aten.add.Tensor"


def test_coarse_types_agree_up_to_their_rounding() -> None:
    reference, _ = pair(Attention)
    candidate = copy.deepcopy(reference).to(torch.bfloat16)

    class Cast(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.norm, self.attention = inner.get_submodule("norm"), inner.get_submodule("attention")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.to(torch.bfloat16)
            out: torch.Tensor = x + self.attention(self.norm(x))[0]
            return out

    reference.masked = False
    view = viewed((reference, Cast(candidate)))
    assert view.agrees
    assert view.paired[0] > len(view.reference_operators) // 2


class Odd(nn.Module):
    """Computes whatever `function` does with the input and a factor."""

    def __init__(self, function: Callable[[torch.Tensor, float], Any], factor: float) -> None:
        super().__init__()
        self.function, self.factor = function, factor

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x, self.factor)


ODD: dict[str, tuple[Callable[[torch.Tensor, float], Any], str]] = {
    "vmap": (lambda x, k: torch.vmap(lambda row: row * k)(x), "aten.mul.Tensor"),
    "complex": (lambda x, k: torch.fft.fft(x * k).abs(), "aten.mul.Tensor"),
    "sparse": (lambda x, k: (x[0] * k).to_sparse().to_dense(), "aten.mul.Tensor"),
    "nested": (lambda x, k: torch.nested.nested_tensor([x[0] * k, x[1, 1:]]).to_padded_tensor(0.0), "aten.mul.Tensor"),
    "quantized": (lambda x, k: torch.quantize_per_tensor(x * k, 0.1, 0, torch.qint8).dequantize(), "aten.mul.Tensor"),
    "float8": (lambda x, k: (x * k).to(torch.float8_e4m3fn).float(), "aten.mul.Tensor"),
    "out": (lambda x, k: torch.mul(x, torch.tensor(k), out=torch.empty_like(x)), "aten.mul.out"),
    "scalar": (lambda x, k: (x * k).sum(), "aten.mul.Tensor"),
    "empty": (lambda x, k: torch.cat([x[:0], x * k]), "aten.mul.Tensor"),
    "bool": (lambda x, k: x > k, "aten.gt.Scalar"),
    "function": (lambda x, k: torch.cond(x.sum() > -1e9, lambda y: y * k, lambda y: y - 1, (x,)), "cond"),
    "several": (lambda x, k: torch._foreach_mul([x, x + 1], k), "aten._foreach_mul.Scalar"),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore")
def test_tensors_of_any_kind_are_followed(kind: str) -> None:
    function, name = ODD[kind]
    assert viewed((Odd(function, 1.5), Odd(function, 1.5)), "").agrees
    view = viewed((Odd(function, 1.5), Odd(function, 2.5)), "")
    assert not view.agrees
    assert parted(view)[1].name == name


def test_a_side_that_returns_what_it_was_given_leaves_the_rest_out() -> None:
    view = viewed((Odd(lambda x, k: x + k, 1.0), Odd(lambda x, _: x, 1.0)), "")
    assert view.split is not None
    assert view.split.candidate is None
    assert view.split.reference is not None
    assert view.reference_operators[view.split.reference].name == "aten.add.Tensor"


def test_a_pair_that_its_values_refute_is_taken_back() -> None:
    """One element that is off by little hides in the root mean square of all, but not from a look at the values."""

    class Adds(nn.Module):
        def __init__(self, off: float) -> None:
            super().__init__()
            self.offset = nn.Parameter(torch.linspace(-1, 1, TOKENS * WIDTH).reshape(TOKENS, WIDTH))
            with torch.no_grad():
                self.offset[3, 3] += off

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return ((x * 2) + self.offset) * 3

    view = viewed((Adds(0.0), Adds(4e-5)), "")
    assert not view.agrees
    first, second = parted(view)
    assert first.name == second.name == "aten.add.Tensor"
    assert view.split is not None
    assert view.split.agreed is not None
    assert view.split.agreed.error == 0.0


def test_nothing_is_left_behind() -> None:
    class Raises(Attention):
        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
            raise ValueError("too bad")

    models = pair(Raises)
    before = [hooks_of(model) for model in models]
    with pytest.raises(ForwardError, match=r"the candidate raised ValueError: too bad") as raised:
        viewed(models)
    assert raised.value.side == "candidate"
    assert [hooks_of(model) for model in models] == before
    assert torch._C._len_torch_dispatch_stack() == 0
    models = pair(Unrolled, raw=True)
    outputs = [model(torch.ones(1, TOKENS, WIDTH)) for model in models]
    viewed(models)
    assert [hooks_of(model) for model in models] == [hooks_of(model) for model in pair(Unrolled)]
    for model, output in zip(models, outputs, strict=True):
        assert isinstance(model, Model)
        assert torch.equal(model(torch.ones(1, TOKENS, WIDTH)), output)


@pytest.mark.parametrize(
    ("module", "options", "said"),
    [
        ("atention", {}, "--module atention: the reference has no module of this path; did you mean attention"),
        ("attention.que*", {}, "the reference has no module of this path"),
        ("attention", {"call_index": 2}, "--call-index 2: the reference's attention is called once, and calls count"),
    ],
)
def test_what_cannot_be_looked_into_is_said_in_a_sentence(module: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as raised:
        viewed(pair(Unrolled), module, **options)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_code_is_shown_around_the_line() -> None:
    first, _ = parted(viewed(pair(Unrolled, raw=True)))
    assert first.place is not None
    assert Path(first.place.file).name == "test_operators.py"
    lines = inspect.getsource(inspect.getmodule(Attention)).splitlines()  # type: ignore[arg-type]
    assert len(first.place.around) == 5
    for line in first.place.around:
        assert lines[line.number - 1] == line.text
