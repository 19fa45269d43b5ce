"""Run the fault bench: `python -m bench.faults [--only GLOB] [--list] [--store-right]`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import torch
import transformers

import qtrace
from bench.faults import score, tables
from bench.faults.catalogue import cases
from bench.tables import markdown, show

RESULTS = Path(__file__).resolve().parents[1] / "results"


def main() -> None:
    """Run the chosen cases and print the score; a run of all cases is also written to bench/results/faults.*."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description="Score qtrace on injected faults.")
    parser.add_argument("--only", metavar="GLOB", default="*", help="run the cases whose id matches, such as 'llama/*'")
    parser.add_argument("--list", action="store_true", help="list the cases with their answers, and run nothing")
    parser.add_argument("--store-right", action="store_true", help="keep the ids of the right cases in right.txt")
    options = parser.parse_args()
    if options.store_right and options.only != "*":
        parser.error("--store-right keeps the list of all cases; leave --only away")
    try:
        chosen = cases(options.only)
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        for case in chosen:
            answers = " | ".join(path or "<root>" for path in sorted(case.answers)) or "no finding"
            print(f"{case.id}  [{case.fault}]  {answers}\n    {case.why.splitlines()[0]}")
        return

    # The models are tiny: a team of threads would cost more than it brings.
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    results = score.run([case.id for case in chosen], progress=_progress)
    sections = {
        "The right module named first, beside three common heuristics": tables.named_first(results),
        "Faults: right / cases": tables.with_fault(results),
        "Pairs without a culprit: right / cases": tables.without_culprit(results),
    }
    for title, rows in sections.items():
        show(title, rows)
    if options.only == "*":
        _write(results, {**sections, "Cases": tables.per_case(results)})
    if options.store_right:
        score.store_right(results)


def _progress(result: score.Result) -> None:
    row = tables.per_case([result])[0]
    verdict = "right" if result.right else f"WRONG  answer: {row['answer'] or 'none'}, named: {row['named'] or 'none'}"
    print(f"{result.seconds:6.2f} s  {result.id}  {result.outcome}  {verdict}", file=sys.stderr, flush=True)


def _write(results: list[score.Result], sections: dict[str, list[dict[str, object]]]) -> None:
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "qtrace": qtrace.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cases": len(results),
        "right": sum(result.right for result in results),
        "overclaims": sum(result.overclaims for result in results),
    }
    RESULTS.mkdir(exist_ok=True)
    head = "# Fault bench\n\n" + "\n".join(f"- {name}: {value}" for name, value in about.items()) + "\n\n"
    text = head + "\n".join(markdown(title, rows) for title, rows in sections.items() if rows)
    (RESULTS / "faults.md").write_text(text)
    data = [{**dataclasses.asdict(result), "right": result.right} for result in results]
    (RESULTS / "faults.json").write_text(json.dumps({"about": about, "results": data}, indent=1) + "\n")


if __name__ == "__main__":
    main()
