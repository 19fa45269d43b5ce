"""An environment a toolkit, since some exclude each other: `python -m bench.toolkits.environments FOLDER [NAME …]`.

Each lies over the one that runs this, so that torch and transformers are not fetched again. Packages are taken without
their dependencies, which would bring CUDA builds of torch; those that are needed are in the lists.
"""

from __future__ import annotations

import os
import shutil
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
    # It takes no newer transformers than this one, which lies before the other.
    "llmcompressor": "llmcompressor==0.14.0.1 transformers==5.17.0 compressed-tensors==0.19.0 datasets dill httpcore "
    "httpx huggingface-hub<2 loguru multiprocess nvidia-ml-py pyarrow xxhash",
    "brevitas": "brevitas==0.13.4 dependencies==2.0.1 unfoldNd setuptools<81",
    "modelopt": "nvidia-modelopt==0.47.0 PuLP ninja nvidia-ml-py omegaconf scipy antlr4-python3-runtime",
    "nncf": "nncf==3.4.0 cloudpickle joblib narwhals ninja openvino-telemetry pydot pyparsing scikit-learn scipy "
    "tabulate threadpoolctl",
    "neural_compressor": "neural-compressor==3.10 prettytable py-cpuinfo torchao==0.18.0 wcwidth",
    "quark": "amd-quark==0.13 aiohappyeyeballs aiohttp aiosignal attrs cloudpickle colorama datasets dill evaluate "
    "frozenlist joblib ml_dtypes multidict multiprocess narwhals ninja onnx onnxscript onnx-ir onnxslim plotly "
    "propcache protobuf pyarrow scipy sentencepiece xxhash yarl zstandard",
    "aimet": "aimet-torch==2.42.0 torchvision==0.28.0 bokeh ml_dtypes onnx onnx-ir onnxscript protobuf scipy tornado",
}
# Toolkits that are in the environment which runs this.
OWN = ("accelerate", "tico")
# Modules of this folder that an environment's interpreter imports when it starts.
AT_START = {"aimet": "torchvision_ops"}
# What some build from C++ when it is first needed, and cost a run minutes: it is built here instead.
BUILDS = {
    "quanto": "import optimum.quanto, torch; torch.ops.quanto.unpack(torch.zeros(8, 8, dtype=torch.uint8), 4)",
    "nncf": "import nncf.torch.extensions; nncf.torch.extensions.force_build_cpu_extensions()",
}
# What else a reader of the figures should know of an environment.
NOTES = {
    "aimet": "its torchvision, which is built for CUDA, is imported with two operators declared that do not exist "
    "here and that nothing calls (`bench/toolkits/torchvision_ops.py`)",
}


def interpreter(folder: Path, name: str) -> Path:
    """Return the interpreter of an environment, whether it is there or not; of "" the one that runs this."""
    return folder / name / "bin" / "python" if name else Path(sys.executable)


def variables(folder: Path, name: str) -> dict[str, str]:
    """Return this process's variables with the environment's programs on the path: what compiles C++ calls ninja."""
    programs = interpreter(folder, name).parent.absolute()
    return {**os.environ, "PATH": os.pathsep.join((str(programs), os.environ.get("PATH", "")))}


def pinned(name: str) -> list[str]:
    """Return the packages of an environment whose versions matter, by the names that pip gives them."""
    return [package.split("==")[0] for package in PACKAGES[name].split() if "==" in package]


def make(folder: Path, name: str) -> None:
    """Make an environment over this one, and install its packages."""
    place = folder / name
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}))
    (own / "qtrace_base.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter(folder, name)), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, *PACKAGES[name].split()], check=True)
    if name in AT_START:
        module = AT_START[name]
        shutil.copy(Path(__file__).with_name(f"{module}.py"), own)
        (own / f"{module}.pth").write_text(f"import {module}\n")
    if name in BUILDS:
        subprocess.run([str(interpreter(folder, name)), "-c", BUILDS[name]], check=True, env=variables(folder, name))


if __name__ == "__main__":
    for chosen in sys.argv[2:] or PACKAGES:
        print(f"making {chosen} …", flush=True)
        make(Path(sys.argv[1]), chosen)
