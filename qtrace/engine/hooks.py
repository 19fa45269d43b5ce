"""Where qtrace's hooks stand among a module's own: around those that change what it takes or returns.

What a module takes is what its caller hands over, and what it returns is what its caller gets; the hooks of a toolkit
that round either belong to the module. A hook that only looks at an output, to use it elsewhere, as transformers' do
for hidden states, must see what is handed over in the output's place, though. Which is which shows in a run.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

from qtrace.tree import tensors

Enter = Callable[[torch.nn.Module, tuple[Any, ...], dict[str, Any]], Any]
Leave = Callable[[torch.nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]
# A tensor among the leaves of a value: its path, itself, and how often it was written.
_Mark = tuple[str, weakref.ref[torch.Tensor], int]


class Hooks:
    """Those of one run of one model.

    `rewriting` says by path whether a module's own hooks change what its forward returns. It is learned where it is
    not known, and to be kept for the next run.
    """

    def __init__(self, rewriting: dict[str, bool]) -> None:
        self._rewriting = rewriting
        self._handles: list[Any] = []
        self._forwarded: dict[torch.nn.Module, list[_Mark]] = {}

    def add(self, path: str, module: torch.nn.Module, enter: Enter, leave: Leave) -> None:
        """Have `enter` and `leave` called around each call of a module; the latter with None also where it raises.

        Raises RuntimeError where the module takes no hooks, as scripted ones do.
        """
        # Of hooks that are added while the model runs none is known to change anything.
        is_known = path in self._rewriting or not module._forward_hooks
        is_first = is_known and not self._rewriting.setdefault(path, False)
        self._handles.append(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
        after = module.register_forward_hook(leave, with_kwargs=True, always_call=True, prepend=is_first)
        self._handles.append(after)
        if not is_known:
            self._handles.append(module.register_forward_hook(self._note, prepend=True))

    def learn(self, path: str, module: torch.nn.Module, value: Any) -> None:
        """Take in what a module's caller gets, from `leave`; not to be told where the module raised."""
        forwarded = self._forwarded.pop(module, None)
        if forwarded is not None:
            self._rewriting[path] = self._rewriting.get(path, False) or not _is_same(forwarded, value)

    def remove(self) -> None:
        """Take them off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _note(self, module: torch.nn.Module, args: tuple[Any, ...], value: Any) -> None:
        self._forwarded[module] = [(path, weakref.ref(leaf), _writes(leaf)) for path, leaf in tensors(value)]


def _is_same(marks: list[_Mark], value: Any) -> bool:
    """Return whether a value holds the tensors that were marked in their places, and none was written since."""
    found = tensors(value)
    # By reference, since an id is given to the next tensor once its own is gone.
    return len(found) == len(marks) and all(
        name == path and ref() is leaf and writes == _writes(leaf)
        for (name, ref, writes), (path, leaf) in zip(marks, found, strict=True)
    )


def _writes(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
