"""How long help and the check of a stored report take, beside an empty typer app: as processes, in turns."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import qtrace
from qtrace.zoo import llama

ROUNDS = 15
QUIET = subprocess.DEVNULL
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
BASE = "empty typer app"


def programs(folder: Path) -> dict[str, list[str]]:
    """Return the commands by name; what they read is written to `folder`."""
    report, policy, baseline = folder / "report.json", folder / "policy.yaml", folder / "baseline.json"
    qtrace.trace(llama.tiny(), llama.tiny(), llama.tokens()).save(report)
    policy.write_text("max_peir: 1e-4\noverrides: {model.layers.**: 1e-3}\nmin_coverage: 0.9\n")
    command = [sys.executable, "-m", "qtrace"]
    check = [*command, "check", str(report)]
    subprocess.run([*check, "--baseline", str(baseline), "--update-baseline", "--quiet"], check=True, stdout=QUIET)
    return {
        BASE: [sys.executable, "-c", EMPTY],
        "qtrace --help": [*command, "--help"],
        "qtrace check REPORT.json --policy": [*check, "--policy", str(policy)],
        "qtrace check REPORT.json --baseline": [*check, "--baseline", str(baseline)],
    }


def run(rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Return a row per program: best and median seconds, and both as ratios to the empty app's."""
    with tempfile.TemporaryDirectory() as folder:
        commands = programs(Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for program in commands.values():
            _time(program)  # Fills the disk cache and the bytecode cache.
        for _ in range(rounds):
            for name, program in commands.items():
                seconds[name].append(_time(program))
    base = seconds[BASE]
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
    subprocess.run(program, check=True, stdout=QUIET)
    return time.perf_counter() - start


if __name__ == "__main__":
    for row in run():
        numbers = "  ".join(f"{key} {value:.3f}" for key, value in row.items() if key != "program")
        print(f"{row['program']:<37}{numbers}")
