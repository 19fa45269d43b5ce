"""Lets torchvision be imported beside a torch for the CPU; `environments.py` copies this file into one environment.

The torchvision of the package index is built for CUDA: its compiled operators do not load here, and its import then
fails where it describes two of them. They are declared before it is imported, and not defined, so that a call of one
still fails. aimet_torch imports torchvision for data sets and transforms, and calls neither.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any

KEPT: list[Any] = []


class DeclareFirst(MetaPathFinder):
    """Finds no module; the first time that torchvision is looked for, it declares the operators."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname != "torchvision":
            return
        sys.meta_path.remove(self)
        # Not at the interpreter's start, which would then be slow for everything.
        import torch

        untyped: Any = torch.library
        library = untyped.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        # What a library declares goes when it does.
        KEPT.append(library)


sys.meta_path.insert(0, DeclareFirst())
