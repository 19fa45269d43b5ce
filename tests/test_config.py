"""The YAML config: what it accepts, and the one sentence for everything that it does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from qtrace.config import Policy, RunConfig, load_config, load_policy
from qtrace.errors import SourceError, UsageError

FULL = """
reference: {source: "qtrace.zoo.qwen3_vl:tiny", args: {seed: 42}}
candidate: {wrap: tico, args: {quantize: false, slack: 1e-3}}
inputs:    {source: "qtrace.zoo.qwen3_vl:image_and_text"}
compare:   {only: ["model.**"], skip: "lm_head", tolerance: 1e-4, noise_floor: "2e-6", local: true}
policy:
  max_peir: 1.0e-4
  min_sqnr_db: -3
  overrides: {"model.visual.**": 1e-3, lm_head: {min_cosine: 0.99}}
  min_coverage: 0.95
  allow_unmatched: ["**.rotary_emb"]
  fail_on: [fault, drift]
  strict: true
seed: 7
device: cpu
dtype: bfloat16
threads: 2
call: generate
cache_dir: cache
token: secret
revision: main
trust_remote_code: true
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in an empty folder; tests write `run.yaml` into it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run.yaml"


def test_every_key_of_a_config_is_read(write: Path) -> None:
    write.write_text(FULL)
    config = load_config(write)
    assert config.reference is not None
    assert config.reference.source == "qtrace.zoo.qwen3_vl:tiny"
    assert config.reference.args == {"seed": 42}
    assert config.candidate is not None
    assert config.candidate.wrap == "tico"
    assert config.candidate.args == {"quantize": False, "slack": 0.001}
    assert config.inputs is not None
    assert config.inputs.source == "qtrace.zoo.qwen3_vl:image_and_text"
    compare = config.compare
    assert (compare.only, compare.skip) == (("model.**",), ("lm_head",))
    assert (compare.tolerance, compare.noise_floor, compare.local) == (1e-4, 2e-6, True)
    policy = config.policy
    assert policy is not None
    assert (policy.max_peir, policy.min_sqnr_db, policy.min_coverage) == (1e-4, -3.0, 0.95)
    assert policy.overrides["model.visual.**"].max_peir == 1e-3
    assert policy.overrides["lm_head"].min_cosine == 0.99
    assert policy.overrides["lm_head"].max_peir is None
    assert (policy.allow_unmatched, policy.fail_on) == (("**.rotary_emb",), ("fault", "drift"))
    assert policy.strict
    assert (config.seed, config.device, config.dtype, config.threads) == (7, "cpu", "bfloat16", 2)
    assert (config.call, config.cache_dir, config.token) == ("generate", "cache", "secret")
    assert (config.revision, config.trust_remote_code) == ("main", True)
    assert config.folder == write.parent


def test_an_empty_config_has_the_defaults(write: Path) -> None:
    write.write_text("# nothing yet\n")
    config = load_config(write)
    assert config.model_dump() == RunConfig().model_dump()
    assert (config.reference, config.candidate, config.inputs, config.policy) == (None, None, None, None)
    assert (config.seed, config.call, config.trust_remote_code) == (0, "forward", False)
    assert (config.compare.tolerance, config.compare.noise_floor, config.compare.local) == (
        "auto",
        "auto",
        None,
    )


def test_a_token_is_not_shown(write: Path) -> None:
    write.write_text("token: secret\n")
    assert "secret" not in repr(load_config(write))


def test_a_bare_spec_stands_for_its_section(write: Path) -> None:
    write.write_text("reference: hf:org/model\ncandidate: m.py:make\ninputs: x.npz\n")
    config = load_config(write)
    assert [section and section.source for section in (config.reference, config.candidate, config.inputs)] == [
        "hf:org/model",
        "m.py:make",
        "x.npz",
    ]


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "'1e-4'", "1E-4", "+1e-4", "0.0001", ".1e-3"])
def test_numbers_are_read_as_people_write_them(write: Path, text: str) -> None:
    write.write_text(f"compare: {{tolerance: {text}}}\n")
    assert load_config(write).compare.tolerance == pytest.approx(1e-4)


@pytest.mark.parametrize("text", ["e5", "1e", "1e5x", "2026-01-01e"])
def test_words_that_look_like_numbers_stay_words(write: Path, text: str) -> None:
    write.write_text(f"reference: {{source: a:b, args: {{name: {text}}}}}\n")
    reference = load_config(write).reference
    assert reference is not None
    assert reference.args["name"] == text


def test_a_policy_file_has_the_policys_keys_at_top_level(write: Path) -> None:
    write.write_text("max_peir: 1e-4\noverrides: {'model.**': 1e-3}\n")
    policy = load_policy(write)
    assert isinstance(policy, Policy)
    assert policy.max_peir == 1e-4
    assert policy.overrides["model.**"].max_peir == 1e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("compare:\n  tolerence: 3\n", "run.yaml:2: unknown key compare.tolerence; did you mean tolerance or rename?"),
        ("refernce: a:b\n", "run.yaml:1: unknown key refernce; did you mean reference?"),
        ("tolerance: 3\n", "run.yaml:1: unknown key tolerance; did you mean compare.tolerance?"),
        (
            "policy:\n  overrides:\n    model.**: {max_mian: 3}\n",
            "run.yaml:3: unknown key policy.overrides[model.**].max_mian; "
            "did you mean max_mean or max_max or max_mismatch?",
        ),
        (
            "compare: {zzz: 1}\n",
            "run.yaml:1: unknown key compare.zzz; known: local, noise_floor, only, rename, skip, tolerance",
        ),
        ("seed: x\n", "run.yaml:1: seed must be a whole number, and is the text 'x'"),
        ("seed: x\ndevice: 3\n", "run.yaml:1: seed must be a whole number, and is the text 'x' (and 1 more)"),
        ("threads: 0\n", "run.yaml:1: threads must be a whole number of at least 1, and is 0"),
        (
            "dtype: fp16\n",
            "run.yaml:1: dtype must be float16, bfloat16, float32 or float64, and is the text 'fp16'",
        ),
        ("call: [a]\n", "run.yaml:1: call must be a string, and is a list"),
        ("compare: {local: 3}\n", "run.yaml:1: compare.local must be true or false, and is 3"),
        ("compare: {only: 3}\n", "run.yaml:1: compare.only must be a list, and is 3"),
        ("compare: {only: [a, 3]}\n", "run.yaml:1: compare.only[1] must be a string, and is 3"),
        ("compare: 3\n", "run.yaml:1: compare must be a mapping of keys, and is 3"),
        ("compare:\n", "run.yaml:1: compare must be a mapping of keys, and is empty"),
        (
            "compare: {tolerance: loose}\n",
            "run.yaml:1: compare.tolerance must be auto or a number that is not negative, and is the text 'loose'",
        ),
        (
            "compare: {tolerance: -1}\n",
            "run.yaml:1: compare.tolerance must be auto or a number that is not negative, and is -1",
        ),
        (
            "compare: {tolerance: .nan}\n",
            "run.yaml:1: compare.tolerance must be auto or a number that is not negative, and is nan",
        ),
        ("policy: {max_peir: true}\n", "run.yaml:1: policy.max_peir must be a number, and is true"),
        (
            "policy: {max_peir: -0.1}\n",
            "run.yaml:1: policy.max_peir must be a number that is not negative, and is -0.1",
        ),
        (
            "policy: {min_coverage: 95}\n",
            "run.yaml:1: policy.min_coverage must be a number from 0 to 1, and is 95",
        ),
        (
            "policy: {overrides: {model.**: tight}}\n",
            "run.yaml:1: policy.overrides[model.**].max_peir must be a number, and is the text 'tight'",
        ),
        (
            "policy:\n  fail_on:\n  - clean\n  - faul\n",
            "run.yaml:4: policy.fail_on[1] must be clean, fault, drift or inconclusive, and is the text 'faul'",
        ),
        ("candidate: {args: {}}\n", "run.yaml:1: candidate needs either source or wrap, and has neither"),
        (
            "candidate: {source: a, wrap: b}\n",
            "run.yaml:1: candidate needs either source or wrap, and has both",
        ),
        ("inputs: {}\n", "run.yaml:1: inputs needs either source, or text and image, and has neither"),
        (
            "inputs: {source: a, text: b}\n",
            "run.yaml:1: inputs needs either source, or text and image, and has both",
        ),
        ("reference: {args: {}}\n", "run.yaml:1: reference needs the key source"),
        ("on: 1\n", "run.yaml: the keys must be texts, and one is true"),
        (
            "policy: {overrides: {3: 1}}\n",
            "run.yaml:1: the keys of policy.overrides must be texts, and one is 3",
        ),
        ("a: b: c\n", "run.yaml:1:5: not valid YAML, mapping values are not allowed here"),
        ("seed: 1\nseed: 2\n", "run.yaml:2:1: not valid YAML, the key seed is given twice"),
        (
            "- 1\n",
            "run.yaml: a config file is a mapping of keys "
            "(reference, candidate, inputs, compare, policy, …), and this is a list",
        ),
        (
            "just words\n",
            "run.yaml: a config file is a mapping of keys "
            "(reference, candidate, inputs, compare, policy, …), and this is a single value",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(write: Path, text: str, message: str) -> None:
    write.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_config("run.yaml")
    assert str(caught.value) == message


def test_a_policy_error_names_the_policys_own_keys(write: Path) -> None:
    write.write_text("max_pier: 1\n")
    with pytest.raises(UsageError, match=r"^run\.yaml:1: unknown key max_pier; did you mean max_peir"):
        load_policy("run.yaml")


def test_binary_is_no_config(write: Path) -> None:
    write.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError) as caught:
        load_config("run.yaml")
    assert str(caught.value) == "run.yaml: expected a config file in YAML, and this is not UTF-8 text"


def test_a_control_character_is_no_yaml(write: Path) -> None:
    write.write_text("a: \x01\n")
    with pytest.raises(UsageError, match=r"^run\.yaml: not valid YAML, "):
        load_config("run.yaml")


def test_a_folder_is_no_config(write: Path) -> None:
    write.mkdir()
    with pytest.raises(SourceError) as caught:
        load_config("run.yaml")
    assert str(caught.value) == "run.yaml: cannot be read as a config file (Is a directory)"


def test_a_missing_file_names_near_ones(write: Path) -> None:
    folder = write.parent / "configs"
    folder.mkdir()
    (folder / "qwen3_vl.yaml").touch()
    with pytest.raises(UsageError) as caught:
        load_config("configs/qwen3vl.yaml")
    assert str(caught.value) == "no such config file: configs/qwen3vl.yaml; did you mean configs/qwen3_vl.yaml?"
    with pytest.raises(UsageError) as caught:
        load_policy("zzz")
    assert str(caught.value) == "no such policy file: zzz (looked in the current directory)"


def test_a_config_is_frozen(write: Path) -> None:
    write.write_text("seed: 1\n")
    with pytest.raises(ValueError, match="frozen"):
        load_config(write).seed = 2


def test_each_section_refuses_unknown_keys() -> None:
    import qtrace.config as module

    sections = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, BaseModel) and value is not BaseModel
    ]
    assert len(sections) >= 7
    assert all(section.model_config["extra"] == "forbid" for section in sections)


def test_reading_a_config_does_not_import_torch() -> None:
    script = "import sys, qtrace.config as c; c.load_config(sys.argv[1]); print('torch' in sys.modules)"
    config = Path(__file__).parent.parent / "configs" / "qwen3_vl.yaml"
    done = subprocess.run([sys.executable, "-c", script, str(config)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
