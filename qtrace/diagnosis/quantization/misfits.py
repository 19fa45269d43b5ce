"""Chooses the suspects whose quantizers do not fit what they round, where rounding is all that is at work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from qtrace.diagnosis.quantization.observation import OWN, QuantizerEvidence
from qtrace.diagnosis.suspects import Suspect
from qtrace.diagnosis.trial import Trial, Value

# A relative L2 error from here on is more than the rounding of a few bits.
COARSE = 0.25
# An error of a module's own is there in a pass without forcing as well, at least by this part.
_THERE = 0.5


class Misfits:
    """The suspects whose quantizers do not fit.

    `found` are those of a pass that forced every boundary, `trial` is the pass without forcing. `is_undone` says of a
    value of a suspect that it is one of a convention. With `is_noise`, differing is the rule.
    """

    def __init__(
        self,
        trial: Trial,
        quantized: QuantizerEvidence,
        found: Sequence[Suspect],
        *,
        is_noise: bool,
        is_undone: Callable[[Suspect], bool],
    ) -> None:
        self._trial = trial
        self._quantized = quantized
        self._is_noise = is_noise
        self._found = [one for one in found if not is_undone(one)]
        self._shown = {(call, value.name): value.rel_l2 for call, value in _values(trial)}

    def chosen(self) -> list[Suspect]:
        """Return the suspects that round too coarsely, cut values off, or round where their like do not.

        Where differing is the rule, a module that is far off its peers rounds more coarsely than they do.
        """
        return [one for one in self._found if self._shows(one) and self._is_wrong(one)]

    def watched(self, chosen: Sequence[Suspect]) -> list[Suspect]:
        """Return the further modules that lose some of their input, or have a quantizer that was seen not to fit."""
        named = {one.module for one in chosen}
        calls = {call.module: call for call in reversed(self._trial.calls) if call.side is None}
        found = []
        for path in dict.fromkeys((*self._quantized.losing(), *self._quantized.watch.modules())):
            call = calls.get(path) if path not in named else None
            value = next((v for v in call.outputs if not v.agrees), None) if call is not None else None
            if call is not None and value is not None:
                found.append(Suspect("introduces", path, call, value=value, has_children=bool(call.children)))
        return found

    def _shows(self, one: Suspect) -> bool:
        """Return whether the error is there as well when nothing is forced: else the forced values make it."""
        call, value = one.callee or one.call, one.value
        if value is None or value.rel_l2 is None:
            return True
        there = self._shown.get(((call.module, call.call), value.name))
        return there is None or not there < _THERE * value.rel_l2

    def _is_wrong(self, one: Suspect) -> bool:
        if self._is_coarse(one) or self._quantized.has_problem(one):
            return True
        return not self._is_noise and self._rounds_alone(one)

    def _is_coarse(self, one: Suspect) -> bool:
        error = one.value.rel_l2 if one.value is not None else None
        is_far = self._is_noise or error is None or not error < COARSE
        return one.kind in OWN and not one.has_children and is_far and self._quantized.rounds(one)

    def _rounds_alone(self, one: Suspect) -> bool:
        """Return whether a module's code rounds, by no quantizer that is known, where none or few of its class do."""
        rounding = self._quantized.watch.unscaled
        if one.module not in rounding or self._quantized.is_known(one):
            return False
        alike = {call.module for call in self._trial.calls if call.side is None and call.type == one.call.type}
        return len(rounding) == 1 or len(alike & rounding) <= len(alike - rounding)


def _values(trial: Trial) -> Iterator[tuple[tuple[str, int], Value]]:
    for call in trial.calls:
        if call.side is None:
            for value in (*call.arguments, *call.outputs):
                yield (call.module, call.call), value
