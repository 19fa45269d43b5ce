"""The allocator's habits, where they would cost time."""

from __future__ import annotations

import torch

# Just below the largest block that raises glibc's limits (DEFAULT_MMAP_THRESHOLD_MAX, 32 MiB).
_LARGE = 31 * 2**20


def keep_freed_memory() -> None:
    """Let the C library keep what tensors leave free, up to 64 MiB, instead of giving it back at every module.

    glibc maps large blocks one by one, and gives free memory at the top of its heap back to the system, beyond
    limits that follow the largest block ever freed (mallopt(3), M_MMAP_THRESHOLD). Two models whose activations come
    and go together pass these limits at every module, and each page must then be had again: at 512 tokens two thirds
    of all page faults of a trace. One large block that is freed, and never touched, raises them. With another C
    library it does nothing.
    """
    torch.empty(_LARGE, dtype=torch.uint8)
