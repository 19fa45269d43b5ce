"""Which module of the candidate answers to which module of the reference."""

from qtrace.align.alignment import align
from qtrace.align.modules import Alignment, ModuleInfo

__all__ = ["Alignment", "ModuleInfo", "align"]
