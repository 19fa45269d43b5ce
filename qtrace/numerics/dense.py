"""From whatever a model returns to a dense tensor of ordinary numbers."""

from __future__ import annotations

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from qtrace.numerics.kernel import FLOAT8, READY


class NoValues(ValueError):
    """A tensor has no elements that could be read: it is on the meta device, fake, or of an opaque type."""


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return the elements of `tensor` as a dense, strided, detached tensor of real numbers, seldom a copy.

    Quantized tensors and subclasses with a `dequantize` of their own are dequantized, sparse and nested ones
    made dense (a nested one as the 1-D sequence of its elements), complex ones viewed with a last axis of
    real and imaginary part, float8 widened to float32, pending conjugations and negations carried out.

    Raises `NoValues` when there are no elements to be read: meta and fake tensors, lazy parameters,
    subclasses without storage, packed dtypes of less than a byte.
    """
    if (
        type(tensor) is torch.Tensor
        and tensor.dtype in READY
        and tensor.layout is torch.strided
        and not (tensor.requires_grad or tensor.is_meta or tensor.is_nested or tensor.is_neg())
    ):
        return tensor
    return _unwrap(tensor)


def dequantizes(tensor: torch.Tensor) -> bool:
    """Return whether `tensor` is of a subclass that says itself what numbers it stands for, as quantized ones do."""
    return type(tensor).dequantize is not torch.Tensor.dequantize


def _unwrap(tensor: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
        raise NoValues(
            f"a {type(tensor).__name__} has no shape and no values before the first forward; "
            "run the model once before it is traced"
        )
    if tensor.is_meta:
        raise _no_values(tensor, "is on the meta device", "load weights and move the model to a real device")
    tensor = _base(tensor.detach())
    if tensor.is_nested:
        parts = [part.reshape(-1) for part in tensor.unbind()]
        return plain(torch.cat(parts) if parts else tensor.new_empty(0))
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    tensor = tensor.resolve_conj().resolve_neg()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    elif tensor.dtype in FLOAT8:
        tensor = tensor.to(torch.float32)
    if tensor.dtype not in READY:
        raise _no_values(tensor, "is of a dtype that torch cannot convert", "unpack or dequantize it")
    return tensor


def _base(tensor: torch.Tensor) -> torch.Tensor:
    """Return what a tensor subclass stands for as a `torch.Tensor` itself."""
    kind = type(tensor)
    if kind is torch.Tensor:
        return tensor
    if dequantizes(tensor):
        try:
            values = tensor.dequantize()
        except (RuntimeError, TypeError, AttributeError) as error:
            raise _no_values(tensor, f"does not dequantize ({type(error).__name__})", "return its contents") from error
        # Some stay what they are, and hold the dequantized values themselves.
        if type(values) is not kind:
            return plain(values)
    if tensor.is_nested:
        return plain(tensor.values())
    with torch._C.DisableTorchFunctionSubclass():
        if not _has_storage(tensor):
            raise _no_values(tensor, "holds no elements of its own and has no dequantize", "return its contents")
        return tensor.as_subclass(torch.Tensor)


def _has_storage(tensor: torch.Tensor) -> bool:
    """Tell whether elements lie behind a subclass: not so for fake tensors and wrappers of other tensors."""
    try:
        storage = tensor.untyped_storage()
        return storage.device.type != "meta" and (storage.data_ptr() != 0 or not tensor.numel())
    except (RuntimeError, NotImplementedError):
        return False


def _no_values(tensor: torch.Tensor, why: str, remedy: str) -> NoValues:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return NoValues(
        f"a {type(tensor).__name__} {dtype} {list(tensor.shape)} {why}, so there are no values to compare; {remedy}"
    )
