"""Wrappers by name: the registry, and the one that casts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from torch import nn

from qtrace import toolkits
from qtrace.engine.samples import Sample
from qtrace.errors import QtraceError, SourceError, UsageError
from qtrace.sources import wrappers
from qtrace.sources.wrappers import apply_wrapper, known_wrappers, load_wrapper
from qtrace.zoo import llama

X = torch.linspace(-1, 1, 8).reshape(2, 4)


def negate(reference: nn.Module, samples: list[Sample], *, times: int) -> nn.Module:
    assert samples[0].args[0] is X
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_((-1) ** times)
    return reference


def anything(reference: nn.Module, samples: list[Sample], **options: Any) -> nn.Module:
    return reference


def nothing(reference: nn.Module, samples: list[Sample]) -> None:
    return None


def broken(reference: nn.Module, samples: list[Sample]) -> nn.Module:
    raise ZeroDivisionError("no scale")


def leaves(reference: nn.Module, samples: list[Sample]) -> nn.Module:
    raise SystemExit(3)


@pytest.fixture(autouse=True)
def announce(monkeypatch: pytest.MonkeyPatch) -> None:
    """Announce this file's wrappers, one that cannot be imported and one with a built-in name."""
    names = {name: f"{__name__}:{name}" for name in ("negate", "anything", "nothing", "broken", "leaves")}
    names |= {"absent": "not_installed.wrapper:wrap", "dtype": "not_installed.wrapper:wrap"}
    points = [EntryPoint(name, value, wrappers.GROUP) for name, value in names.items()]
    installed: Callable[..., Any] = lambda group: points if group == wrappers.GROUP else []  # noqa: E731
    monkeypatch.setattr(wrappers, "entry_points", installed)


def test_built_in_and_announced_wrappers_are_known() -> None:
    assert known_wrappers() == sorted(
        {"absent", "anything", "broken", "leaves", "negate", "nothing", *toolkits.TOOLKITS}
    )


def test_the_built_in_ones_need_no_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrappers, "entry_points", lambda group: [])
    assert known_wrappers() == list(toolkits.TOOLKITS)
    assert isinstance(apply_wrapper("dtype", nn.Linear(4, 4), [], {}), nn.Linear)


def test_a_wrapper_gets_a_copy_the_samples_and_its_args() -> None:
    reference = nn.Linear(4, 4)
    weight = reference.weight.detach().clone()
    candidate = apply_wrapper("negate", reference, [Sample((X,))], {"times": 1})
    assert torch.equal(candidate.get_parameter("weight"), -weight)
    assert torch.equal(reference.weight, weight)


def test_a_wrapper_with_open_arguments_takes_any() -> None:
    assert isinstance(apply_wrapper("anything", nn.Linear(2, 2), [], {"a": 1, "b": 2}), nn.Linear)


EVERY = ", ".join(sorted({"absent", "anything", "broken", "leaves", "negate", "nothing", *toolkits.TOOLKITS}))
SOME = ", ".join(EVERY.split(", ")[:12])


@pytest.mark.parametrize(
    ("name", "args", "kind", "message"),
    [
        ("tiko", {}, UsageError, f"there is no wrapper tiko; did you mean tico? (known: {EVERY})"),
        ("zzz", {}, UsageError, f"there is no wrapper zzz; known: {SOME}, …"),
        (
            "absent",
            {},
            SourceError,
            "the wrapper absent (not_installed.wrapper:wrap) cannot be imported: "
            "ModuleNotFoundError: No module named 'not_installed' (",
        ),
        (
            "dtype",
            {"dtyp": 1},
            UsageError,
            "the wrapper dtype takes no argument dtyp; did you mean dtype? (known: dtype, keep)",
        ),
        ("dtype", {"zzzz": 1}, UsageError, "the wrapper dtype takes no argument zzzz; known: dtype, keep"),
        ("dtype", {"keep": 5}, UsageError, "the wrapper dtype takes for keep a list, as in [a, b], and was given 5"),
        ("dtype", {"dtype": 5}, UsageError, "the wrapper dtype takes for dtype a text, and was given 5"),
        (
            "torch_ao",
            {"convert": "nope"},
            UsageError,
            "the wrapper torch_ao takes for convert true or false, and was given 'nope'",
        ),
        (
            "bitsandbytes",
            {"bits": True},
            UsageError,
            "the wrapper bitsandbytes takes for bits a whole number, and was given True",
        ),
        (
            "leaves",
            {},
            SourceError,
            "the wrapper leaves failed on Linear: SystemExit: 3 (test_wrappers.py:",
        ),
        ("nothing", {"a": 1}, UsageError, "the wrapper nothing takes no argument a; none are known"),
        ("negate", {}, UsageError, "the wrapper negate needs times; give --wrap-arg times=VALUE"),
        (
            "dtype",
            {"dtype": "int8"},
            UsageError,
            "the wrapper dtype: no dtype int8 for a model; known: bfloat16, float16, float32, float64",
        ),
        (
            "nothing",
            {},
            SourceError,
            "the wrapper nothing returned a value of type NoneType; expected a torch.nn.Module",
        ),
        (
            "broken",
            {},
            SourceError,
            "the wrapper broken failed on Linear: ZeroDivisionError: no scale (test_wrappers.py:",
        ),
    ],
)
def test_what_is_wrong_with_a_wrapper_is_one_sentence(
    name: str, args: dict[str, Any], kind: type[QtraceError], message: str
) -> None:
    with pytest.raises(kind) as caught:
        apply_wrapper(name, nn.Linear(4, 4), [Sample((X,))], args)
    assert str(caught.value).startswith(message)
    assert caught.type is kind


def test_arguments_are_checked_before_anything_is_loaded() -> None:
    with pytest.raises(UsageError, match="takes no argument qantize"):
        load_wrapper("tico", {"qantize": True})


def test_the_cast_model_takes_the_references_inputs() -> None:
    reference = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    candidate = apply_wrapper("dtype", reference, [Sample((X,))], {})
    assert reference[0].weight.dtype == torch.float32
    output = candidate(X)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), reference(X), atol=0.02, rtol=0)
    assert torch.equal(copy.deepcopy(candidate)(X), output)


def test_no_hook_where_the_inputs_hold_no_floats() -> None:
    samples = [Sample(kwargs=llama.tokens())]
    candidate = apply_wrapper("dtype", llama.tiny(), samples, {"dtype": "float16"})
    assert not candidate._forward_pre_hooks
    assert candidate(**samples[0].kwargs).logits.dtype == torch.float16


def test_rotary_frequencies_are_cast_only_on_request() -> None:
    name = "model.rotary_emb.inv_freq"
    kept = apply_wrapper("dtype", llama.tiny(), [], {"dtype": "bfloat16"})
    assert kept.get_buffer(name).dtype == torch.float32
    rounded = apply_wrapper("dtype", llama.tiny(), [], {"dtype": "bfloat16", "keep": []})
    assert rounded.get_buffer(name).dtype == torch.bfloat16
