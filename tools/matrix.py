"""Two environments for real: the reference runs under one transformers, the candidate under another with tico.

`python tools/matrix.py FOLDER` makes the older environment in FOLDER, unless it is there, over the one that runs this,
and captures a tiny Qwen3-VL in it; the wrapped one is captured here. The same weights go to both, since two versions
draw other random ones. It fails unless the comparison names the known bug first, and finds the correct wrapper clean,
read by either.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

OLD = ("transformers==4.57.6", "huggingface-hub<1.0", "tokenizers>=0.22.0,<=0.23.0")
ROOT = Path(__file__).resolve().parents[1]
MODELS = """
from safetensors.torch import load_file, save_file
from qtrace.zoo.qwen3_vl import image_and_text, mask_bug, tiny

def rotary(model): return model.model.language_model.rotary_emb

def save():
    model = tiny()
    save_file({**model.state_dict(), "inv_freq": rotary(model).inv_freq}, "weights.safetensors")

def reference():
    model, weights = tiny(), load_file("weights.safetensors")
    # The default of rope_theta is 5e6 in one version and 5e5 in the other.
    rotary(model).inv_freq.copy_(weights.pop("inv_freq"))
    model.load_state_dict(weights)
    return model

def wrapped(reference):
    from qtrace.toolkits.tico import wrap
    return wrap(reference, [], quantize=False)
"""


def older(folder: Path) -> Path:
    """Return the interpreter of the older environment, which is made where it is not there."""
    python = folder / "bin" / "python"
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    ready = folder / ".ready"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        # Torch and the rest are taken from here; what is installed there comes first.
        (own / "matrix_base.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--ignore-installed"]
        # Their other dependencies are here already.
        if subprocess.run([*pip, "--no-deps", *OLD], check=False).returncode:
            raise SystemExit(f"matrix: {', '.join(OLD)} cannot be installed in {folder}; it needs the network once")
        ready.touch()
    return python


class Matrix:
    """Runs qtrace in both environments, in a folder of its own."""

    def __init__(self, old: Path, folder: Path) -> None:
        self._old, self._new, self._folder = old, Path(sys.executable), folder
        (folder / "models.py").write_text(MODELS)
        self._run(self._new, "-c", "import models; models.save()")

    def captured(self) -> None:
        """Capture the reference in the older environment, the two candidates in this one."""
        inputs = ("--reference", "models.py:reference", "--inputs", "models.py:image_and_text")
        self._qtrace(self._old, "capture", *inputs, "--out", "reference.trace")
        for name in ("mask_bug", "wrapped"):
            candidate = ("--candidate", f"models.py:{name}", "--side", "candidate", "--out", f"{name}.trace")
            self._qtrace(self._new, "capture", *inputs, *candidate)

    def compared(self, name: str) -> list[dict[str, Any]]:
        """Return the reports of a candidate's trace against the reference's, read by either environment."""
        reports = []
        for python in (self._old, self._new):
            self._qtrace(python, "diff", "reference.trace", f"{name}.trace", "--quiet", "--report", "report.json")
            reports.append(json.loads((self._folder / "report.json").read_text()))
        return reports

    def versions(self, name: str) -> str:
        """Return which transformers a trace was captured under."""
        manifest = json.loads((self._folder / f"{name}.trace" / "manifest.json").read_text())
        return str(manifest["environment"]["versions"]["transformers"])

    def _qtrace(self, python: Path, *words: str) -> None:
        self._run(python, "-m", "qtrace", *words)

    def _run(self, python: Path, *words: str) -> None:
        environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
        subprocess.run([str(python), *words], cwd=self._folder, env=environment, check=True)


def main(folder: Path) -> None:
    """Run the matrix and say what was found; ends with an assertion where it is not as it must be."""
    with tempfile.TemporaryDirectory(prefix="qtrace-matrix-") as place:
        matrix = Matrix(older(folder), Path(place))
        matrix.captured()
        versions = matrix.versions("reference"), matrix.versions("mask_bug")
        assert versions[0] != versions[1], versions
        for report in (bugs := matrix.compared("mask_bug")):
            found = [(one["kind"], one["module"], one["argument"], one["confirmed"]) for one in report["findings"]]
            assert found[0] == ("miscalls", "model.language_model", "attention_mask", False), found
        for report in (clean := matrix.compared("wrapped")):
            assert (report["outcome"], report["findings"]) == ("clean", []), report["outcome"]
        for one, other in (bugs, clean):
            assert one["rows"] == other["rows"], "the two environments read other numbers out of the same traces"
        print(f"transformers {versions[0]} against {versions[1]}: the bug is named, the correct wrapper is clean")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
