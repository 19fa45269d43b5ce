"""Peak memory of a trace over that of two bare forwards, by depth: `python -m bench.memory`.

Each figure comes from a process of its own, so that no engine runs in what another one has set up.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import smollm2
from bench.engines import engines

LENGTH = 512
DEPTHS = (4, 8, 16, 30)


def run() -> list[dict[str, Any]]:
    """Return a row per depth and engine: `extra_mb` is the peak over that of two bare forwards in the same process."""
    if not smollm2.available():
        print("memory: skipped, SmolLM2 is not there; run `make models`", file=sys.stderr)
        return []
    rows = []
    for depth in DEPTHS:
        for name in engines():
            if name == "bare" or (name != "qtrace" and depth != DEPTHS[-1]):
                continue
            command = [sys.executable, "-m", "bench.memory", name, str(depth)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(
                {
                    "layers": depth,
                    "engine": name,
                    "tokens": LENGTH,
                    **json.loads(done.stdout.splitlines()[-1]),
                }
            )
    return rows


def measure(name: str, depth: int) -> dict[str, float]:
    """Return the peaks in MB after two bare forwards, and after the engine ran as well."""
    pair = smollm2.load_pair(depth)
    inputs = smollm2.tokens(LENGTH)
    chosen = engines()
    # What is imported and set up once, whatever the length, is no memory of the run itself.
    chosen[name](*pair, smollm2.tokens(4))
    before = peak_of(lambda: chosen["bare"](*pair, inputs))
    after = peak_of(lambda: chosen[name](*pair, inputs))
    return {"bare_mb": before, "extra_mb": after - before}


def peak_of(run: Callable[[], object]) -> float:
    """Return the most memory in MB that this process held while `run` ran; needs Linux, which can forget a peak."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    run()
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
    else:
        from bench.tables import show

        show("Peak memory over two bare forwards, SmolLM2-135M float32, 512 tokens", run())
