"""Converts any tensor that a model returns to a dense tensor of ordinary numbers."""

from __future__ import annotations

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from qtrace.numerics.kernel import FLOAT8, READY


class NoValues(ValueError):
    """A tensor has no readable elements: it is on the meta device, fake, or of an opaque type."""


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return the elements of `tensor` as a dense, strided, detached tensor of real numbers; it is rarely a copy.

    Quantized tensors and subclasses with their own `dequantize` are dequantized. Sparse and nested tensors are made
    dense (a nested one becomes the 1-D sequence of its elements). Complex tensors are viewed with a last axis of
    real and imaginary part. float8 is widened to float32. Pending conjugations and negations are applied.

    Raises `NoValues` when no elements can be read: meta and fake tensors, lazy parameters, subclasses without
    storage, packed dtypes of less than a byte.
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
    """Return whether `tensor` is of a subclass with its own `dequantize`, as quantized tensors are."""
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
    """Return the values of a tensor subclass as a `torch.Tensor` itself."""
    kind = type(tensor)
    if kind is torch.Tensor:
        return tensor
    if dequantizes(tensor):
        try:
            values = tensor.dequantize()
        except (RuntimeError, TypeError, AttributeError) as error:
            raise _no_values(tensor, f"does not dequantize ({type(error).__name__})", "return its contents") from error
        # Some subclasses return their own type, which then holds the dequantized values.
        if type(values) is not kind:
            return plain(values)
    if tensor.is_nested:
        return plain(tensor.values())
    with torch._C.DisableTorchFunctionSubclass():
        if not _has_storage(tensor):
            raise _no_values(tensor, "holds no elements of its own and has no dequantize", "return its contents")
        return tensor.as_subclass(torch.Tensor)


def _has_storage(tensor: torch.Tensor) -> bool:
    """Return whether a subclass has elements in memory; fake tensors and wrappers of other tensors have none."""
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
