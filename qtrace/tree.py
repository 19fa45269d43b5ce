"""Splits nested values into leaves: a module's arguments or outputs as (path, leaf) pairs.

A path joins keys, indices and attribute names with dots: "0.1", "logits", "past_key_values.layers.0.keys". A value that
is itself a leaf has the path "". Leaves are tensors and plain values (numbers, strings, None, …).
"""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

Leaf = tuple[str, Any]

# A plain value is a leaf. Any other value with attributes (such as a cache) is searched for tensors.
PLAIN = (int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_DEEPEST = 12


def leaves(value: Any) -> list[Leaf]:
    """Return the leaves of a nested value in order, as (path, leaf).

    Tuples, lists, mappings (a `ModelOutput` is one), dataclasses are walked whole. Of any other object with
    attributes, such as a key-value cache, only the attributes that hold tensors are taken. Modules,
    functions and classes have no leaves.

    >>> leaves({"a": (1, None)})
    [('a.0', 1), ('a.1', None)]
    """
    found: list[Leaf] = []
    _walk("", value, found, [])
    return found


def tensors(value: Any) -> list[tuple[str, torch.Tensor]]:
    """Return only the tensors among the leaves."""
    return [(path, leaf) for path, leaf in leaves(value) if isinstance(leaf, torch.Tensor)]


def frozen(value: Any) -> dict[str, Any]:
    """Return the leaves by path, tensors copied: `leaves` of it gives the same paths as `leaves` of the value.

    Later changes of the tensors by a model do not affect it.
    """
    return {path: _copy(leaf) for path, leaf in leaves(value)}


def join(path: str, key: object) -> str:
    """Return the path of `key` below `path`.

    >>> join("", 0), join("a", "b"), join("a", "")
    ('0', 'a.b', 'a')
    """
    return f"{path}.{key}" if path and key != "" else f"{path}{key}"


def objects(value: Any) -> list[Leaf]:
    """Return the objects in a nested value that may hold tensors in attributes, as a key-value cache does, by path.

    >>> from types import SimpleNamespace
    >>> objects({"logits": 1.0, "cache": SimpleNamespace(keys=None)})
    [('cache', namespace(keys=None))]
    """
    kind = _kind_of(value)
    if kind is _ATTRIBUTES:
        return [("", value)]
    if kind is _MAPPING:
        items = [(str(key), value[key]) for key in value]
    elif kind is _SEQUENCE:
        items = [(str(index), item) for index, item in enumerate(value)]
    elif kind is _DATACLASS:
        items = [(field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value)]
    else:
        return []
    return [(join(name, path), held) for name, item in items for path, held in objects(item)]


def is_object(value: Any) -> bool:
    """Return whether a value is no container, but holds tensors in attributes if at all, as a key-value cache does."""
    return _kind_of(value) is _ATTRIBUTES


def _copy(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf


def _walk(path: str, value: Any, found: list[Leaf], inside: list[int]) -> None:
    """Append the leaves of `value` to `found`; `inside` holds the ids of the containers around it.

    It runs for every argument of every call, often with a key-value cache. So it uses no generators, and classifies
    each type only once.
    """
    kind = _kind_of(value)
    if kind is _LEAF:
        found.append((path, value))
        return
    if kind is _ARRAY:
        found.append((path, torch.from_numpy(value) if value.dtype.kind in "fiub" else value.tolist()))
        return
    if kind is _NOTHING or len(inside) > _DEEPEST or id(value) in inside:
        return
    inside.append(id(value))
    prefix = f"{path}." if path else ""
    if kind is _MAPPING:
        for key in value:
            _walk(f"{prefix}{key}", value[key], found, inside)
    elif kind is _SEQUENCE:
        names = getattr(value, "_fields", ())
        for name, item in zip(names if len(names) == len(value) else range(len(value)), value, strict=True):
            _walk(f"{prefix}{name}", item, found, inside)
    elif kind is _DATACLASS:
        for field in dataclasses.fields(value):
            _walk(f"{prefix}{field.name}", getattr(value, field.name, None), found, inside)
    else:
        _walk_attributes(prefix, value, found, inside)
    inside.pop()


def _walk_attributes(prefix: str, value: Any, found: list[Leaf], inside: list[int]) -> None:
    named = getattr(value, "__dict__", None)
    if named is None:
        slots = (name for base in type(value).__mro__ for name in vars(base).get("__slots__", ()))
        named = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    for name, item in named.items():
        if isinstance(item, torch.Tensor):
            found.append((prefix + name, item))
        elif _kind_of(item) is not _LEAF and not name.startswith("_"):
            below: list[Leaf] = []
            _walk(prefix + name, item, below, inside)
            found.extend(leaf for leaf in below if isinstance(leaf[1], torch.Tensor))


_LEAF, _MAPPING, _SEQUENCE, _DATACLASS, _ATTRIBUTES, _NOTHING, _ARRAY = range(7)


_KINDS: dict[type, int] = {}


def _kind_of(value: Any) -> int:
    """Return the way in which a value is split."""
    kind = _KINDS.get(type(value))
    if kind is None:
        kind = _KINDS[type(value)] = _kind(type(value))
    return kind


def _kind(kind: type) -> int:
    if issubclass(kind, (torch.Tensor, *PLAIN)):
        return _LEAF
    if issubclass(kind, Mapping):
        return _MAPPING
    if issubclass(kind, (tuple, list, deque)):
        return _SEQUENCE
    if issubclass(kind, np.ndarray):
        return _ARRAY
    if dataclasses.is_dataclass(kind):
        return _DATACLASS
    if issubclass(kind, (torch.nn.Module, type)) or any("__call__" in vars(base) for base in kind.__mro__):
        return _NOTHING
    return _ATTRIBUTES


def replaced(value: Any, swaps: Mapping[int, list[torch.Tensor]]) -> Any:
    """Return `value` with tensors replaced by their id, in containers of the same types; the rest is unchanged.

    A tensor in several places takes its replacements in turn, and then the last one in all further places. Objects with
    attributes, such as a cache, are not split.
    """
    if id(value) in swaps:
        turns = swaps[id(value)]
        return turns.pop(0) if len(turns) > 1 else turns[0]
    kind = _kind_of(value)
    if kind is _SEQUENCE:
        items = [replaced(item, swaps) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if kind is _MAPPING:
        changed = {key: replaced(value[key], swaps) for key in value}
        if all(changed[key] is value[key] for key in value):
            return value
        made = copy.copy(value)
        for key, item in changed.items():
            made[key] = item
        return made
    if kind is _DATACLASS:
        fields = {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value)}
        changed = {name: replaced(item, swaps) for name, item in fields.items()}
        different = {name: item for name, item in changed.items() if item is not fields[name]}
        return dataclasses.replace(value, **different) if different else value
    return value
