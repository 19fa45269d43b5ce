"""What counts as inputs, and the check that they fit before anything runs."""

from __future__ import annotations

import subprocess
import sys
from collections import UserDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from qtrace.engine.samples import Sample, as_samples, check_fits, map_tensors, named_arguments
from qtrace.errors import UsageError

X = torch.zeros(2, 3)


class Net(nn.Module):
    def forward(self, x: Any, mask: Any, *, scale: Any = 1) -> Any:
        return x

    def encode(self, text: Any) -> Any:
        return text


class Wrapper(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args


class Open(nn.Module):
    def forward(self, input_ids: Any = None, labels: Any = None, use: Any = None, **kwargs: Any) -> Any:
        return input_ids


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"x": 1}, [Sample(kwargs={"x": 1})]),
        (UserDict({"x": 1}), [Sample(kwargs={"x": 1})]),
        ((1, 2), [Sample(args=(1, 2))]),
        ((), [Sample()]),
        ({}, [Sample()]),
        (Sample((1,), {"y": 2}), [Sample((1,), {"y": 2})]),
        ([{"x": 1}, (2,)], [Sample(kwargs={"x": 1}), Sample(args=(2,))]),
    ],
)
def test_what_inputs_stand_for(value: object, expected: list[Sample]) -> None:
    assert as_samples(value) == expected


def test_a_tensor_is_the_single_argument() -> None:
    (sample,) = as_samples(X)
    assert sample.args[0] is X
    assert [len(sample.args) for sample in as_samples([X, X])] == [1, 1]


def test_a_batch_encoding_is_keyword_arguments() -> None:
    from transformers import BatchEncoding

    (sample,) = as_samples(BatchEncoding({"input_ids": X}))
    assert list(sample.kwargs) == ["input_ids"]


EXPECTED = "expected a mapping of keyword arguments, a tuple of positional ones, a tensor, or a list of these"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, f"inputs are of type int; {EXPECTED}"),
        ("text", f"inputs are of type str; {EXPECTED}"),
        (None, f"inputs are of type NoneType; {EXPECTED}"),
        ([X, 3], f"inputs[1] is of type int; {EXPECTED}"),
        ([[X]], f"inputs[0] is of type list; {EXPECTED}"),
        ([], "inputs are an empty list; give at least one sample"),
        (
            {1: X},
            "inputs are a mapping with the key 1; the keys are argument names, so expected text",
        ),
    ],
)
def test_what_is_no_input_is_named(value: object, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        as_samples(value)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("model", "sample"),
    [
        (Net(), Sample((1, 2))),
        (Net(), Sample((1,), {"mask": 2})),
        (Net(), Sample((), {"x": 1, "mask": 2, "scale": 3})),
        (Wrapper(), Sample((1, 2, 3), {"anything": 4})),
        (Open(), Sample((), {"input_ids": 1, "other": 2})),
        (Open(), Sample((), {"input_ids": 1, "input_idx": 2})),
        (Open(), Sample((), {"us": 1})),
        (Open(), Sample((), {"mm_token_type_ids": 1, "pixel_values": 2})),
        (nn.Linear(2, 2), Sample((1,))),
    ],
)
def test_what_fits(model: nn.Module, sample: Sample) -> None:
    check_fits(model, sample)


@pytest.mark.parametrize(
    ("model", "sample", "message"),
    [
        (Net(), Sample((1,)), "missing argument mask; it takes x, mask, scale"),
        (Net(), Sample(), "missing arguments x, mask; it takes x, mask, scale"),
        (Net(), Sample((1, 2, 3)), "3 positional arguments are given, and it takes x, mask, scale"),
        (Net(), Sample((1, 2), {"scal": 3}), "unexpected argument scal; did you mean scale?"),
        (Net(), Sample((1, 2), {"zzz": 3}), "unexpected argument zzz; known: mask, scale, x"),
        (
            Net(),
            Sample((1,), {"x": 2, "mask": 1}),
            "multiple values for argument 'x'; it takes x, mask, scale",
        ),
        (Open(), Sample((), {"input_idz": 1}), "unexpected argument input_idz; did you mean input_ids?"),
        (Open(), Sample((), {"inputids": 1}), "unexpected argument inputids; did you mean input_ids?"),
        (Open(), Sample((), {"inptu_ids": 1}), "unexpected argument inptu_ids; did you mean input_ids?"),
        (Open(), Sample((), {"label": 1}), "unexpected argument label; did you mean labels?"),
        (nn.Linear(2, 2), Sample((), {"x": 1}), "unexpected argument x; known: input"),
        (nn.Linear(2, 2), Sample(), "missing argument input; it takes input"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_runs(model: nn.Module, sample: Sample, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_fits(model, sample)
    assert str(caught.value) == f"inputs do not fit forward of {type(model).__name__}: {message}"


def test_a_real_model_with_open_arguments() -> None:
    from qtrace.zoo import llama

    model, inputs = llama.tiny(), llama.tokens()
    check_fits(model, Sample(kwargs=inputs))
    with pytest.raises(UsageError) as caught:
        check_fits(model, Sample(kwargs={"input_idz": inputs["input_ids"]}))
    assert str(caught.value) == (
        "inputs do not fit forward of LlamaForCausalLM: unexpected argument input_idz; did you mean input_ids?"
    )


def test_another_method_than_forward() -> None:
    check_fits(Net(), Sample(("a",)), "encode")
    with pytest.raises(UsageError) as caught:
        check_fits(Net(), Sample(("a", "b")), "encode")
    assert str(caught.value) == ("inputs do not fit encode of Net: 2 positional arguments are given, and it takes text")
    with pytest.raises(UsageError) as caught:
        check_fits(Net(), Sample(), "encod")
    assert str(caught.value) == "Net has no method encod to call; did you mean encode?"


def test_a_method_without_a_readable_signature_is_let_through() -> None:
    model = Net()
    model.forward = max  # type: ignore[assignment]
    check_fits(model, Sample((1, 2, 3)))
    model.forward = dict.fromkeys  # type: ignore[assignment]
    with pytest.raises(UsageError, match=r"3 positional arguments are given, and it takes iterable, value$"):
        check_fits(model, Sample((1, 2, 3)))


def test_arguments_by_name() -> None:
    assert named_arguments(Net(), Sample((1,), {"mask": 2})) == {"x": 1, "mask": 2}
    assert named_arguments(Net(), Sample((1, 2, 3), {"z": 4})) == {"z": 4}


class Point(NamedTuple):
    x: torch.Tensor
    label: str


def test_tensors_are_replaced_wherever_they_are() -> None:
    other = SimpleNamespace(x=X)
    sample = Sample((X, [X, 1]), {"a": {"b": X}, "p": Point(X, "p"), "o": other, "n": None})
    double: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor.double()  # noqa: E731
    moved = map_tensors(double, sample)
    assert moved.args[0].dtype == moved.args[1][0].dtype == torch.float64
    assert moved.args[1][1] == 1
    assert moved.kwargs["a"]["b"].dtype == torch.float64
    assert isinstance(moved.kwargs["p"], Point)
    assert moved.kwargs["p"].x.dtype == torch.float64
    assert moved.kwargs["o"] is other
    assert sample.args[0].dtype == torch.float32


def test_samples_do_not_import_transformers() -> None:
    script = "import sys, qtrace.engine.samples; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
