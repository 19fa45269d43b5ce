"""The cases of the bench, and what qtrace says of each."""

from __future__ import annotations

import copy
import fnmatch
import math
import multiprocessing
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn

import qtrace
from bench.rounding import folding
from bench.rounding.faults import KINDS, Faulty, first_in
from bench.rounding.models import NAMES, SEEDS, Subject, subject
from bench.rounding.schemes import FORMS, Recipe, cells, quantize

PER_CELL = 20
RIGHT = 100
PER_BIN = 15
LEAST = 3.0
BINS = ((0.5, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 5.0), (5.0, 10.0), (10.0, math.inf))
_RIGHT_SIGNS = ("drift", "clean")


@dataclass(frozen=True, slots=True)
class Built:
    """A pair to trace: `path` is the faulty module, None where there is none."""

    subject: Subject
    recipe: Recipe
    candidate: nn.Module
    kind: str
    path: str | None = None
    ratio: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one case came to.

    `named` are the modules of the findings, `first` whether the faulty one is first among them, `innocent` how many
    findings do not hold it. `words` are the first finding's summary and evidence.
    """

    id: str
    model: str
    scheme: str
    bits: int
    form: str
    affine: bool
    kind: str
    path: str | None
    ratio: float | None
    outcome: str
    named: tuple[str, ...]
    first: bool
    innocent: int
    words: str
    warnings: tuple[str, ...]
    seconds: float

    @property
    def right(self) -> bool:
        """Whether the fault is named first and called one, or a right quantization raises no alarm."""
        if self.path is None:
            return not self.named and self.outcome in _RIGHT_SIGNS
        return self.first and self.outcome == "fault"


def ids(only: str = "*") -> list[str]:
    """Return the ids of all cases, or of those that the glob `only` matches."""
    known = [f"fault/{scheme}-{bits}/{index:02}" for scheme, bits in cells() for index in range(PER_CELL)]
    known += [f"right/{index:02}" for index in range(RIGHT)]
    known += [f"size/{low:g}-{high:g}/{index:02}" for low, high in BINS for index in range(PER_BIN)]
    return [one for one in known if fnmatch.fnmatchcase(one, only)]


def build(name: str) -> Built:
    """Build the case with this id; the same id builds the same case in every process."""
    part, *rest = name.split("/")
    index = int(rest[-1])
    generator = seeded(name)
    if part == "right":
        return _right(index, generator)
    if part == "fault":
        scheme, bits = rest[0].split("-")
        kinds = _shuffled(list(KINDS), seeded(f"{part}/{rest[0]}"))
        start = index % len(kinds)
        return _faulty(first_in(LEAST, math.inf, kinds[start:] + kinds[:start], scheme, int(bits), generator))
    low, high = map(float, rest[0].split("-"))
    while True:
        cell = cells()[int(torch.randint(len(cells()), (), generator=generator))]
        try:
            return _faulty(first_in(low, high, _shuffled(list(KINDS), generator), *cell, generator))
        except ValueError:
            continue


def seeded(name: str) -> torch.Generator:
    """Return the generator of random numbers that belongs to a name."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def _shuffled(kinds: list[str], generator: torch.Generator) -> list[str]:
    return [kinds[index] for index in torch.randperm(len(kinds), generator=generator).tolist()]


def _faulty(found: Faulty) -> Built:
    skip = () if found.recipe.head else found.subject.heads
    candidate = quantize(copy.deepcopy(found.subject.model), found.recipe, skip)
    candidate.set_submodule(found.path, found.layer)
    return Built(found.subject, found.recipe, candidate, found.kind, found.path, found.ratio)


def right_parts(index: int) -> tuple[Subject, Recipe, str, torch.Generator]:
    """Return what a right quantization is made of: all schemes, widths and models, and in turn all foldings."""
    generator = seeded(f"right/{index:02}")

    def pick(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    combinations = [(cell, model) for cell in cells() for model in NAMES]
    (scheme, bits), model = combinations[index % len(combinations)]
    recipe = Recipe(scheme, bits, FORMS[pick(len(FORMS))], bool(pick(2)), bool(pick(2)))
    # Two in five are plain; each of the other foldings is one in five.
    return subject(model, pick(SEEDS)), recipe, (folding.PLAIN, *folding.FOLDINGS)[pick(5)], generator


def _right(index: int, generator: torch.Generator) -> Built:
    chosen, recipe, kind, generator = right_parts(index)
    return Built(chosen, recipe, folding.quantized(chosen, kind, recipe, generator), kind)


def run_case(name: str) -> Result:
    """Build one case, trace it and judge the report."""
    built = build(name)
    begin = time.perf_counter()
    report = qtrace.trace(copy.deepcopy(built.subject.model), built.candidate, built.subject.inputs)
    seconds = time.perf_counter() - begin
    findings = report.findings
    held = [{finding.module, *finding.members} for finding in findings]
    first = next(iter(findings), None)
    names_it = first is not None and built.path in (first.module, next(iter(first.members), None))
    return Result(
        id=name,
        model=built.subject.name,
        scheme=built.recipe.scheme,
        bits=built.recipe.bits,
        form=built.recipe.form,
        affine=built.recipe.affine,
        kind=built.kind,
        path=built.path,
        ratio=built.ratio,
        outcome=report.outcome.value,
        named=tuple(finding.module for finding in findings),
        first=names_it,
        innocent=sum(built.path not in modules for modules in held),
        words="" if first is None else "; ".join([first.summary, *first.evidence]),
        warnings=report.warnings,
        seconds=round(seconds, 3),
    )


def run(names: Sequence[str], jobs: int, progress: Callable[[Result], None]) -> list[Result]:
    """Run cases in so many processes, and return their results in order."""
    results = []
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=prepare) as pool:
        for result in pool.map(run_case, names, chunksize=4):
            progress(result)
            results.append(result)
    return results


def prepare() -> None:
    """Set up a process: the models are tiny, a team of threads would cost more than it brings."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()


def tables(results: Sequence[Result]) -> dict[str, list[dict[str, Any]]]:
    """Return the tables of the bench by title; one without cases is empty."""
    faults = [result for result in results if result.id.startswith("fault/")]
    rights = [result for result in results if result.id.startswith("right/")]
    sizes = [result for result in results if result.id.startswith("size/")]
    by_cell = {f"{scheme}, {bits} bits": (scheme, bits) for scheme, bits in cells()}
    rows = {label: [one for one in faults if (one.scheme, one.bits) == cell] for label, cell in by_cell.items()}
    kinds = {kind: [one for one in faults if one.kind == kind] for kind in KINDS}
    foldings = {kind: [one for one in rights if one.kind == kind] for kind in folding.FOLDINGS}
    bins = {f"{low:g} to {high:g}": [one for one in sizes if f"/{low:g}-{high:g}/" in one.id] for low, high in BINS}
    title = f"Faults of at least {LEAST:g} times the rounding: the module is named first"
    return {
        title: _rows("scheme", {**rows, "all": faults}),
        f"{title}, by kind": _rows("fault", kinds),
        "Right quantizations without alarm": _rows("model", {**foldings, "all": rights}),
        "Named first over the size of the fault, in roundings": _rows("size", bins),
    }


def _rows(label: str, groups: dict[str, list[Result]]) -> list[dict[str, Any]]:
    return [
        {
            label: name,
            "right": f"{sum(one.right for one in group)}/{len(group)}",
            "%": round(100 * sum(one.right for one in group) / len(group)),
            "innocent named": sum(one.innocent for one in group),
            "s": sum(one.seconds for one in group) / len(group),
        }
        for name, group in groups.items()
        if group
    ]
