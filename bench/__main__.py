"""Run every benchmark, print its table, and write all of them to bench/results/: `python -m bench`."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path

import torch

from bench import diagnosis, help_time, kernel, memory, overhead, store
from bench.tables import markdown, show

RESULTS = Path(__file__).parent / "results"
BENCHMARKS = {
    "Time against two bare forwards, SmolLM2-135M float32": overhead.run,
    "Peak memory over two bare forwards, SmolLM2-135M float32": memory.run,
    "A diagnosis against two bare forwards, SmolLM2-135M": diagnosis.run,
    "Traces on disk, SmolLM2-135M float32": store.run,
    "Statistics kernel": kernel.run,
    "Start-up of the command line": help_time.run,
}


def main() -> None:
    """Run all; the results go to `latest.md` and `latest.json`."""
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    results = {}
    for title, benchmark in BENCHMARKS.items():
        results[title] = benchmark()
        show(title, results[title])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latest.json").write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")
    head = "# Benchmark results\n\n" + "\n".join(f"- {name}: {value}" for name, value in about.items()) + "\n\n"
    (RESULTS / "latest.md").write_text(head + "\n".join(markdown(t, r) for t, r in results.items() if r))


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
