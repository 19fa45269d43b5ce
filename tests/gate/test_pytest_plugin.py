"""The pytest plugin: as a fixture of these tests, and in test files of their own, also under xdist."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from qtrace.errors import ForwardError, OutputError, SourceError, UsageError
from qtrace.report.records import Outcome
from qtrace.testing import Parity, ParityError, baseline_path

pytest_plugins = ["pytester"]
# Without what takes time and is not asked for.
PLAIN = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")

MODELS = """
import copy
import pytest
import torch
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)
reference = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
inputs = torch.randn(3, 4)


def candidate(by=1.0):
    made = copy.deepcopy(reference)
    with torch.no_grad():
        made[2].weight.mul_(by)
    return made
"""


@pytest.fixture
def reference() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()


@pytest.fixture
def wrong(reference: nn.Sequential) -> nn.Module:
    return changed(reference, 2, 1.01)


def changed(model: nn.Sequential, at: int, factor: float) -> nn.Sequential:
    """Return a copy with the weight of one layer multiplied."""
    made = copy.deepcopy(model)
    layer = made[at]
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.mul_(factor)
    return made


INPUTS = torch.linspace(-1, 1, 12).reshape(3, 4)


@pytest.fixture(scope="module", autouse=True)
def _all_is_imported() -> None:
    """Import now what a failing assertion needs: each run inside a test forgets what it imported itself."""
    reference = nn.Sequential(nn.Linear(4, 4)).eval()
    with contextlib.suppress(ParityError):
        Parity(SimpleNamespace(), {}).assert_parity(reference, changed(reference, 0, 2.0), INPUTS)  # type: ignore[arg-type]


def run(pytester: pytest.Pytester, test: str, *options: str, models: str = MODELS) -> pytest.RunResult:
    pytester.makepyfile(test_parity=models + test)
    return pytester.runpytest_inprocess(*PLAIN, "--strict-markers", *options)


# Limits.


def test_what_keeps_to_its_limit_returns_the_report(qtrace: Parity, reference: nn.Module, wrong: nn.Module) -> None:
    report = qtrace.assert_parity(reference, wrong, INPUTS, max_peir=0.5)
    assert [row.module for row in report.rows] == ["0", "1", "2", ""]


def test_a_limit_may_be_met_and_not_exceeded(qtrace: Parity, reference: nn.Module, wrong: nn.Module) -> None:
    peir = max(row.peir or 0.0 for row in qtrace.assert_parity(reference, wrong, INPUTS, max_peir=1.0).rows)
    qtrace.assert_parity(reference, wrong, INPUTS, max_peir=peir)
    qtrace.assert_parity(reference, wrong, INPUTS, max_peir=math.nextafter(peir, 1.0))
    with pytest.raises(ParityError, match="max_peir: above the limit"):
        qtrace.assert_parity(reference, wrong, INPUTS, max_peir=math.nextafter(peir, 0.0))


def test_a_limit_that_is_no_number_is_refused(qtrace: Parity, reference: nn.Module) -> None:
    with pytest.raises(UsageError, match="max_peir must be a number, and is nan"):
        qtrace.assert_parity(reference, copy.deepcopy(reference), INPUTS, max_peir=math.nan)


def test_nan_in_the_candidate_fails(qtrace: Parity, reference: nn.Sequential) -> None:
    broken = changed(reference, 2, math.nan)
    with pytest.raises(ParityError, match="NaN or Inf at other places than") as raised:
        qtrace.assert_parity(reference, broken, INPUTS, max_peir=math.inf)
    assert {one.module for one in raised.value.verdict.violations} == {"2", ""}


def test_a_comparison_of_nothing_fails(qtrace: Parity, reference: nn.Module) -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = list(reference.children())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for stage in self.stages:
                x = stage(x)
            return x

    for limits in ({"max_peir": math.inf}, {"policy": {"fail_on": ["fault"]}}, {}):
        with pytest.raises(ParityError, match=r"^gate: inconclusive\. Too little was compared to say") as raised:
            qtrace.assert_parity(reference, Fused().eval(), INPUTS, **limits)
        assert raised.value.verdict.inconclusive


def test_without_limits_the_outcome_must_be_clean(qtrace: Parity, reference: nn.Module, wrong: nn.Module) -> None:
    qtrace.assert_parity(reference, copy.deepcopy(reference), INPUTS)
    with pytest.raises(ParityError, match="the outcome is fault"):
        qtrace.assert_parity(reference, wrong, INPUTS)
    deeper = nn.Sequential(reference, nn.ReLU(), nn.Linear(4, 4)).eval()
    with pytest.raises(ParityError, match="the outcome is drift"):
        qtrace.assert_parity(deeper, copy.deepcopy(deeper).bfloat16().float(), INPUTS, tolerance=1e-9)


class Dropping(nn.Module):
    """A linear layer with dropout behind it, or without."""

    def __init__(self, *, drops: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.drop = nn.Dropout() if drops else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x)
        return x if self.drop is None else self.drop(x)


def test_without_limits_a_module_without_a_partner_fails_nothing_that_is_clean(qtrace: Parity) -> None:
    one, other = Dropping(drops=True).eval(), Dropping(drops=False).eval()
    other.load_state_dict(one.state_dict())
    assert qtrace.assert_parity(one, other, INPUTS).outcome is Outcome.CLEAN
    assert qtrace.assert_parity(other, one, INPUTS).outcome is Outcome.CLEAN
    with pytest.raises(ParityError, match="no partner"):
        qtrace.assert_parity(one, other, INPUTS, max_peir=1e-3)


def test_the_worst_of_several_inputs_is_judged(qtrace: Parity, reference: nn.Module, wrong: nn.Module) -> None:
    samples = [torch.zeros(3, 4), INPUTS, INPUTS * 100]
    with pytest.raises(ParityError) as raised:
        qtrace.assert_parity(reference, wrong, samples, max_peir=1e-4)
    worst = raised.value.report.row("2")
    assert (worst.samples, raised.value.verdict.violations[0].sample) == (3, worst.sample)


# The message.


def test_the_message_says_limits_then_diagnosis_then_rows(
    qtrace: Parity, reference: nn.Module, wrong: nn.Module
) -> None:
    with pytest.raises(ParityError) as raised:
        qtrace.assert_parity(reference, wrong, INPUTS, max_peir=1e-4)
    text = str(raised.value)
    assert text.splitlines()[0].startswith("gate: failed. 2 violations, 4 rows judged. Worst: ")
    places = [
        text.index(words)
        for words in (
            "violation  ",
            "max_peir: above the limit",
            "─ Diagnosis ─",
            "1. 2 introduces an error",
            "accumulated",
        )
    ]
    assert places == sorted(places)
    assert text.count("1. 2 introduces an error") == 1
    assert "\x1b" not in text
    assert "--" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_long_message_counts_what_it_leaves_out(qtrace: Parity) -> None:
    deep = nn.Sequential(*(nn.Linear(4, 4) for _ in range(30))).eval()
    other = changed(deep, 0, 1.1)
    with pytest.raises(ParityError) as raised:
        qtrace.assert_parity(deep, other, INPUTS, policy={"max_peir": 0.0}, local=False)
    assert f"… and {len(raised.value.verdict.violations) - 10} more violations" in str(raised.value)
    assert len(str(raised.value).splitlines()) < 80


# Policies and options.


def test_a_policy_is_a_mapping_or_a_file_beside_the_test_or_below_the_root(pytester: pytest.Pytester) -> None:
    folder = pytester.mkpydir("inner")
    folder.joinpath("near.yaml").write_text("max_peir: 1e-4\n")
    pytester.path.joinpath("far.yaml").write_text("overrides: {'2': 1e-4}\n")
    tests = """
@pytest.mark.parametrize("policy", ["near.yaml", "far.yaml", {"max_peir": 1e-4}])
def test_parity(qtrace, policy):
    qtrace.assert_parity(reference, candidate(), inputs, policy=policy)
    with pytest.raises(AssertionError, match="gate: failed"):
        qtrace.assert_parity(reference, candidate(1.01), inputs, policy=policy)
    # Its own limit stands above the file's.
    if policy != "far.yaml":
        qtrace.assert_parity(reference, candidate(1.01), inputs, policy=policy, max_peir=1)
"""
    folder.joinpath("test_inner.py").write_text(MODELS + tests)
    pytester.runpytest_inprocess(*PLAIN).assert_outcomes(passed=3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policy": {"max_pier": 1}}, "assert_parity: unknown key max_pier; did you mean max_peir"),
        ({"policy": "gone.yaml"}, "gone.yaml"),
        ({"policy": 3}, "policy is a int; expected a YAML file or a mapping"),
        ({"policy": {"overrides": {"3": 1.0}}}, "overrides pattern '3' matches no module"),
        ({"policy": {}}, "sets no limit at all"),
        ({"max_pier": 1.0}, "assert_parity has no option 'max_pier'; did you mean max_peir"),
        ({"tolerence": 1.0}, "did you mean tolerance"),
        ({"baseline": 3}, "baseline is 3; expected True, False or the name of a file"),
    ],
)
def test_what_does_not_fit_is_refused(
    qtrace: Parity, reference: nn.Module, options: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        qtrace.assert_parity(reference, copy.deepcopy(reference), INPUTS, **options)  # type: ignore[arg-type]


def test_options_of_trace_are_handed_on(qtrace: Parity, reference: nn.Module, wrong: nn.Module) -> None:
    report = qtrace.assert_parity(reference, wrong, INPUTS, only=["0"], max_peir=1.0, local=False)
    assert ([row.module for row in report.rows], report.findings) == (["0", ""], ())


def test_a_limit_on_what_is_introduced_has_it_measured(qtrace: Parity, reference: nn.Module) -> None:
    same = copy.deepcopy(reference)
    report = qtrace.assert_parity(reference, same, INPUTS, policy={"overrides": {"*": {"max_peir_local": 0.0}}})
    assert {row.peir_local for row in report.rows} == {0.0}


def test_a_model_that_raises_says_where(qtrace: Parity, reference: nn.Module) -> None:
    with pytest.raises(ForwardError, match="the candidate raised RuntimeError in 0"):
        qtrace.assert_parity(reference, nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4)), INPUTS)


def test_ctrl_c_ends_the_session(qtrace: Parity, reference: nn.Module) -> None:
    class Interrupted(nn.ReLU):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qtrace.assert_parity(reference, nn.Sequential(nn.Linear(4, 4), Interrupted(), nn.Linear(4, 4)), INPUTS)


# Marks.


def test_marks_give_defaults_and_the_nearest_wins(pytester: pytest.Pytester) -> None:
    tests = """
pytestmark = pytest.mark.qtrace(max_peir=1e-9, local=False)


@pytest.mark.qtrace(max_peir=1.0)
class TestNear:
    def test_class(self, qtrace):
        assert not qtrace.assert_parity(reference, candidate(1.01), inputs).findings

    @pytest.mark.qtrace(max_peir=1e-9)
    def test_function(self, qtrace):
        with pytest.raises(AssertionError):
            qtrace.assert_parity(reference, candidate(1.01), inputs)
        qtrace.assert_parity(reference, candidate(1.01), inputs, max_peir=1.0)


def test_module(qtrace):
    with pytest.raises(AssertionError):
        qtrace.assert_parity(reference, candidate(1.01), inputs)


@pytest.mark.qtrace(1e-3)
def test_without_name(qtrace):
    pass
"""
    result = run(pytester, tests)
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*the mark qtrace has 0.001 without a name; write it as max_peir=0.001*"])
    pytester.runpytest_inprocess("--markers").stdout.fnmatch_lines(["@pytest.mark.qtrace(max_peir=*"])


# Baselines.

WITH_BASELINE = """
import os

def test_head(qtrace):
    qtrace.assert_parity(reference, candidate(float(os.environ.get("BY", "1.001"))), inputs, baseline=True)
"""


def test_a_baseline_is_written_kept_and_only_loosened_on_request(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pytester.path / "__qtrace__" / "test_parity" / "test_head.json"
    missing = run(pytester, WITH_BASELINE)
    missing.assert_outcomes(failed=1)
    missing.stdout.fnmatch_lines(
        ["*no baseline __qtrace__/test_parity/test_head.json; pytest --qtrace-update-baseline writes it"]
    )
    missing.stdout.no_fnmatch_line("*pytest_plugin.py*")
    assert not path.exists()
    written = run(pytester, WITH_BASELINE, "--qtrace-update-baseline")
    written.assert_outcomes(passed=1)
    written.stdout.fnmatch_lines(["qtrace: wrote baseline __qtrace__/test_parity/test_head.json"])
    assert [row["module"] for row in json.loads(path.read_text())["rows"]] == ["", "0", "1", "2"]
    assert [one.name for one in path.parent.iterdir()] == ["test_head.json"]
    before = path.read_text()
    run(pytester, WITH_BASELINE).assert_outcomes(passed=1)
    monkeypatch.setenv("BY", "1.1")
    worse = run(pytester, WITH_BASELINE)
    worse.assert_outcomes(failed=1)
    worse.stdout.fnmatch_lines(
        ["*gate: failed. 2 violations*against __qtrace__/test_parity/test_head.json*", "*baseline: was *"]
    )
    refused = run(pytester, WITH_BASELINE, "--qtrace-update-baseline")
    refused.assert_outcomes(failed=1)
    refused.stdout.fnmatch_lines(
        [
            "*LOOSER: *would be looser in 2 places:",
            "*was not written: it would be looser*",
            "*--qtrace-allow-loosen takes*",
        ]
    )
    assert path.read_text() == before
    run(pytester, WITH_BASELINE, "--qtrace-update-baseline", "--qtrace-allow-loosen").assert_outcomes(passed=1)
    assert path.read_text() != before
    run(pytester, WITH_BASELINE).assert_outcomes(passed=1)


def test_better_numbers_are_told_and_tighten_the_baseline(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BY", "1.1")
    run(pytester, WITH_BASELINE, "--qtrace-update-baseline").assert_outcomes(passed=1)
    monkeypatch.setenv("BY", "1.001")
    better = run(pytester, WITH_BASELINE)
    better.assert_outcomes(passed=1)
    better.stdout.fnmatch_lines(["qtrace: test_parity.py::test_head: 2 rows better than the baseline, 0 not in it; *"])
    run(pytester, WITH_BASELINE, "--qtrace-update-baseline").assert_outcomes(passed=1)
    monkeypatch.setenv("BY", "1.1")
    run(pytester, WITH_BASELINE).assert_outcomes(failed=1)


def test_what_fails_a_limit_is_not_taken_into_a_baseline(pytester: pytest.Pytester) -> None:
    result = run(
        pytester, WITH_BASELINE.replace("baseline=True", "baseline=True, max_peir=1e-6"), "--qtrace-update-baseline"
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*was not written: the run does not pass"])
    assert not (pytester.path / "__qtrace__").exists()


def test_loosening_without_writing_is_refused(pytester: pytest.Pytester) -> None:
    result = run(pytester, WITH_BASELINE, "--qtrace-allow-loosen")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--qtrace-allow-loosen is about what is written, and nothing is*"])


def test_each_test_and_each_assertion_has_a_file_of_its_own(pytester: pytest.Pytester) -> None:
    tests = f"""
class TestHead:
    @pytest.mark.parametrize("name", ["a", "b/c d", "é", {"x" * 150!r}])
    def test_several(self, qtrace, name):
        qtrace.assert_parity(reference, candidate(), inputs, baseline=True)
        qtrace.assert_parity(reference, candidate(), inputs, max_peir=1)
        qtrace.assert_parity(reference, candidate(), inputs, baseline=True)


def test_named(qtrace):
    qtrace.assert_parity(reference, candidate(), inputs, baseline="baselines/named.json")
"""
    run(pytester, tests, "--qtrace-update-baseline").assert_outcomes(passed=5)
    names = [path.name for path in (pytester.path / "__qtrace__" / "test_parity").iterdir()]
    assert len(set(names)) == 8
    assert {"TestHead.test_several[a].json", "TestHead.test_several[a].3.json"} < set(names)
    assert max(map(len, names)) < 130
    assert (pytester.path / "baselines" / "named.json").exists()
    run(pytester, tests).assert_outcomes(passed=5)


def test_names_that_read_alike_have_files_of_their_own(request: pytest.FixtureRequest) -> None:
    item = request.node
    plain = baseline_path(item)
    assert plain == Path(__file__).parent / "__qtrace__" / "test_pytest_plugin" / f"{item.name}.json"
    assert baseline_path(item, 2).name == f"{item.name}.2.json"


def test_a_damaged_baseline_and_a_place_that_cannot_be_written_are_named(
    pytester: pytest.Pytester, request: pytest.FixtureRequest, reference: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    parity = Parity(request.node, {})
    damaged = pytester.path / "damaged.json"
    damaged.write_text("{")
    with pytest.raises(SourceError, match=r"damaged.json: not JSON at line 1"):
        parity.assert_parity(reference, copy.deepcopy(reference), INPUTS, baseline=damaged)
    monkeypatch.setattr(request.config.option, "qtrace_update_baseline", True)
    with pytest.raises(OutputError, match="nothing was written"):
        parity.assert_parity(reference, copy.deepcopy(reference), INPUTS, baseline=damaged / "below.json")


# Around it.


def test_workers_write_their_own_files(pytester: pytest.Pytester) -> None:
    tests = """
@pytest.mark.parametrize("by", [1.0, 1.001, 1.01, 1.1])
def test_head(qtrace, by):
    qtrace.assert_parity(reference, candidate(by), inputs, baseline=True)
"""
    pytester.makepyfile(test_parity=MODELS + tests)
    written = pytester.runpytest_subprocess(*PLAIN, "-n", "2", "--qtrace-update-baseline")
    written.assert_outcomes(passed=4)
    names = [f"test_head[{by}].json" for by in (1.0, 1.001, 1.01, 1.1)]
    assert sorted(path.name for path in (pytester.path / "__qtrace__" / "test_parity").iterdir()) == sorted(names)
    for name in names:
        written.stdout.fnmatch_lines_random(
            [f"qtrace: wrote baseline __qtrace__/test_parity/{name.replace('[', '[[]')}"]
        )
    pytester.runpytest_inprocess(*PLAIN).assert_outcomes(passed=4)


def test_torch_is_not_imported_without_an_assertion(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_nothing():
            assert "qtrace.pytest_plugin" in sys.modules
            assert not {"torch", "numpy", "rich", "pydantic"} & set(sys.modules)

        def test_fixture(qtrace):
            assert "torch" not in sys.modules
        """
    )
    pytester.runpytest_subprocess(*PLAIN).assert_outcomes(passed=2)
