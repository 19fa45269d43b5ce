"""Which module of the candidate answers to which module of the reference."""

from qtrace.engine.align.alignment import align
from qtrace.engine.align.module_info import Alignment, ModuleInfo

__all__ = ["Alignment", "ModuleInfo", "align"]
