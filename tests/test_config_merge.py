"""The command line's options, laid over a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qtrace.config import RunConfig, load_config, merge, parse_wrap_args
from qtrace.errors import UsageError


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    path = tmp_path / "run.yaml"
    path.write_text(
        "reference: {source: a:b, args: {seed: 1}}\n"
        "candidate: {wrap: tico, args: {quantize: false, dtype: int8}}\n"
        "inputs: {source: c:d, args: {seed: 2}}\n"
        "compare: {only: [x], tolerance: 1e-3}\n"
        "policy: {max_peir: 1e-4, overrides: {y: 1e-2}}\n"
        "seed: 5\n"
        "token: secret\n"
    )
    return load_config(path)


def test_no_option_changes_nothing(config: RunConfig) -> None:
    assert merge(config) == config
    assert merge(config).folder == config.folder
    assert merge(None) == RunConfig()


def test_a_source_is_replaced_with_its_args(config: RunConfig) -> None:
    merged = merge(config, reference="e:f", candidate="g:h", inputs="i:j")
    sections = (merged.reference, merged.candidate, merged.inputs)
    assert [(section and section.source, section and section.args) for section in sections] == [
        ("e:f", {}),
        ("g:h", {}),
        ("i:j", {}),
    ]
    assert merged.candidate is not None
    assert merged.candidate.wrap is None


def test_wrap_args_go_to_the_configs_wrapper(config: RunConfig) -> None:
    merged = merge(config, wrap_args=["quantize=true"])
    assert merged.candidate is not None
    assert merged.candidate.args == {"quantize": True, "dtype": "int8"}


def test_a_wrapper_of_the_command_line_starts_from_its_own_args(config: RunConfig) -> None:
    merged = merge(config, wrap="dtype", wrap_args=["dtype=float16"])
    assert merged.candidate is not None
    assert (merged.candidate.wrap, merged.candidate.args) == ("dtype", {"dtype": "float16"})


def test_texts_and_images_replace_the_inputs(config: RunConfig) -> None:
    merged = merge(config, text=["one", "two"], image=["a.png"])
    assert merged.inputs is not None
    assert (merged.inputs.source, merged.inputs.text, merged.inputs.image) == (
        None,
        ("one", "two"),
        ("a.png",),
    )


def test_compare_options_replace_one_key_each(config: RunConfig) -> None:
    merged = merge(config, skip=["z"], tolerance="auto", noise_floor="1e-6", local=False)
    assert (merged.compare.only, merged.compare.skip) == (("x",), ("z",))
    assert (merged.compare.tolerance, merged.compare.noise_floor) == ("auto", 1e-6)
    assert merged.compare.local is False
    assert merge(config, only=["w"]).compare.only == ("w",)
    assert merge(config).compare.tolerance == 1e-3


def test_common_options_replace_the_configs(config: RunConfig) -> None:
    merged = merge(config, seed=0, device="cpu", dtype="float64", threads=3, call="generate", revision="r")
    assert (merged.seed, merged.device, merged.dtype, merged.threads) == (0, "cpu", "float64", 3)
    assert (merged.call, merged.revision, merged.token) == ("generate", "r", "secret")
    merged = merge(config, cache_dir="c", token="t", trust_remote_code=True)
    assert (merged.cache_dir, merged.token, merged.trust_remote_code) == ("c", "t", True)
    assert merged.policy == config.policy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"candidate": "a:b", "wrap": "tico"},
            "--candidate a:b and --wrap tico exclude each other; give one of them",
        ),
        ({"inputs": "a:b", "text": ["x"]}, "--inputs a:b excludes --text and --image; give one or the other"),
        (
            {"wrap_args": ["x=1"]},
            "--wrap-arg x=1 has no wrapper to go to; give --wrap NAME or a config with candidate.wrap",
        ),
        (
            {"candidate": "a:b", "wrap_args": ["x=1"]},
            "--wrap-arg x=1 has no wrapper to go to; give --wrap NAME or a config with candidate.wrap",
        ),
        (
            {"tolerance": "loose"},
            "--tolerance must be auto or a number that is not negative, and is the text 'loose'",
        ),
        (
            {"noise_floor": "-1"},
            "--noise-floor must be auto, measured or a number that is not negative, and is the text '-1'",
        ),
        ({"threads": 0}, "--threads must be a whole number of at least 1, and is 0"),
        ({"dtype": "fp8"}, "--dtype must be float16, bfloat16, float32 or float64, and is the text 'fp8'"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        merge(None, **options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("x=true", True),
        ("x=3", 3),
        ("x=1e-4", 1e-4),
        ("x=uint8", "uint8"),
        ("x=[1, a]", [1, "a"]),
        ("x={a: 1}", {"a": 1}),
        ("x=", None),
        ("x=a=b", "a=b"),
        ("x='3'", "3"),
    ],
)
def test_wrap_arg_values_are_yaml(pair: str, value: object) -> None:
    assert parse_wrap_args([pair]) == {"x": value}


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("quantize", "--wrap-arg quantize: expected key=value, as in --wrap-arg quantize=true"),
        ("=1", "--wrap-arg =1: expected key=value, as in --wrap-arg quantize=true"),
        ("x=[1", "--wrap-arg x=[1: the value [1 is not valid YAML; quote it"),
    ],
)
def test_wrap_args_that_do_not_parse(pair: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_wrap_args([pair])
    assert str(caught.value) == message
