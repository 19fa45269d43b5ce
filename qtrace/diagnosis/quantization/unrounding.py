"""Takes the rounding out of a candidate, so that what is left of the difference is no matter of rounding.

Quantization changes a model in two ways: it rounds, and it may rearrange what it rounds (scales are moved from one
module to the next, a stream is rotated). Without the rounding a correct candidate computes what the reference does, and
what is rearranged wrongly shows exactly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from qtrace.diagnosis.quantization.bias_correction import take_corrected
from qtrace.diagnosis.quantization.map_check import MapCheck
from qtrace.diagnosis.quantization.quantizer_watch import QuantizerWatch
from qtrace.diagnosis.quantization.straight_through import StraightThrough
from qtrace.diagnosis.quantization.weight_records import Unrounding
from qtrace.diagnosis.runner import Runner, as_trial
from qtrace.diagnosis.trial import Trial
from qtrace.engine.comparison import Comparison
from qtrace.engine.lockstep_pass import copied
from qtrace.engine.model import Model, buffers_kept
from qtrace.report.records import ONE_SIDED

# What gains that were fitted leave of the final error.
_RELIEVED = 0.1


@contextlib.contextmanager
def applied(found: Unrounding) -> Iterator[None]:
    """Put the unrounded weights in place; the candidate gets back its own at the end."""
    kept = [(module, name, module._parameters[name]) for module, name, _ in found.weights]
    own = [(module, dict(vars(module))) for module, _ in found.forwards]
    try:
        for module, name, weight in found.weights:
            module._parameters[name] = nn.Parameter(weight.detach(), requires_grad=False)
        for module, forward in found.forwards:
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, name, parameter in kept:
            module._parameters[name] = parameter
        for module, attributes in own:
            module.__dict__.pop("forward")
            if "forward" in attributes:
                module.__dict__["forward"] = attributes["forward"]


@dataclass(frozen=True, slots=True)
class WithoutRounding:
    """The pair with the rounding taken out of the candidate, and a pass without forcing over it.

    `is_right` says that the final outputs then agree: up to what fitted gains leave, where such were fitted.
    """

    models: tuple[Model, Model]
    found: Unrounding
    first: Comparison
    watch: QuantizerWatch
    is_right: bool

    @contextlib.contextmanager
    def applied(self) -> Iterator[tuple[tuple[Model, Model], Comparison]]:
        """Take the rounding out, and yield the models and the pass over them."""
        with applied(self.found):
            yield self.models, self.first


def without_rounding(runner: Runner, before: Trial, found: Unrounding) -> WithoutRounding | None:
    """Return the pair with the rounding taken out of the candidate; None where it does not round, or it cannot be.

    Where the reference rounds while it runs as well, the candidate's is left, for both are to be the same.

    Args:
        runner: the passes are made with it; its models are as before in the end.
        before: the pass without forcing over the models as they are.
        found: what takes the rounding out of the weights; what was corrected in biases is added to it.
    """
    reference, candidate = runner.models
    is_live = _rounds(candidate, runner) and not _rounds(reference, runner)
    if not found.is_needed and not is_live:
        return None
    take_corrected(found, runner)
    models, watch = runner.models, QuantizerWatch()
    if is_live:
        models = reference, replace(candidate, within=StraightThrough)
    if found.maps:
        check = MapCheck(found.maps)
        runner.of(models).pass_without_forcing((None, check))
        others = check.others()
        found.forwards = [one for one in found.forwards if id(one[0]) not in others]
    with applied(found):
        first = runner.of(models).pass_without_forcing()
    if first is None:
        return None
    trial = as_trial(first, local=False)
    wrong = [
        v for root in trial.roots if not root.module for v in root.outputs if not v.agrees and v.status not in ONE_SIDED
    ]
    is_right = not wrong
    if not is_right and not found.is_exact:
        after, error = trial.final_error(runner.read), before.final_error(runner.read)
        is_right = after is not None and error is not None and after <= _RELIEVED * error
    if is_right and models is not runner.models:
        watched = replace(candidate, within=lambda: StraightThrough(watch))
        runner.of((reference, watched)).pass_without_forcing((None, watch))
    return WithoutRounding(models, found, first, watch, is_right)


def _rounds(model: Model, runner: Runner) -> bool:
    """Return whether a model rounds while it runs, by an operator for that."""
    mode = StraightThrough()
    with contextlib.suppress(Exception), buffers_kept([model]), mode:
        model.entry(runner.options.call, copied(runner.sample))()
    return mode.count > 0
