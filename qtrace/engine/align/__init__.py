"""Aligns two models: finds for each module of the candidate its partner in the reference."""

from qtrace.engine.align.alignment import align
from qtrace.engine.align.module_info import Alignment, ModuleInfo

__all__ = ["Alignment", "ModuleInfo", "align"]
