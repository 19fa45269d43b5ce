"""`plain` and `describe`: whatever a model returns, as ordinary numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from qtrace.numerics import NoValues, Summary, describe, plain


class Packed(torch.Tensor):
    """A wrapper as quantization toolkits have it: codes and a scale, no storage of its own."""

    codes: torch.Tensor
    scale: float

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scale: float) -> Packed:
        wrapper: Packed = torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)
        wrapper.codes, wrapper.scale = codes, scale
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scale)
        raise NotImplementedError(func)


class Refusing(Packed):
    def dequantize(self) -> torch.Tensor:
        raise NotImplementedError("on an accelerator alone")


class Dequantizable(Packed):
    def dequantize(self) -> torch.Tensor:
        return self.codes.float() * self.scale


class Tagged(torch.Tensor):
    """A subclass that is an ordinary tensor but for its name."""


def quantized(dtype: torch.dtype) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.tensor([0.0, 0.5, -1.0]), 0.5, 10, dtype)


def uncoalesced() -> torch.Tensor:
    return torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.tensor([2.0, 3.0]), (3,))


def nested(layout: torch.layout) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.ones(2), torch.full((1,), 2.0)], layout=layout)


FORMS: dict[str, tuple[Callable[[], torch.Tensor], list[Any]]] = {
    "parameter": (lambda: torch.nn.Parameter(torch.ones(2)), [1.0, 1.0]),
    "needs grad": (lambda: torch.ones(2, requires_grad=True) * 2, [2.0, 2.0]),
    "subclass": (lambda: torch.ones(2).as_subclass(Tagged), [1.0, 1.0]),
    "dequantize": (lambda: Dequantizable(torch.tensor([1, 2]), 0.5), [0.5, 1.0]),
    "quint8": (lambda: quantized(torch.quint8), [0.0, 0.5, -1.0]),
    "qint8": (lambda: quantized(torch.qint8), [0.0, 0.5, -1.0]),
    "qint32": (lambda: quantized(torch.qint32), [0.0, 0.5, -1.0]),
    "sparse": (uncoalesced, [0.0, 5.0, 0.0]),
    "sparse rows": (lambda: torch.eye(2).to_sparse_csr(), [[1.0, 0.0], [0.0, 1.0]]),
    "mkldnn": (lambda: torch.ones(2).to_mkldnn(), [1.0, 1.0]),
    "complex": (lambda: torch.tensor([1 + 2j]), [[1.0, 2.0]]),
    "conjugate": (lambda: torch.tensor([1 + 2j]).conj(), [[1.0, -2.0]]),
    "negative bit": (lambda: torch.tensor([1 + 2j]).conj().imag, [-2.0]),
    "half complex": (lambda: torch.tensor([1 + 2j], dtype=torch.complex32), [[1.0, 2.0]]),
    "float8": (lambda: torch.tensor([1.5, -2.0]).to(torch.float8_e4m3fn), [1.5, -2.0]),
    "nested": (lambda: nested(torch.strided), [1.0, 1.0, 2.0]),
    "jagged": (lambda: nested(torch.jagged), [1.0, 1.0, 2.0]),
    "empty": (lambda: torch.empty(0).as_subclass(Tagged), []),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore:.*(CSR|deprecated|ComplexHalf|Sparse)")
def test_plain(form: str) -> None:
    make, expected = FORMS[form]
    found = plain(make())
    assert type(found) is torch.Tensor
    assert found.layout is torch.strided
    assert not any((found.requires_grad, found.is_neg(), found.is_conj(), found.is_nested))
    assert found.dtype in (torch.float32, torch.float16)
    assert found.tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64, torch.uint16])
def test_ordinary_tensors_are_handed_back(dtype: torch.dtype) -> None:
    x = torch.zeros(3, dtype=dtype)
    assert plain(x) is x


def test_nothing_is_copied_where_a_view_will_do() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    assert plain(parameter).data_ptr() == parameter.data_ptr()
    tagged = torch.ones(2).as_subclass(Tagged)
    assert plain(tagged).data_ptr() == tagged.data_ptr()


def fake() -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(2, 3)


@pytest.mark.filterwarnings("ignore:.*data pointer")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: torch.empty(2, 3, device="meta"),
            "a Tensor float32 [2, 3] is on the meta device, so there are no values to compare; "
            "load weights and move the model to a real device",
        ),
        (
            fake,
            "a FakeTensor float32 [2, 3] holds no elements of its own and has no dequantize, so there are no "
            "values to compare; return its contents",
        ),
        (
            lambda: Packed(torch.tensor([1, 2]), 0.5),
            "a Packed float32 [2] holds no elements of its own and has no dequantize, so there are no "
            "values to compare; return its contents",
        ),
        (
            lambda: Refusing(torch.tensor([1, 2]), 0.5),
            "a Refusing float32 [2] does not dequantize (NotImplementedError), so there are no "
            "values to compare; return its contents",
        ),
        (
            lambda: torch.empty(2, dtype=torch.bits8),
            "a Tensor bits8 [2] is of a dtype that torch cannot convert, so there are no values to compare; "
            "unpack or dequantize it",
        ),
        (
            lambda: torch.nn.UninitializedParameter(),
            "a UninitializedParameter has no shape and no values before the first forward; "
            "run the model once before it is traced",
        ),
    ],
    ids=["meta", "fake", "wrapper", "refusing", "bits", "lazy"],
)
def test_no_values(make: Callable[[], torch.Tensor], message: str) -> None:
    with pytest.raises(NoValues) as caught:
        plain(make())
    assert str(caught.value) == message
    assert isinstance(caught.value, ValueError)


def test_describe_by_hand() -> None:
    assert describe(torch.tensor([1.0, 3.0])) == Summary(1.0, 3.0, 2.0, 1.0, 0)
    assert describe(torch.tensor([True, False])) == Summary(0.0, 1.0, 0.5, 0.5, 0)
    assert describe(torch.tensor([[1, 3]], dtype=torch.uint8).T) == Summary(1.0, 3.0, 2.0, 1.0, 0)
    assert describe(torch.tensor(7)) == Summary(7.0, 7.0, 7.0, 0.0, 0)
    assert describe(quantized(torch.quint8).repeat(2)) == describe(torch.tensor([0.0, 0.5, -1.0] * 2))


def test_describe_leaves_out_what_is_not_finite() -> None:
    values = torch.tensor([math.nan, 1.0, 3.0, -math.inf])
    assert describe(values) == Summary(1.0, 3.0, 2.0, 1.0, 2)
    assert describe(values[:1]) == Summary(non_finite=1)
    assert describe(torch.empty(0, 2)) == Summary()
    assert describe(torch.full((2,), 1.7e308, dtype=torch.float64)) == Summary(1.7e308, 1.7e308, None, None, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_describe_in_several_blocks(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr("qtrace.numerics.measurement._BLOCK", 1000)
    x = (1000 + 10 * torch.randn(40, 77)).to(dtype).T
    wide = x.double()
    expected = (wide.min(), wide.max(), wide.mean(), wide.std(correction=0))
    found = describe(x)
    assert (found.min, found.max, found.mean, found.stddev) == pytest.approx([v.item() for v in expected])
