"""Time and memory of a diagnosis against two bare forwards: `python -m bench.diagnosis [REPETITIONS]`.

What is measured, at 512 tokens: the accumulated pass with one forced pass, the complete diagnosis of one injected
fault with its graft, and that of the model's bfloat16 cast, which ends as drift. Each against two bare forwards of the
same two models, in turns, in a process of its own.
"""

from __future__ import annotations

import copy
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import qtrace
from bench import smollm2
from bench.engines import bare
from bench.memory import peak_of
from qtrace.report.records import Outcome

TOKENS = 512
REPETITIONS = 5
FAULTY = "model.layers.14.mlp.down_proj"


def _same() -> tuple[Any, Any]:
    return smollm2.load_pair()


def _faulty() -> tuple[Any, Any]:
    reference, candidate = smollm2.load_pair()
    with torch.no_grad():
        candidate.get_parameter(f"{FAULTY}.weight")[7].neg_()
    return reference, candidate


def _cast() -> tuple[Any, Any]:
    reference, _ = smollm2.load_pair()
    return reference, copy.deepcopy(reference).to(torch.bfloat16)


# What makes the pair, and what its report must say for the time to count.
CASES: dict[str, tuple[Callable[[], tuple[Any, Any]], Callable[[Any], bool]]] = {
    "one forced pass": (_same, lambda report: report.row("lm_head").peir_local is not None),
    "one fault": (
        _faulty,
        lambda report: [one.module for one in report.findings] == [FAULTY],
    ),
    "bfloat16 cast": (_cast, lambda report: report.outcome is Outcome.DRIFT),
}


def run(repetitions: int = REPETITIONS) -> list[dict[str, Any]]:
    """Return a row per case: seconds, ratios to two bare forwards, and the peak of memory over theirs in MB.

    `best_ratio` is best over best, `median_ratio` median over median.
    """
    if not smollm2.available():
        print("diagnosis: skipped, SmolLM2 is not there; run `make models`", file=sys.stderr)
        return []
    rows = []
    for name in CASES:
        command = [sys.executable, "-m", "bench.diagnosis", str(repetitions), name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append({"case": name, "tokens": TOKENS, **json.loads(done.stdout.splitlines()[-1])})
    return rows


def measure(name: str, repetitions: int) -> dict[str, float]:
    """Return the figures of one case, taken in this process."""
    build, is_right = CASES[name]
    pair = build()
    inputs = smollm2.tokens(TOKENS)

    def diagnosis() -> None:
        report = qtrace.trace(*pair, inputs, local=True)
        assert is_right(report), f"{report.outcome}: {[one.module for one in report.findings]}"

    # What is imported and set up once, whatever the length, is no memory of the run itself.
    qtrace.trace(*pair, smollm2.tokens(4), local=True)
    before = peak_of(lambda: bare(*pair, inputs))
    after = peak_of(diagnosis)
    times: dict[str, list[float]] = {"bare": [], "diagnosis": []}
    for _ in range(repetitions):
        for key in times:
            gc.collect()
            begin = time.perf_counter()
            if key == "bare":
                bare(*pair, inputs)
            else:
                diagnosis()
            times[key].append(time.perf_counter() - begin)
    return {
        "bare_s": min(times["bare"]),
        "diagnosis_s": min(times["diagnosis"]),
        "best_ratio": min(times["diagnosis"]) / min(times["bare"]),
        "median_ratio": statistics.median(times["diagnosis"]) / statistics.median(times["bare"]),
        "extra_mb": after - before,
    }


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[1]))))
    else:
        from bench.tables import show

        show("A diagnosis against two bare forwards, SmolLM2-135M, 512 tokens", run(*map(int, sys.argv[1:2])))
