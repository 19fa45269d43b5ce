"""What the quantizers of a module that is to blame have to do with it."""

from __future__ import annotations

from collections.abc import Iterator

from qtrace.diagnose import Suspect
from qtrace.investigation.runner import Runner
from qtrace.quantization import quant_facts
from qtrace.quantization.observed import Observed
from qtrace.records import QuantFacts

# What a miscall passes on wrongly, or a call that is not made, no quantizer explains.
_OWN = ("introduces", "non_finite")


class Quantized:
    """Reads the quantizers of suspects; looks at what the reference takes and returns there, once each."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._aligned = frozenset(module for key in runner.plan.reference_keys for module in runner.partners(key))

    def evidence(self, suspect: Suspect, *, looks: bool) -> Iterator[str]:
        """Yield what is wrong with the quantizers that a suspect has, with a remedy; else how it rounds.

        With `looks` the reference runs once more, so that the ranges of input and output can be held against what
        the reference has there.
        """
        if suspect.kind not in _OWN:
            return
        facts = self._facts(suspect, looks=looks)
        if facts is None:
            return
        problems = [sentence for _, sentence in facts.sentences()]
        yield from problems or [f"it quantizes: {q.of} {q}" for q in facts.quantizers if q.of != "inside"]

    def _facts(self, suspect: Suspect, *, looks: bool) -> QuantFacts | None:
        module = self._runner.models[0].modules.get(suspect.module)
        partners = self._runner.partners(suspect.module)
        facts = None if module is None else quant_facts(module, partners, self._aligned)
        if (
            module is None
            or facts is None
            or not looks
            or not any(q.of in ("input", "output") for q in facts.quantizers)
        ):
            return facts
        observed = Observed()
        self._runner.during(suspect.module, suspect.call.call, observed)
        return quant_facts(module, partners, self._aligned, observed.values)
