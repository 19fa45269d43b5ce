"""The command line as a whole: help, version, completion, errors, and what it costs to start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import qtrace
from qtrace.cli import main
from qtrace.cli.app import command
from qtrace.cli.options import CompareOptions, PairOptions, RuntimeOptions, ScreenOptions, given
from qtrace.cli.session import typed
from qtrace.errors import ForwardError, Interrupted, OutputError, QtraceError, SourceError, UsageError
from tests.cli.test_run import MODELS, Ended, options, process

# Typer itself parses options with pydantic, where that is installed.
HEAVY = ("torch", "transformers", "numpy", "yaml", "greenlet")
MODULES_AFTER = """
import sys
{before}
sys.argv = ["qtrace", *{arguments!r}]
from qtrace.cli import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
print("loaded:", *[name for name in {heavy!r} if name in sys.modules])
"""


def loaded_after(*arguments: str, before: str = "") -> list[str]:
    """Return which heavy packages are there when a command has ended, in a process of its own."""
    code = MODULES_AFTER.format(arguments=list(arguments), heavy=HEAVY, before=before)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return ended.stdout.splitlines()[-1].removeprefix("loaded:").split()


@pytest.mark.parametrize("arguments", [["--help"], [], ["--version"], ["run", "--help"], ["modules", "--help"]])
def test_help_is_light(arguments: list[str]) -> None:
    assert loaded_after(*arguments) == []


def test_the_test_of_light_help_can_fail() -> None:
    assert loaded_after("--help", before="import yaml, numpy") == ["numpy", "yaml"]


def test_without_arguments_there_is_help() -> None:
    ended = process()
    assert ended.returncode == 0
    assert "Usage: qtrace" in ended.stdout
    assert ended.stdout == process("--help").stdout
    for name in ("run", "modules", "--version", "--install-completion"):
        assert name in ended.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert Ended(capsys, "--version").out == f"qtrace {qtrace.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rnu"], "error: No such command 'rnu'. Did you mean 'run'? (see `qtrace --help`)"),
        (["run", "--tpo", "3"], "error: No such option: --tpo"),
        (["run", "a.yaml", "b.yaml"], "error: Got unexpected extra argument"),
        (["run", "--seed"], "error: Option '--seed' requires an argument."),
    ],
)
def test_a_wrong_command_line_is_one_sentence(arguments: list[str], words: str) -> None:
    ended = process(*arguments)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith(words)
    assert ended.stderr.count("\n") == 1


def test_shell_completion_knows_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_QTRACE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "qtrace mo")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert process().stdout.split() == ["modules"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (QtraceError("said"), 1),
        (UsageError("said"), 2),
        (SourceError("said"), 1),
        (OutputError("said"), 1),
        (ForwardError("said", side="candidate", module="layers.0"), 1),
        (Interrupted("said"), 130),
    ],
)
def test_each_error_ends_with_its_code_and_its_sentence(
    error: QtraceError, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = raising(error, capsys, monkeypatch)
    assert (ended.code, ended.out, ended.err) == (code, "", "error: said\n")


def test_traceback_shows_where_an_error_was_raised(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = raising(UsageError("said"), capsys, monkeypatch, "--traceback")
    assert ended.code == 2
    assert "Traceback (most recent call last)" in ended.err
    assert "in configured" in ended.err
    assert ended.err.endswith("error: said\n")


def test_what_nobody_expected_is_called_a_bug(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = raising(RuntimeError("broken\nmore"), capsys, monkeypatch)
    sentence = "error: RuntimeError: broken; this is a bug in qtrace; --traceback shows where, please report it\n"
    assert (ended.code, ended.err) == (1, sentence)


def test_an_interrupt_before_the_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ended = raising(KeyboardInterrupt(), capsys, monkeypatch)
    assert (ended.code, ended.err) == (130, "error: interrupted\n")


def raising(
    error: BaseException, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> Ended:
    """Run a command in which reading the config raises `error`."""

    def configured(*ignored: object, **also_ignored: object) -> None:
        raise error

    monkeypatch.setattr("qtrace.config.merge", configured)
    return Ended(capsys, "run", *arguments)


def test_a_command_gets_its_option_groups_filled() -> None:
    got: list[object] = []

    def body(pair: PairOptions, screen: ScreenOptions, extra: int = 3) -> None:
        got.extend((pair, screen, extra))

    command(body)(
        **{
            **given(PairOptions(wrap="tico")),
            "traceback": False,
            "quiet": True,
            "no_color": False,
            "extra": 5,
        }
    )
    pair, screen, extra = got
    assert isinstance(pair, PairOptions)
    assert pair.wrap == "tico"
    assert screen == ScreenOptions(quiet=True)
    assert extra == 5


def test_repeatable_options_that_were_not_given_are_empty() -> None:
    values = given(PairOptions(), CompareOptions(only=["a"]))
    assert (values["text"], values["wrap_args"], values["only"], values["skip"]) == ((), (), ["a"], ())
    assert values["reference"] is None


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ((PairOptions(config=Path("a.yaml")), CompareOptions(), RuntimeOptions()), ["a.yaml"]),
        (
            (PairOptions(wrap="tico", wrap_args=["a=1", "b=2"], text=["x y"]), CompareOptions(), RuntimeOptions()),
            ["--wrap", "tico", "--wrap-arg", "a=1", "--wrap-arg", "b=2", "--text", "x y"],
        ),
        (
            (PairOptions(), CompareOptions(local=False, noise_floor="measured"), RuntimeOptions(token="secret")),
            ["--noise-floor", "measured", "--no-local"],
        ),
        (
            (PairOptions(), CompareOptions(local=True), RuntimeOptions(seed=0, trust_remote_code=True)),
            ["--local", "--seed", "0", "--trust-remote-code"],
        ),
    ],
)
def test_what_was_typed_can_be_typed_again_without_secrets(
    groups: tuple[PairOptions, CompareOptions, RuntimeOptions], words: list[str]
) -> None:
    assert list(typed(*groups)) == words


def test_modules_lists_pairs_and_who_is_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    ended = Ended(capsys, "modules", *options("off"))
    assert ended.code == 0
    assert "10 pairs: 10 exact" in ended.out
    assert "layers.1.down" in ended.out
    assert ended.out.endswith("compared 8 of 8 calls (100 %)\n")
    ended = Ended(capsys, "modules", *options("other"), "--explain")
    assert ended.code == 4
    assert "1 pair: 1 exact" in ended.out
    assert "9 reference modules without a partner, 8 of them called" in ended.out
    assert "2 candidate modules without a partner, 2 of them called" in ended.out
    assert "exact: the same path on both sides" in ended.out
    ended = Ended(capsys, "modules", *options("raising"))
    assert ended.code == 1
    assert "10 pairs: 10 exact" in ended.out
    assert ended.err.startswith("error: the candidate raised ValueError in layers.1 (Block)")


def test_main_takes_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
