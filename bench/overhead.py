"""Time of a trace against two bare forwards of the same two models: `python -m bench.overhead [REPETITIONS]`.

The engines take turns within each repetition, so that a busy moment of the machine hits all of them.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from typing import Any

from bench import smollm2
from bench.engines import engines

LENGTHS = (128, 512)
REPETITIONS = 7


def run(repetitions: int = REPETITIONS) -> list[dict[str, Any]]:
    """Return a row per length and engine: best, median and spread in seconds, and the ratios to the bare forwards.

    `best_ratio` is best over best, `median_ratio` median over median.
    """
    if not smollm2.available():
        print("overhead: skipped, SmolLM2 is not there; run `make models`", file=sys.stderr)
        return []
    pair = smollm2.load_pair()
    rows = []
    for length in LENGTHS:
        inputs = smollm2.tokens(length)
        chosen = engines()
        for engine in chosen.values():
            engine(*pair, inputs)
        times: dict[str, list[float]] = {name: [] for name in chosen}
        for _ in range(repetitions):
            for name, engine in chosen.items():
                # What an engine left for the collector shall not slow down the one that comes next.
                gc.collect()
                begin = time.perf_counter()
                engine(*pair, inputs)
                times[name].append(time.perf_counter() - begin)
        for name, taken in times.items():
            rows.append(
                {
                    "tokens": length,
                    "engine": name,
                    "best_s": min(taken),
                    "median_s": statistics.median(taken),
                    "worst_s": max(taken),
                    "best_ratio": min(taken) / min(times["bare"]),
                    "median_ratio": statistics.median(taken) / statistics.median(times["bare"]),
                }
            )
    return rows


if __name__ == "__main__":
    from bench.tables import show

    show("Time against two bare forwards, SmolLM2-135M float32", run(*map(int, sys.argv[1:2])))
