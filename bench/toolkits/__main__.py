"""Run every toolkit in its environment: `python -m bench.toolkits [--environments FOLDER] [--only GLOB]`.

A run of all writes docs/toolkits.md and bench/results/toolkits.json.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

import qtrace
from bench.toolkits.environments import interpreter, variables
from bench.toolkits.page import page
from bench.toolkits.subjects import available
from bench.toolkits.ways import WAYS, Way

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "toolkits.json"
PAGE = ROOT / "docs" / "toolkits.md"
ENVIRONMENTS = ROOT / ".cache" / "toolkits"
LIMIT_S = 600


def main() -> None:
    """Run the chosen ways, one process each; rows of ways that were not chosen are kept from the run before."""
    parser = argparse.ArgumentParser(prog="python -m bench.toolkits", description="Coverage by toolkit.")
    parser.add_argument("--environments", metavar="FOLDER", type=Path, default=ENVIRONMENTS)
    parser.add_argument(
        "--only", metavar="GLOB", default="*", help="run the ways whose name matches, such as 'torchao*'"
    )
    parser.add_argument("--missing", action="store_true", help="run only the ways that have no row yet")
    options = parser.parse_args()
    before = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    done = {row["way"] for row in before} if options.missing else set()
    chosen = [way for way in WAYS if fnmatch.fnmatch(way.name, options.only) and way.name not in done]
    names = {way.name for way in chosen}
    found: dict[str, list[dict[str, Any]]] = {way.name: [] for way in WAYS}
    for row in before:
        if row["way"] in found and row["way"] not in names:
            found[row["way"]].append(row)
    about = {"qtrace": qtrace.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    about["date"] = time.strftime("%Y-%m-%d")
    rows: list[dict[str, Any]] = []
    for way in chosen:
        if interpreter(options.environments, way.environment).exists():
            found[way.name] = run(way, options.environments)
        # After each: it takes long, and may be ended in between.
        rows = [row for way in WAYS for row in found[way.name]]
        RESULTS.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    absent = [way for way in WAYS if not found[way.name]]
    PAGE.write_text(page(about, WAYS, rows, absent))
    wrong = sum(len(row["checked"]["wrong"]) for row in rows if "checked" in row)
    print(f"{len(rows)} runs, {len(absent)} ways not run, {wrong} wrong pairs; {PAGE.relative_to(ROOT)}")


def run(way: Way, environments: Path) -> list[dict[str, Any]]:
    """Return a way's rows, from a process of its own; one that ended early says so for the models that are missing."""
    command = [str(interpreter(environments, way.environment)), "-m", "bench.toolkits.case", way.name]
    environment = {**variables(environments, way.environment), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    why = ""
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
        output, why = done.stdout, (done.stderr.strip().splitlines() or ["no message"])[-1]
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        why = f"did not end within {LIMIT_S} s"
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    for row in rows:
        said = row.get("refused") or f"{row['aligned']}/{row['calls']} aligned, {row['outcome']}"
        print(f"{way.name}, {row['model']}: {said}", flush=True)
    ran = {row["model"] for row in rows}
    for model in way.models:
        if model not in ran and available(model):
            print(f"{way.name}, {model}: {why}", file=sys.stderr, flush=True)
            rows.append({"way": way.name, "model": model, "refused": f"the process ended before: {why}"})
    return rows


if __name__ == "__main__":
    main()
