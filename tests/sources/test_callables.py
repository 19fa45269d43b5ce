"""Python callables as sources: how they are found and called, and what is said when that fails."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from qtrace.errors import QtraceError, SourceError, UsageError
from qtrace.sources import callables
from qtrace.sources.models import load_model
from qtrace.sources.spec import LoadOptions

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write Python files into the current, empty folder; what importing them changes is undone afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(callables, "_FILES", {})
    before = set(sys.modules)

    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    yield write_file
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


MODELS = """
    import torch
    from torch import nn
    from widths import WIDTH

    def make(width=WIDTH):
        return nn.Linear(width, width)

    def halved(reference, factor=0.5):
        with torch.no_grad():
            reference.weight.mul_(factor)
        return reference

    def nothing():
        return None

    def two():
        return 1, 2

    def boom():
        return deeper()

    def deeper():
        raise ValueError("the weights\\nare gone")

    def leave():
        raise SystemExit(3)

    def needs(width, depth):
        return nn.Linear(width, depth)

    def anything(**kwargs):
        return nn.Linear(**kwargs)

    class Factory:
        @staticmethod
        def make():
            return nn.Linear(2, 2)

    class Net(nn.Linear):
        def __init__(self):
            super().__init__(3, 3)

    ready = nn.Linear(3, 3)
    number = 4
"""


@pytest.fixture
def models(write: Write) -> Path:
    write("widths.py", "WIDTH = 4\n")
    return write("models_here.py", MODELS)


def test_a_file_is_imported_with_its_siblings_and_only_once(write: Write, models: Path) -> None:
    with models.open("a") as file:
        file.write("\nwith open('loads', 'a') as log:\n    log.write('x')\n")
    first = load_model("models_here.py:make")
    assert isinstance(first, nn.Linear)
    assert first.in_features == 4
    load_model(f"{models}:Net")
    assert Path("loads").read_text() == "x"


def test_a_sibling_sees_the_same_module(write: Write, models: Path) -> None:
    write("widths.py", "import models_here\nWIDTH = 5\nSAME = models_here\n")
    load_model("models_here.py:make")
    assert sys.modules["widths"].SAME is sys.modules["models_here"]


@pytest.mark.parametrize("name", ["json.py", "torch.py", "tokenize.py"])
def test_a_file_does_not_hide_a_module_of_its_name(write: Write, name: str) -> None:
    write(name, "from torch import nn\ndef make():\n    return nn.Linear(2, 2)\n")
    before = importlib.import_module(name.removesuffix(".py"))
    found = callables.find_object(f"{name}:make")
    assert found.__module__.startswith("_qtrace_file_")
    assert sys.modules[name.removesuffix(".py")] is before


def test_a_module_is_found_from_the_current_directory(write: Write) -> None:
    write("package_here/__init__.py", "")
    write("package_here/nets.py", "from torch import nn\ndef make():\n    return nn.Linear(2, 2)\n")
    assert isinstance(load_model("package_here.nets:make"), nn.Linear)


def test_a_relative_file_is_looked_for_in_the_configs_folder_too(write: Write, models: Path) -> None:
    inner = write("inner/more_models.py", "from torch import nn\ndef make():\n    return nn.Linear(7, 7)\n")
    model = load_model("more_models.py:make", options=LoadOptions(folder=inner.parent))
    assert isinstance(model, nn.Linear)
    assert model.in_features == 7


@pytest.mark.parametrize("name", ["Factory.make", "Net", "ready"])
def test_dotted_names_classes_and_ready_modules_are_models(models: Path, name: str) -> None:
    assert isinstance(load_model(f"models_here.py:{name}"), nn.Linear)


def test_args_are_handed_over(models: Path) -> None:
    model = load_model("models_here.py:make", args={"width": 6})
    assert isinstance(model, nn.Linear)
    assert model.in_features == 6
    model = load_model("models_here.py:anything", args={"in_features": 2, "out_features": 3})
    assert isinstance(model, nn.Linear)
    assert model.out_features == 3


def test_a_model_keeps_the_mode_that_its_callable_left_it_in(models: Path) -> None:
    assert load_model("models_here.py:make").training


def test_a_candidate_gets_a_copy_of_the_reference(models: Path) -> None:
    reference = nn.Linear(2, 2)
    weight = reference.weight.detach().clone()
    candidate = load_model("models_here.py:halved", reference=reference)
    assert candidate is not reference
    assert torch.equal(reference.weight, weight)
    assert torch.equal(candidate.get_parameter("weight"), weight * 0.5)


def test_a_reference_that_cannot_be_copied_says_what_to_do(models: Path) -> None:
    reference = nn.Linear(2, 2)
    reference.lock = (item for item in [1])  # type: ignore[assignment]
    with pytest.raises(SourceError) as caught:
        load_model("models_here.py:halved", reference=reference)
    assert str(caught.value) == (
        "the reference Linear cannot be deep-copied for a candidate to wrap "
        "(cannot pickle 'generator' object); "
        "give a candidate callable without the parameter reference, which builds its own"
    )


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("models_here.py:nothing", SourceError, "{} returned None; expected a torch.nn.Module"),
        ("models_here.py:two", SourceError, "{} returned a value of type tuple; expected a torch.nn.Module"),
        (
            "models_here.py:number",
            SourceError,
            "{} is of type int; expected a callable that returns a torch.nn.Module",
        ),
        (
            "models_here.py:boom",
            SourceError,
            "{} raised ValueError: the weights are gone (models_here.py:{raise ValueError})",
        ),
        ("models_here.py:leave", SourceError, "{} raised SystemExit: 3 (models_here.py:{raise SystemExit})"),
        (
            "models_here.py:needs",
            UsageError,
            "{} needs the parameters width, depth; give them under args in the config",
        ),
        (
            "models_here.py:halved",
            UsageError,
            "{} takes the parameter reference, so it makes a candidate; give it as --candidate",
        ),
        ("models_here.py:maek", SourceError, "{}: models_here.py has no maek; did you mean make?"),
        ("models_here.py:Factory.maek", SourceError, "{}: models_here.py has no maek; did you mean make?"),
        ("model_here.py:make", SourceError, "no such file: model_here.py; did you mean models_here.py?"),
        (
            "nowhere/zz.py:make",
            SourceError,
            "no such file: nowhere/zz.py (looked in the current directory)",
        ),
        (
            "model_here:make",
            SourceError,
            "{}: there is no module model_here; did you mean models_here?",
        ),
        (
            "zzzzzz:make",
            SourceError,
            "{}: there is no module zzzzzz; is its folder the current one, or on PYTHONPATH?",
        ),
        ("qtrace.zoo.lama:tiny", SourceError, "{}: qtrace.zoo has no module lama; did you mean llama?"),
        ("qtrace.zoo.llama:tinny", SourceError, "{}: qtrace.zoo.llama has no tinny; did you mean tiny?"),
    ],
)
def test_what_is_wrong_with_a_callable_is_one_sentence(
    models: Path, spec: str, kind: type[QtraceError], message: str
) -> None:
    with pytest.raises(kind) as caught:
        load_model(spec)
    lines = models.read_text().splitlines()
    for marker in ("raise ValueError", "raise SystemExit"):
        number = next(index for index, line in enumerate(lines, 1) if marker in line)
        message = message.replace(f"{{{marker}}}", str(number))
    assert str(caught.value) == message.replace("{}", spec)
    assert caught.type is kind


def test_the_users_exception_is_the_cause(models: Path) -> None:
    with pytest.raises(SourceError) as caught:
        load_model("models_here.py:boom")
    assert isinstance(caught.value.__cause__, ValueError)


def test_args_that_are_not_taken_name_near_ones(models: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_model("models_here.py:make", args={"widht": 3})
    assert str(caught.value) == (
        "models_here.py:make takes no parameter widht, which stands in args; did you mean width?"
    )


def test_one_missing_parameter_is_named(models: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_model("models_here.py:needs", args={"width": 3})
    assert str(caught.value) == ("models_here.py:needs needs the parameter depth; give it under args in the config")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:\n", "SyntaxError: invalid syntax (broken.py:1)"),
        ("x = 1\nimport nope_nope\n", "ModuleNotFoundError: No module named 'nope_nope' (broken.py:2)"),
        ("raise RuntimeError('no gpu')\n", "RuntimeError: no gpu (broken.py:1)"),
        ("import sys\nsys.exit(2)\n", "SystemExit: 2 (broken.py:2)"),
        ("import json\n\njson.loads('{')\n", "JSONDecodeError: Expecting property name enclosed in double"),
        ("raise RuntimeError\n", "RuntimeError: no message (broken.py:1)"),
    ],
)
@pytest.mark.parametrize("target", ["broken.py", "broken"])
def test_an_error_while_importing_names_its_place(write: Write, text: str, message: str, target: str) -> None:
    write("broken.py", text)
    with pytest.raises(SourceError) as caught:
        load_model(f"{target}:make")
    assert str(caught.value).startswith(f"{target}:make: importing {target} raised {message}")
    assert "broken.py:" in str(caught.value)
    assert "broken" not in sys.modules
