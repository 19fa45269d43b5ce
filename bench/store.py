"""Traces on disk: what a capture costs in memory and time, how fast two are compared: `python -m bench.store`.

Each figure comes from a process of its own. Writing is held against a plain safetensors file of the same tensors,
which is synced to disk as well.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import smollm2
from bench.memory import peak_of

LENGTH = 512
REPETITIONS = 3


def run(repetitions: int = REPETITIONS) -> list[dict[str, Any]]:
    """Return a row each for memory, writing and comparing; ratios are best over best."""
    if not smollm2.available():
        print("store: skipped, SmolLM2 is not there; run `make models`", file=sys.stderr)
        return []
    rows = []
    with tempfile.TemporaryDirectory(prefix="qtrace-bench-") as folder:
        for name in MEASURES:
            command = [sys.executable, "-m", "bench.store", name, folder, str(repetitions)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append({"measure": name, "tokens": LENGTH, **json.loads(done.stdout.splitlines()[-1])})
    return rows


def memory(folder: Path, repetitions: int) -> dict[str, float]:
    """Return the peaks in MB of a bare forward, and of a capture over it."""
    from qtrace.traces.capture import capture

    model, _ = smollm2.load_pair()
    inputs = smollm2.tokens(LENGTH)
    capture(model, smollm2.tokens(4), folder / "small")
    before = peak_of(lambda: bare(model, inputs))
    after = peak_of(lambda: capture(model, inputs, folder / "memory"))
    return {"bare_mb": before, "extra_mb": after - before, "trace_mb": size_of(folder / "memory") / 1e6}


def writing(folder: Path, repetitions: int) -> dict[str, float]:
    """Return the time that a capture adds to the forward, against a plain file of the same tensors."""
    from safetensors.torch import save_file

    from qtrace.traces import Trace
    from qtrace.traces.capture import capture

    pair = smollm2.load_pair()
    inputs = smollm2.tokens(LENGTH)
    for name, model in zip(("reference", "candidate"), pair, strict=True):
        capture(model, inputs, folder / name)
    trace = Trace(folder / "reference")
    stored = {tensor.digest: n for n, tensor in enumerate(trace.manifest.tensors) if tensor.shard is not None}
    tensors = {name: trace.tensor(number) for name, number in stored.items()}

    def plain() -> None:
        save_file(tensors, folder / "plain.safetensors")
        with (folder / "plain.safetensors").open("rb") as file:
            os.fsync(file.fileno())

    def captured() -> None:
        shutil.rmtree(folder / "again", ignore_errors=True)
        capture(pair[0], inputs, folder / "again")

    times = best(repetitions, bare=lambda: bare(pair[0], inputs), capture=captured, plain=plain)
    added = times["capture"] - times["bare"]
    return {
        **{f"{name}_s": taken for name, taken in times.items()},
        "trace_mb": size_of(folder / "again") / 1e6,
        "added_to_plain": added / times["plain"],
    }


def comparing(folder: Path, repetitions: int) -> dict[str, float]:
    """Return the speed of a comparison, in bytes of both traces, and how often a tensor of them is read."""
    import qtrace
    from qtrace.traces import Trace, skeleton
    from qtrace.traces.shards import ShardReader

    reads = 0
    read = ShardReader.read

    def counted(self: ShardReader, tensor: Any) -> torch.Tensor:
        nonlocal reads
        reads += 1
        return read(self, tensor)

    ShardReader.read = counted  # type: ignore[method-assign]
    pair = folder / "reference", folder / "candidate"
    tensors = sum(len({t.digest for t in Trace(one).manifest.tensors}) for one in pair)
    processor: list[float] = []

    def diff() -> None:
        begin = time.process_time()
        qtrace.trace(skeleton(Trace(pair[0])), skeleton(Trace(pair[1])), [()], local=False)
        processor.append(time.process_time() - begin)

    taken = best(repetitions, diff=diff)["diff"]
    amount = sum(map(size_of, pair))
    return {
        "diff_s": taken,
        "traces_mb": amount / 1e6,
        "gb_per_s": amount / taken / 1e9,
        # Of a machine that is shared, this says more.
        "gb_per_cpu_s": amount / min(processor) / 1e9,
        "reads_per_tensor": reads / (repetitions + 1) / tensors,
    }


MEASURES: dict[str, Callable[[Path, int], dict[str, float]]] = {
    "capture: memory": memory,
    "capture: time": writing,
    "diff": comparing,
}


def bare(model: torch.nn.Module, inputs: dict[str, Any]) -> None:
    """Run the model and keep nothing."""
    with torch.no_grad():
        model(**inputs)


def best(repetitions: int, **each: Callable[[], object]) -> dict[str, float]:
    """Return the best time of each after a first run; they take turns, so that a busy moment hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in each}
    for _ in range(repetitions + 1):
        for name, function in each.items():
            begin = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - begin)
    return {name: min(taken[1:]) for name, taken in times.items()}


def size_of(folder: Path) -> int:
    """Return the bytes of all files of a trace."""
    return sum(path.stat().st_size for path in folder.iterdir())


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(json.dumps(MEASURES[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        from bench.tables import show

        # One table each: together they are wider than a screen.
        for row in run():
            show(f"Traces on disk, SmolLM2-135M float32: {row['measure']}", [row])
