"""Run the rounding bench: `python -m bench.rounding [--only GLOB] [--jobs N]`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

import qtrace
from bench.rounding import score
from bench.tables import markdown, show

RESULTS = Path(__file__).resolve().parents[1] / "results"


def main() -> None:
    """Run the chosen cases and print the score; a run of all cases is also written to bench/results/rounding.*."""
    parser = argparse.ArgumentParser(prog="python -m bench.rounding", description="Score qtrace on quantized models.")
    parser.add_argument("--only", metavar="GLOB", default="*", help="run the cases whose id matches, such as 'right/*'")
    parser.add_argument("--jobs", metavar="N", type=int, default=os.cpu_count() or 1, help="how many processes run")
    options = parser.parse_args()
    names = score.ids(options.only)
    if not names:
        parser.error(f"no case matches {options.only!r}")
    results = score.run(names, options.jobs, _progress)
    sections = {title: rows for title, rows in score.tables(results).items() if rows}
    for title, rows in sections.items():
        show(title, rows)
    if options.only == "*":
        _write(results, {**sections, "Wrong answers": [_row(one) for one in results if not one.right]})


def _row(result: score.Result) -> dict[str, Any]:
    return {
        "case": result.id,
        "kind": result.kind,
        "scheme": f"{result.scheme} {result.bits}",
        "model": result.model,
        "form": result.form,
        "size": result.ratio,
        "answer": result.path or "none",
        "named": ", ".join(result.named) or "none",
        "outcome": result.outcome,
    }


def _progress(result: score.Result) -> None:
    verdict = (
        "right" if result.right else "WRONG  " + "  ".join(f"{key}: {value}" for key, value in _row(result).items())
    )
    print(f"{result.seconds:6.2f} s  {result.id}  {result.outcome}  {verdict}", file=sys.stderr, flush=True)


def _write(results: list[score.Result], sections: dict[str, list[dict[str, Any]]]) -> None:
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "qtrace": qtrace.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cases": len(results),
        "seconds": round(sum(one.seconds for one in results)),
    }
    RESULTS.mkdir(exist_ok=True)
    head = "# Rounding bench\n\n" + "\n".join(f"- {name}: {value}" for name, value in about.items()) + "\n\n"
    text = head + "\n".join(markdown(title, rows) for title, rows in sections.items() if rows)
    (RESULTS / "rounding.md").write_text(text)
    data = [{**dataclasses.asdict(one), "right": one.right} for one in results]
    (RESULTS / "rounding.json").write_text(json.dumps({"about": about, "results": data}, indent=1) + "\n")


if __name__ == "__main__":
    main()
