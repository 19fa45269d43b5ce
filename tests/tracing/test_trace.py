"""`qtrace.trace` on small live models: what becomes a row, what is counted, and what it leaves untouched."""

from __future__ import annotations

import copy
import gc
import weakref
from collections import deque
from typing import Any

import pytest
import torch
from torch import nn

import qtrace
from qtrace.errors import UsageError
from qtrace.report.records import Outcome, Status, Verdict
from tests.helpers.models import Block, Cache, Chain, Pair, Returns, Stack, Wrapped, hooks_of, twin, wrap_children

IDS = torch.tensor([[1, 5, 2, 7, 3]])


def keys(report: Any) -> list[tuple[str, int, str]]:
    return [(row.module, row.call, row.output) for row in report.rows]


def test_rows_are_the_tensors_of_each_call_in_execution_order() -> None:
    model = Chain()
    report = qtrace.trace(model, twin(model), torch.randn(3, 8))
    assert keys(report) == [
        ("first", 0, ""),
        ("act", 0, ""),
        ("second", 0, ""),
        ("first", 1, ""),
        ("", 0, ""),
    ]
    assert [row.order for row in report.rows] == [0, 1, 2, 3, 4]
    assert all(row.peir == 0 and row.verdict is Verdict.EQUAL for row in report.rows)
    assert (report.outcome, report.coverage.compared, report.coverage.reference_calls) == (
        Outcome.CLEAN,
        4,
        4,
    )
    assert report.coverage.reasons == {}


def test_a_perturbed_layer_is_where_the_rows_begin_to_differ() -> None:
    model = Chain()
    candidate = twin(model)
    with torch.no_grad():
        candidate.second.weight.mul_(1.5)  # type: ignore[operator, union-attr]
    report = qtrace.trace(model, candidate, torch.randn(3, 8))
    differing = [row.module for row in report.rows if row.verdict not in (Verdict.EQUAL, Verdict.LAYOUT)]
    assert differing == ["second", "first", ""]
    assert report.outcome is Outcome.FAULT
    assert report.row("first", call=1).peir_in == report.row("second").peir


def test_in_place_writes_do_not_reach_what_was_compared_before() -> None:
    # Were `first` compared after the activation had overwritten it, the fault in the activation would show in it.
    model = Chain()
    candidate = twin(model)
    candidate.act = nn.LeakyReLU(0.5, inplace=True)
    report = qtrace.trace(model, candidate, torch.randn(3, 8))
    assert report.row("first").peir == 0
    assert report.row("act").verdict is Verdict.INTRODUCED


def test_an_argument_that_is_handed_through_has_all_its_numbers_as_an_output() -> None:
    # As an argument of Identity it is compared first, and there only its range matters.
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(64, 64)
            self.through = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.through(x + self.first(x))  # type: ignore[no-any-return]

    model = Residual()
    candidate = twin(model)
    with torch.no_grad():
        candidate.first.weight.add_(1e-6)  # type: ignore[operator, union-attr]
    row = qtrace.trace(model, candidate, torch.randn(64, 64), local=False).row("through")
    assert row.max
    assert None not in (row.mean, row.stddev, row.peir, row.sqnr_db, row.cosine, row.rel_l2)


@pytest.mark.parametrize("wrap", [Wrapped, wrap_children])
def test_wrappers_hide_nothing(wrap: Any) -> None:
    model = Stack()
    report = qtrace.trace(model, wrap(model), {"ids": IDS})
    assert report.coverage.compared == report.coverage.reference_calls == 12
    assert report.outcome is Outcome.CLEAN
    assert report.arguments == ()
    assert report.unmatched == ()


def test_an_argument_handed_over_wrongly_is_listed_with_both_specs() -> None:
    class Raw(Stack):
        def mask(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
            return attention_mask

    model, candidate = Stack(), Raw()
    candidate.load_state_dict(model.state_dict())
    report = qtrace.trace(model, candidate, {"ids": IDS, "attention_mask": torch.ones_like(IDS)})
    first = report.arguments[0]
    assert (first.module, first.argument, first.caller) == ("layers.0", "mask", "")
    assert (str(first.reference), str(first.candidate)) == ("float32 [5,5]", "int64 [1,5]")
    assert first.candidate is not None
    assert (first.candidate.min, first.candidate.max) == (1.0, 1.0)
    assert first.status is Status.SHAPE_MISMATCH
    # Its arguments are the same on both sides, so the root is not among the modules with differing ones.
    assert "" not in {argument.module for argument in report.arguments}


def test_none_against_a_tensor_is_a_difference() -> None:
    class Bare(Stack):
        def mask(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
            return None

    model, candidate = Stack(), Bare()
    candidate.load_state_dict(model.state_dict())
    report = qtrace.trace(model, candidate, {"ids": IDS})
    first = report.arguments[0]
    assert (first.argument, first.status) == ("mask", Status.STRUCTURE_MISMATCH)
    assert (str(first.reference), str(first.candidate)) == ("float32 [5,5]", "None")


def test_masks_that_block_the_same_with_another_fill_agree() -> None:
    class Milder(Stack):
        def mask(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
            return torch.full((5, 5), -120.0).triu(1)

    model, candidate = Stack(), Milder()
    candidate.load_state_dict(model.state_dict())
    report = qtrace.trace(model, candidate, {"ids": IDS})
    assert report.arguments == ()
    assert report.outcome is Outcome.CLEAN


@pytest.mark.parametrize(
    ("make", "outputs"),
    [
        (lambda y: y, [""]),
        (lambda y: (y, None, y + 1), ["0", "2"]),
        (lambda y: [y, (y * 2,)], ["0", "1.0"]),
        (lambda y: {"a": y, "b": {"c": y + 1}}, ["a", "b.c"]),
        (lambda y: Pair(y, None), ["first"]),
        (lambda y: (y, Cache(y + 1)), ["0", "1.keys"]),
        (lambda y: {"x": y.half(), "n": y.argmax(-1), "m": y > 0}, ["x", "n", "m"]),
        (lambda y: y.new_empty(0), [""]),
        (lambda y: y.sum(), [""]),
    ],
)
def test_every_kind_of_output_gives_a_row_per_tensor(make: Any, outputs: list[str]) -> None:
    model = Returns(make)
    candidate = Returns(make)
    candidate.load_state_dict(model.state_dict())
    report = qtrace.trace(model, candidate, torch.randn(2, 4))
    assert [row.output for row in report.rows if row.module == ""] == outputs


def test_model_output_and_tuple_stand_against_each_other() -> None:
    from transformers.modeling_outputs import BaseModelOutput

    model = Returns(lambda y: BaseModelOutput(last_hidden_state=y))
    candidate = Returns(lambda y: (y,))
    candidate.load_state_dict(model.state_dict())
    report = qtrace.trace(model, candidate, torch.randn(2, 4))
    assert report.row("").output == "last_hidden_state"
    assert report.outcome is Outcome.CLEAN


@pytest.mark.parametrize(
    ("reference", "candidate", "status"),
    [
        (lambda y: y, lambda y: y[:, :2], Status.SHAPE_MISMATCH),
        (lambda y: (y, y), lambda y: (y, None), Status.STRUCTURE_MISMATCH),
        (lambda y: {"a": y}, lambda y: {"a": y, "b": y[:1]}, Status.CANDIDATE_ONLY),
        (lambda y: {"a": y, "b": y[:1]}, lambda y: {"a": y}, Status.REFERENCE_ONLY),
        (lambda y: y, lambda y: y * float("nan"), Status.NON_FINITE),
        (lambda y: torch.ones(3), lambda y: torch.zeros(3), Status.CONSTANT_REFERENCE),
        (lambda y: (y, 1), lambda y: (y, 2), Status.CONSTANT_REFERENCE),
    ],
)
def test_what_cannot_be_compared_has_a_status_and_is_never_clean(
    reference: Any, candidate: Any, status: Status
) -> None:
    first, second = Returns(reference), Returns(candidate)
    second.load_state_dict(first.state_dict())
    report = qtrace.trace(first, second, torch.randn(3, 4))
    found = [row for row in report.rows if row.module == "" and row.status is status]
    assert found
    assert found[0].verdict is not Verdict.EQUAL
    if len([row for row in report.rows if row.module == ""]) == 1:
        assert report.outcome is not Outcome.CLEAN


def test_equal_numbers_beside_unequal_integers() -> None:
    first, second = Returns(lambda y: torch.arange(10)), Returns(lambda y: torch.arange(10).roll(1))
    second.load_state_dict(first.state_dict())
    row = qtrace.trace(first, second, torch.randn(3, 4)).row("")
    assert row.mismatch == 1.0
    assert row.peir == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_cast_candidate_is_compared_in_its_own_type(dtype: torch.dtype) -> None:
    model = Stack()
    report = qtrace.trace(model, twin(model).to(dtype), {"ids": IDS})
    row = report.row("head")
    assert row.candidate is not None
    assert row.candidate.dtype == str(dtype).removeprefix("torch.")
    assert row.peir is not None
    assert 0 < row.peir < 0.05
    # float64 is as good as float32; the half types are not, and nobody is to blame for that.
    assert report.outcome is (Outcome.CLEAN if dtype is torch.float64 else Outcome.DRIFT)
    assert report.findings == ()


def test_layout_is_undone_and_named() -> None:
    first, second = (
        Returns(lambda y: y[None].repeat(1, 1, 2).view(1, 3, 2, 4)),
        Returns(lambda y: y[None].repeat(1, 1, 2).view(1, 3, 2, 4).transpose(1, 2)),
    )
    second.load_state_dict(first.state_dict())
    report = qtrace.trace(first, second, torch.randn(3, 4))
    row = report.row("")
    assert row.relation is not None
    assert (row.relation.kind, row.relation.parameters) == ("layout", {"permute": [1, 0, 2]})
    assert (row.verdict, row.peir, row.peir_related) == (Verdict.LAYOUT, 0.0, 0.0)
    # Inside a model a parent would undo it; whoever calls this one gets the other layout.
    assert report.outcome is Outcome.FAULT


def test_a_call_without_tensors_is_counted_as_not_compared() -> None:
    class Silent(nn.Module):
        def forward(self, x: torch.Tensor) -> None:
            return None

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.silent = Silent()
            self.layer = nn.Linear(4, 4)
            self.eval()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.silent(x)
            out: torch.Tensor = self.layer(x)
            return out

    model = Model()
    report = qtrace.trace(model, twin(model), torch.randn(2, 4))
    assert report.coverage.reasons == {"no_tensor": 1}
    assert report.coverage.fraction == 0.5


def test_nothing_in_common_is_inconclusive_not_clean() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.entirely = nn.Linear(8, 8)
            self.eval()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.entirely(x)
            return out

    report = qtrace.trace(Chain(), Other(), torch.randn(2, 8))
    assert report.outcome is Outcome.INCONCLUSIVE
    assert report.coverage.reasons == {"no_partner": 4}
    assert sum(report.coverage.reasons.values()) + report.coverage.compared == report.coverage.reference_calls
    assert {u.module for u in report.unmatched} == {"first", "act", "second"}


def test_a_partner_that_is_never_called_is_named_with_the_reason() -> None:
    class Skips(Chain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.first(self.second(self.first(x)))
            return out

    model, candidate = Chain(), Skips()
    candidate.load_state_dict(model.state_dict())
    report = qtrace.trace(model, candidate, torch.randn(2, 8))
    assert [(u.side, u.module, u.reason) for u in report.unmatched] == [("reference", "act", "partner_not_called")]
    assert report.coverage.reasons == {"alone": 1}
    assert [row.status for row in report.rows if row.module == "act"] == [Status.REFERENCE_ONLY]


def test_only_and_skip_leave_modules_out_of_rows_and_coverage() -> None:
    model = Stack()
    report = qtrace.trace(model, twin(model), {"ids": IDS}, only=["layers.*.norm", "head"], skip=["layers.1.*"])
    assert {row.module for row in report.rows} == {"layers.0.norm", "head", ""}
    assert report.coverage.reference_calls == report.coverage.compared == 2
    with pytest.raises(UsageError, match=r"--only 'layers\.\*\.nrm' matches no module; near: .*layers\.0\.norm"):
        qtrace.trace(model, twin(model), {"ids": IDS}, only=["layers.*.nrm"])


def test_samples_run_one_after_the_other() -> None:
    model = Chain()
    report = qtrace.trace(model, twin(model), [torch.randn(2, 8), torch.randn(3, 8)])
    assert [(row.module, row.samples) for row in report.rows] == [
        ("first", 2), ("act", 2), ("second", 2), ("first", 2), ("", 2)
    ]  # fmt: skip
    assert [row.elements for row in report.rows] == [5 * 8] * 5
    assert report.coverage.reference_calls == 8


def test_another_entry_than_forward() -> None:
    class Twice(Chain):
        def twice(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self(self(x))
            return out

    model = Twice()
    report = qtrace.trace(model, twin(model), torch.randn(2, 8), call="twice")
    root = [(row.call, row.output) for row in report.rows if row.module == ""]
    assert root == [(0, ""), (1, ""), (0, "twice()")]
    with pytest.raises(UsageError, match="has no method 'thrice'"):
        qtrace.trace(model, twin(model), torch.randn(2, 8), call="thrice")


def test_outputs_are_bit_identical_and_nothing_is_left_behind() -> None:
    model = Stack()
    candidate = wrap_children(model)
    inputs = {"ids": IDS, "attention_mask": torch.ones_like(IDS)}
    with torch.no_grad():
        before = model(**inputs)["logits"].clone(), candidate(**inputs)["logits"].clone()
    seen: list[torch.Tensor] = []
    handles = [
        m.register_forward_hook(lambda _m, _a, out: seen.append(out["logits"].clone())) for m in (model, candidate)
    ]
    hooks = hooks_of(model), hooks_of(candidate)
    kept = copy.deepcopy(inputs)
    random = torch.get_rng_state()
    modes = [m.training for m in (*model.modules(), *candidate.modules())]
    qtrace.trace(model, candidate, inputs)
    assert all(torch.equal(a, b) for a, b in zip(before, seen, strict=True))
    assert (hooks_of(model), hooks_of(candidate)) == hooks
    assert all(torch.equal(kept[name], inputs[name]) for name in inputs)
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in (*model.modules(), *candidate.modules())] == modes
    for handle in handles:
        handle.remove()


def test_inputs_written_in_place_stay_apart() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.eval()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x.mul_(2)
            out: torch.Tensor = self.layer(x)
            return out

    model, x = Writes(), torch.randn(2, 4)
    kept = x.clone()
    report = qtrace.trace(model, twin(model), x)
    assert report.outcome is Outcome.CLEAN
    assert torch.equal(x, kept)


def test_keyword_only_and_renamed_arguments_pair() -> None:
    class Renamed(nn.Module):
        def __init__(self, inner: Block) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
            return self.inner(x, mask=mask)

    class Model(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block
            self.eval()

        def forward(self, x: torch.Tensor, shift: float = 0.0) -> Any:
            return self.block(x, mask=torch.zeros(3, 3) + shift)

    block = Block()
    model, candidate = Model(block), Model(Renamed(copy.deepcopy(block)))
    x = torch.randn(1, 3, 8)
    report = qtrace.trace(model, candidate, x)
    assert report.arguments == ()
    assert report.row("block").peir_in == 0
    # The positional argument is called differently, and is compared all the same.
    candidate.register_forward_pre_hook(lambda _m, args: (args[0] + 1,))
    changed = [a.argument for a in qtrace.trace(model, candidate, x).arguments]
    assert "hidden" in changed


def test_wrong_inputs_and_models_are_refused_in_one_sentence() -> None:
    model = Chain()
    with pytest.raises(UsageError, match=r"candidate is a function; expected a torch\.nn\.Module"):
        qtrace.trace(model, lambda x: x, torch.randn(2, 8))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="tolerance is 'tight'; expected 'auto' or a number"):
        qtrace.trace(model, twin(model), torch.randn(2, 8), tolerance="tight")


def test_training_mode_is_kept_and_warned_about() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8)).train()
    candidate = copy.deepcopy(model)
    report = qtrace.trace(model, candidate, torch.randn(4, 8))
    assert model.training
    assert any("reference has" in w and "training mode" in w for w in report.warnings)
    # Both sides draw the same random numbers, so the same model agrees with itself even so.
    assert report.outcome is Outcome.CLEAN


def test_report_round_trips_through_json(tmp_path: Any) -> None:
    from qtrace.report.records import loads

    model = Stack()
    report = qtrace.trace(model, twin(model).half(), {"ids": IDS})
    path = tmp_path / "report.json"
    report.save(path)
    again = loads(path.read_text())
    assert again.rows == report.rows
    assert again.coverage == report.coverage
    frame = report.to_pandas()
    assert list(frame["peir"]) == [row.peir for row in report.rows]


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        (lambda y: (y * 3, y), lambda y: (y[:, :2] * 7, y)),
        (lambda y: {"logits": y, "h": y}, lambda y: {"logits": None, "h": y}),
        (lambda y: (y, "left"), lambda y: (y, "right")),
        (lambda y: (y, y.numpy()), lambda y: (y, y.numpy() * 9)),
        (lambda y: (y, deque([y])), lambda y: (y, deque([y * 9]))),
        (lambda y: (y, Slotted(y)), lambda y: (y, Slotted(y * 9))),
        (lambda y: torch.tensor([0, 5, 2_000_000]), lambda y: torch.tensor([0, 6, 2_000_000])),
        (lambda y: filled(y, -1e9), lambda y: filled(y * 5, -1e9)),
        (lambda y: filled(y, -3.4e38), lambda y: filled(torch.rand_like(y), -3.4e38)),
        (lambda y: filled(y, -60.0), lambda y: filled(y, -20000.0)),
        (lambda y: y, lambda y: y.T.contiguous()),
    ],
)
def test_a_final_output_that_differs_in_part_is_never_clean(reference: Any, candidate: Any) -> None:
    first, second = Returns(reference), Returns(candidate)
    second.load_state_dict(first.state_dict())
    for local in (False, None):
        report = qtrace.trace(first, second, torch.randn(3, 4), local=local)
        assert report.outcome is Outcome.FAULT


def test_an_output_that_the_candidate_lacks_is_noted_and_no_fault() -> None:
    first, second = Returns(lambda y: {"logits": y, "h": y, "cache": (y, y)}), Returns(lambda y: y)
    second.load_state_dict(first.state_dict())
    report = qtrace.trace(first, second, torch.randn(3, 4))
    assert (report.outcome, report.findings) == (Outcome.CLEAN, ())
    assert "the candidate does not return h, cache (2 tensors): compared without" in report.warnings
    with torch.no_grad():
        second.layer.weight[0] *= 2
    report = qtrace.trace(first, second, torch.randn(3, 4))
    assert [finding.module for finding in report.findings] == ["layer"]


def test_outputs_of_which_none_is_there_are_a_fault() -> None:
    first, second = Returns(lambda y: {"logits": y}), Returns(lambda y: {})
    assert qtrace.trace(first, second, torch.randn(3, 4)).outcome is Outcome.FAULT


class Slotted:
    __slots__ = ("held",)

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held


def filled(y: torch.Tensor, fill: float) -> torch.Tensor:
    out = y.clone()
    out[..., 0] = fill
    return out


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        (lambda y: y.mean(), lambda y: y.mean() * (1 + 1.2e-7)),
        (lambda y: {"loss": y.mean(), "logits": y}, lambda y: {"loss": y.double().mean(), "logits": y}),
        (lambda y: {"logits": y}, lambda y: {"logits": y, "extra": y}),
        (lambda y: y, lambda y: y[None]),
        (lambda y: filled(y, float("-inf")), lambda y: filled(y, float("-inf"))),
        (lambda y: (y, float("nan")), lambda y: (y, float("nan"))),
    ],
)
def test_what_is_no_difference_stays_clean(reference: Any, candidate: Any) -> None:
    first, second = Returns(reference), Returns(candidate)
    second.load_state_dict(first.state_dict())
    assert qtrace.trace(first, second, torch.randn(3, 4)).outcome is Outcome.CLEAN


def test_a_sample_whose_output_cannot_be_compared_spoils_the_others() -> None:
    model, candidate = Returns(lambda y: y), Returns(lambda y: y if len(y) < 3 else y[:2])
    candidate.load_state_dict(model.state_dict())
    report = qtrace.trace(model, candidate, [torch.randn(2, 4), torch.randn(3, 4)])
    assert report.outcome is Outcome.FAULT


def test_a_model_without_modules_inside_is_judged_by_its_output() -> None:
    model, other = nn.Linear(8, 4), nn.Linear(8, 4)
    assert qtrace.trace(model, copy.deepcopy(model), torch.randn(2, 8)).outcome is Outcome.CLEAN
    assert qtrace.trace(model, other, torch.randn(2, 8)).outcome is Outcome.FAULT


def test_other_lengths_of_generate_differ() -> None:
    from qtrace.zoo import llama

    model, inputs = llama.tiny(), llama.tokens()
    candidate = copy.deepcopy(model)
    model.generation_config.max_new_tokens, candidate.generation_config.max_new_tokens = 4, 3
    assert qtrace.trace(model, candidate, inputs, call="generate").outcome is not Outcome.CLEAN


def test_a_shared_module_stands_against_its_copies() -> None:
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), shared, shared).eval()
    copies = nn.Sequential(*(copy.deepcopy(module) for module in model)).eval()
    report = qtrace.trace(model, copies, torch.randn(2, 8))
    assert [(row.module, row.call) for row in report.rows] == [("0", 0), ("1", 0), ("0", 1), ("0", 2), ("", 0)]
    assert report.outcome is Outcome.CLEAN


def test_inputs_with_a_history_are_copied_all_the_same() -> None:
    model = Chain()
    x = torch.randn(2, 8, requires_grad=True) * 2
    assert qtrace.trace(model, twin(model), x).outcome is Outcome.CLEAN


def test_a_lazy_module_that_is_never_called_has_parameters_without_a_size() -> None:
    reference, candidate = Chain(), Chain()
    for model in (reference, candidate):
        model.add_module("lazy", torch.nn.LazyLinear(3))
    candidate.load_state_dict(reference.state_dict())
    report = qtrace.trace(reference, candidate, torch.randn(2, 8))
    assert report.outcome is Outcome.CLEAN
    assert report.reference.parameters == 3 * (8 * 8 + 8)


def test_one_object_on_both_sides_is_warned_about() -> None:
    model = Chain()
    report = qtrace.trace(model, model, torch.randn(2, 8))
    assert any("are one object" in warning for warning in report.warnings)


def test_nothing_of_the_models_outlives_the_run() -> None:
    # Without a collection: what hangs in a cycle stays until one comes, and a few traces would fill the memory.
    kept: list[weakref.ref[torch.Tensor]] = []
    model = Stack()
    handle = model.register_forward_hook(lambda _m, _a, out: kept.append(weakref.ref(out["logits"])))
    gc.disable()
    try:
        report = qtrace.trace(model, twin(Stack()), {"ids": IDS}, local=False)
    finally:
        gc.enable()
        handle.remove()
    assert report.rows
    assert [ref() for ref in kept] == [None] * len(kept)
    assert kept
