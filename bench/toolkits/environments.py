"""An environment a toolkit, since some exclude each other: `python -m bench.toolkits.environments FOLDER [NAME …]`.

Each lies over the one that runs this, so that torch and transformers are not fetched again. Packages are taken without
their dependencies, which would bring CUDA builds of torch; those that are needed are in the lists.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

PACKAGES: dict[str, str] = {
    "torchao": "torchao==0.18.0",
    "quanto": "optimum-quanto==0.2.7 ninja",
    "peft": "peft==0.21.2",
    "bitsandbytes": "bitsandbytes==0.50.2",
    "compressed_tensors": "compressed-tensors==0.20.0 loguru",
    "brevitas": "brevitas==0.13.4 dependencies==2.0.1 unfoldNd setuptools<81",
    "modelopt": "nvidia-modelopt==0.47.0 PuLP ninja nvidia-ml-py omegaconf scipy antlr4-python3-runtime",
    "nncf": "nncf==3.4.0 cloudpickle joblib narwhals ninja openvino-telemetry pydot pyparsing scikit-learn scipy "
    "tabulate threadpoolctl",
    "neural_compressor": "neural-compressor==3.10 prettytable py-cpuinfo torchao==0.18.0 wcwidth",
    "quark": "amd-quark==0.13 aiohappyeyeballs aiohttp aiosignal attrs cloudpickle colorama datasets dill evaluate "
    "frozenlist joblib ml_dtypes multidict multiprocess narwhals ninja onnx onnxscript onnx-ir onnxslim plotly "
    "propcache protobuf pyarrow scipy sentencepiece xxhash yarl zstandard",
    # Not aimet: it needs torchvision, whose CUDA build does not load beside a torch for the CPU.
}


def interpreter(folder: Path, name: str) -> Path:
    """Return the interpreter of an environment, whether it is there or not; of "" the one that runs this."""
    return folder / name / "bin" / "python" if name else Path(sys.executable)


def make(folder: Path, name: str) -> None:
    """Make an environment over this one, and install its packages."""
    place = folder / name
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    own = sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)})
    Path(own, "qtrace_base.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter(folder, name)), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, *PACKAGES[name].split()], check=True)


if __name__ == "__main__":
    for chosen in sys.argv[2:] or PACKAGES:
        print(f"making {chosen} …", flush=True)
        make(Path(sys.argv[1]), chosen)
