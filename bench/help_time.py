"""How long `qtrace --help` takes, beside a typer app with two empty commands: both as processes, in turns."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

ROUNDS = 15
EMPTY = """
import typer

app = typer.Typer()

@app.command()
def first() -> None:
    "The first command."

@app.command()
def second() -> None:
    "The second command."

app(["--help"])
"""
PROGRAMS = {
    "empty typer app": [sys.executable, "-c", EMPTY],
    "qtrace --help": [sys.executable, "-m", "qtrace", "--help"],
}


def run(rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Return a row per program: best and median seconds, and both as ratios to the empty app's."""
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for program in PROGRAMS.values():
        _time(program)  # Fills the disk cache and the bytecode cache.
    for _ in range(rounds):
        for name, program in PROGRAMS.items():
            seconds[name].append(_time(program))
    base = seconds["empty typer app"]
    return [
        {
            "program": name,
            "best_s": min(times),
            "median_s": statistics.median(times),
            "best_ratio": min(times) / min(base),
            "median_ratio": statistics.median(times) / statistics.median(base),
        }
        for name, times in seconds.items()
    ]


def _time(program: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    for row in run():
        numbers = "  ".join(f"{key} {value:.3f}" for key, value in row.items() if key != "program")
        print(f"{row['program']:<18}{numbers}")
