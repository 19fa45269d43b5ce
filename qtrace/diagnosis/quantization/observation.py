"""Finds how the quantizers of a suspect contribute to its error, by values observed in one further run."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from qtrace.diagnosis.quantization.effective_weight import is_linear
from qtrace.diagnosis.quantization.expected_error import expected_error, expected_peak
from qtrace.diagnosis.quantization.facts import quant_facts, readings_of
from qtrace.diagnosis.quantization.input_faults import input_fault
from qtrace.diagnosis.quantization.quantizer_watch import QuantizerWatch
from qtrace.diagnosis.quantization.weight_records import Unrounding
from qtrace.diagnosis.runner import Runner
from qtrace.diagnosis.suspects import Suspect
from qtrace.engine.events import Bound, Call
from qtrace.numerics import NoValues, plain
from qtrace.report.records import QuantFacts
from qtrace.tree import leaves

# No quantizer explains a wrong argument of a miscall, or a call that is not made.
OWN = ("introduces", "non_finite")
# An error may exceed the RMS of the rounding that explains it by this factor; truncation instead doubles that RMS.
_EXPLAINED = 1.5
# The same factor for the largest error; one wrong channel of many is lost in the RMS.
_EXPLAINED_PEAK = 2.5
# A relative L2 error from here on is more than the rounding of a few bits, whatever the scale.
_MOST = 0.25
_ROWS = 512


class ObservedValues:
    """Keeps copies of the first float tensors of a call; a `qtrace.engine.hooks.CallProbe`.

    `values` has the first one of the arguments under "input", the first one of the output under "output".
    """

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def begin(self, arguments: Bound) -> None:
        """Keep the input, before the module can write to it."""
        self._keep("input", {name: arguments.values[name] for name in arguments.values if name in arguments.passed})

    def end(self, value: Any) -> None:
        """Keep the output."""
        self._keep("output", value)

    def _keep(self, name: str, value: Any) -> None:
        for _, leaf in leaves(value):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel():
                try:
                    self.values[name] = torch.clone(plain(leaf))
                except NoValues:
                    continue
                return


class _Inputs:
    """A listener to the reference that keeps some rows of what each of some modules receives first."""

    def __init__(self, paths: Collection[str]) -> None:
        self.values: dict[str, Tensor] = {}
        self._paths = paths

    def enter(self, call: Call, module: torch.nn.Module, arguments: Bound) -> None:
        """Keep the first tensor of a call."""
        if call.path not in self._paths or call.path in self.values:
            return
        given = next((value for value in arguments.values.values() if isinstance(value, Tensor)), None)
        if given is not None and given.is_floating_point() and given.dim():
            self.values[call.path] = given.detach().reshape(-1, given.shape[-1])[:_ROWS].clone()

    def leave(self, call: Call, module: torch.nn.Module, value: Any) -> None:
        """Nothing is kept of what a module returns."""


class QuantizerEvidence:
    """Reads the quantizers of suspects; observes the reference's input and output at each at most once."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._aligned = frozenset(module for key in runner.plan.reference_keys for module in runner.partners(key))
        # What was seen of the quantizers where they run, and of weights under their rounding, if that was looked at.
        self.watch = QuantizerWatch()
        self.weights = Unrounding()
        # The facts found with the reference's values, by (module, call); the values themselves are too large to keep.
        self._held: dict[tuple[str, int], QuantFacts | None] = {}

    def evidence(self, suspect: Suspect, *, looks: bool) -> Iterator[str]:
        """Yield the problems of a suspect's quantizers, with a remedy; without a problem, how it rounds.

        With `looks` the reference runs once more, so that the ranges of input and output can be compared with the
        reference's values.
        """
        if suspect.kind not in OWN:
            return
        lost = self._lost(suspect) if looks else None
        if lost is not None:
            yield lost
        facts = self._facts(suspect, looks=looks)
        problems = [] if facts is None else [sentence for _, sentence in facts.sentences()]
        problems = problems or list(self.watch.sentences(suspect.module))
        if facts is None:
            yield from problems
            return
        yield from problems or [f"it quantizes: {q.of} {q}" for q in facts.quantizers if q.of != "inside"]

    def has_problem(self, suspect: Suspect) -> bool:
        """Return whether a quantizer of a suspect does not fit what it rounds; the reference may run once more."""
        facts = self._facts(suspect, looks=suspect.kind in OWN)
        is_told = facts is not None and next(facts.sentences(), None) is not None
        return is_told or next(self.watch.sentences(suspect.module), None) is not None

    def is_known(self, suspect: Suspect) -> bool:
        """Return whether a reader knows a quantizer of a suspect."""
        return self._facts(suspect, looks=False) is not None

    def rounds(self, suspect: Suspect) -> bool:
        """Return whether a suspect rounds while it runs, or holds a quantizer that a reader knows.

        A weight that is the reference's, rounded, is none.
        """
        is_weight_only = self.weights.is_sound(suspect.module)
        return self.watch.rounds_in(suspect.module) or (self.is_known(suspect) and not is_weight_only)

    def explains(self, suspect: Suspect) -> bool:
        """Return whether rounding by correct scales is the only error in a suspect's output.

        The reference runs once more if the suspect quantizes at all.
        """
        value = suspect.value
        reference = self._runner.models[0].modules.get(suspect.module)
        partners = self._runner.partners(suspect.module)
        readings = readings_of(partners, self._aligned)
        if suspect.kind != "introduces" or reference is None or value is None or not readings:
            return False
        if value.error is None or value.rel_l2 is None or not value.rel_l2 < _MOST or _lacks_bias(reference, partners):
            return False
        values = self._observed(suspect)
        facts = quant_facts(reference, partners, self._aligned, values)
        self._held[suspect.module, suspect.call.call] = facts
        if facts is None or "output" not in values or next(facts.sentences(), None) is not None:
            return False
        expected, peak = (of(readings, reference, values) for of in (expected_error, expected_peak))
        if expected is None or peak is None:
            return False
        output = values["output"].to(torch.float64)
        own, interval = output.square().mean().sqrt().item(), (output.max() - output.min()).item()
        return (
            own > 0 and value.rel_l2 <= _EXPLAINED * expected / own and value.error * interval <= _EXPLAINED_PEAK * peak
        )

    def losing(self) -> list[str]:
        """Return the modules that store codes and lose some of what they receive; both models run once more."""
        if not self.weights.coded:
            return []
        inputs = _Inputs(self.weights.coded)
        self._runner.pass_without_forcing((inputs, None))
        modules = self._runner.models[0].modules
        return [
            path
            for path, given in inputs.values.items()
            if is_linear(modules[path])
            and input_fault(self._runner.partners(path)[0], modules[path], given) is not None
        ]

    def _lost(self, suspect: Suspect) -> str | None:
        """Return what a module that stores codes loses of its input."""
        reference, partners = self._runner.models[0].modules.get(suspect.module), self._runner.partners(suspect.module)
        if reference is None or not partners or not is_linear(reference) or suspect.module not in self.weights.coded:
            return None
        given = self._observed(suspect).get("input")
        return None if given is None else input_fault(partners[0], reference, given)

    def _observed(self, suspect: Suspect) -> dict[str, torch.Tensor]:
        observed = ObservedValues()
        self._runner.during(suspect.module, suspect.call.call, observed)
        return observed.values

    def _facts(self, suspect: Suspect, *, looks: bool) -> QuantFacts | None:
        key = suspect.module, suspect.call.call
        if looks and key in self._held:
            return self._held[key]
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
        return quant_facts(module, partners, self._aligned, self._observed(suspect))


def _lacks_bias(reference: torch.nn.Module, partners: Sequence[torch.nn.Module]) -> bool:
    """Return whether the reference adds a bias that the candidate lacks; rounding may well hide its absence."""
    held = [vars(partner).get("_parameters", {}) | vars(partner).get("_buffers", {}) for partner in partners]
    known = [tensors["bias"] for tensors in held if "bias" in tensors]
    return reference._parameters.get("bias") is not None and bool(known) and all(bias is None for bias in known)
