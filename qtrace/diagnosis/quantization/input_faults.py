"""Says what a linear module loses of its input, by what it returns and the weight that it computes with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qtrace.diagnosis.quantization.effective_weight import probed
from qtrace.diagnosis.quantization.straight_through import StraightThrough

# A module returns what its weight gives up to this part, whatever it rounds.
_ROUNDING = 0.05
# A column of which this part is lost is not used, and those that are lost must explain this part of what is.
_LOST = 0.5
_EXPLAINED = 0.5
_MOST = 0.25
_SHOWN = 4
# Values that end within this part of one number were cut off there.
_FLAT = 0.02
_BEYOND = 1.1
_ROWS = 512


def input_fault(module: nn.Module, reference: nn.Module, given: Tensor) -> str | None:
    """Return in words what a module of the candidate loses of its input; None if it is nothing.

    The input that a module must have used is that which its weight takes to its output, with the least change
    (by the pseudoinverse of the weight).

    Args:
        module: stands for a linear layer of the reference; it is called.
        reference: that layer.
        given: what the layer receives, [..., columns].
    """
    found = probed(module, reference, StraightThrough()) or probed(module, reference)
    if found is None or given.shape[-1] != found.weight.shape[1]:
        return None
    rows = given.detach().reshape(-1, given.shape[-1]).double()[:_ROWS]
    try:
        with torch.no_grad():
            returned = type(module).forward(module, given)
    except Exception:
        # Any code may be the candidate's.
        return None
    if not isinstance(returned, Tensor) or returned.shape[-1] != found.weight.shape[0]:
        return None
    weight, output = found.weight.double(), returned.reshape(-1, returned.shape[-1]).double()[:_ROWS]
    off = output - rows @ weight.t() - found.bias.double()
    if not float(off.norm()) > _ROUNDING * float(output.norm()):
        return None
    change = off @ torch.linalg.pinv(weight, rtol=1e-3).t()
    energy = rows.square().sum(0)
    kept = 1 + (change * rows).sum(0) / energy.clamp(min=1e-300)
    lost = (kept < 1 - _LOST) & (energy > 0)
    explained = float(change[:, lost].square().sum()) / float(change.square().sum())
    if 0 < int(lost.sum()) <= _MOST * len(lost) and explained >= _EXPLAINED:
        named = [str(column) for column in lost.nonzero().flatten().tolist()]
        shown = ", ".join(named[:_SHOWN]) + (", …" if len(named) > _SHOWN else "")
        return f"does not use {len(named)} of {len(lost)} columns of its input ({shown})"
    end = (rows + change).abs().max()
    at_the_end = (rows.abs() > _BEYOND * end) & (((rows + change).abs() - end).abs() <= _FLAT * end)
    if bool(at_the_end.any()) and bool((rows.abs() > _BEYOND * end).sum() == at_the_end.sum()):
        return f"its input is cut off at {float(end):.3g}, where it reaches {float(rows.abs().max()):.3g}"
    return None
