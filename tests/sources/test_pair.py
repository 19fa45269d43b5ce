"""A whole run's models and inputs, from the shipped configs and from configs that miss something."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qtrace.config import RunConfig, load_config, load_policy, merge
from qtrace.errors import QtraceError, SourceError, UsageError
from qtrace.sources.pair import Pair, load_pair
from qtrace.sources.wrappers import known_wrappers

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"


@pytest.fixture(autouse=True)
def _sys_path_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


LLAMA: dict[str, Any] = {"reference": "qtrace.zoo.llama:tiny", "inputs": "qtrace.zoo.llama:tokens"}


def logits(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    (sample,) = pair.samples
    with torch.no_grad():
        reference = pair.reference(*sample.args, **sample.kwargs).logits
        candidate = pair.candidate(*sample.args, **sample.kwargs).logits
    return reference.double(), candidate.double()


def peir(pair: Pair) -> float:
    """Return max|reference - candidate| / (max reference - min reference) of the logits, a ratio."""
    reference, candidate = logits(pair)
    return float((reference - candidate).abs().max() / (reference.max() - reference.min()))


@pytest.mark.tico
@pytest.mark.parametrize(
    ("name", "lowest", "highest", "candidate"),
    [
        ("qwen3_vl", 1e-8, 5e-6, "wrap tico(quantize=False)"),
        ("qwen3_vl_mask_bug", 0.4, 0.7, "qtrace.zoo.qwen3_vl:mask_bug"),
        ("qwen3_vl_uint8", 0.01, 0.15, "wrap tico(quantize=True, dtype='uint8')"),
    ],
)
def test_the_shipped_configs_load_and_run(name: str, lowest: float, highest: float, candidate: str) -> None:
    pytest.importorskip("tico", reason="tico is not installed; pip install 'qtrace[tico]'")
    pair = load_pair(load_config(CONFIGS / f"{name}.yaml"))
    assert lowest < peir(pair) < highest
    assert pair.reference_source == "qtrace.zoo.qwen3_vl:tiny(seed=42)"
    assert pair.candidate_source == candidate
    assert pair.inputs_source == "qtrace.zoo.qwen3_vl:image_and_text"
    assert not pair.reference.training
    assert not pair.candidate.training


@pytest.mark.real_model
def test_the_real_models_config_loads_and_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (ROOT / ".cache" / "qtrace" / "smollm2").is_dir():
        pytest.skip("smollm2 is not there; `make models` puts it there")
    monkeypatch.chdir(ROOT)
    pair = load_pair(load_config("configs/smollm2_bf16.yaml"))
    assert 1e-3 < peir(pair) < 0.1
    assert next(pair.reference.parameters()).dtype == torch.float32
    assert next(pair.candidate.parameters()).dtype == torch.bfloat16
    assert pair.inputs_source.startswith("'The module where")


def test_every_shipped_config_says_in_its_head_what_it_is_for() -> None:
    configs = sorted(CONFIGS.glob("*.yaml"))
    assert {config.stem for config in configs} >= {
        "qwen3_vl",
        "qwen3_vl_mask_bug",
        "qwen3_vl_uint8",
        "smollm2_bf16",
    }
    for config in configs:
        assert config.read_text().startswith("# "), config.name
        if config.stem.endswith("_policy"):
            assert load_policy(config).max_peir is not None
        else:
            assert load_config(config).reference is not None


def test_each_part_starts_from_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seeded_pair.py").write_text(
        "import random, torch\n"
        "from torch import nn\n"
        "def make():\n    print('building')\n    return nn.Linear(3, 3)\n"
        "def other():\n    return nn.Sequential(nn.Linear(3, 3))\n"
        "def inputs():\n    return torch.full((1, 3), random.random())\n"
    )
    spec = "seeded_pair.py:{}"
    sources = {name: spec.format(name) for name in ("make", "other", "inputs")}

    def load(seed: int) -> Pair:
        return load_pair(
            merge(
                None,
                reference=sources["make"],
                candidate=sources["other"],
                inputs=sources["inputs"],
                seed=seed,
            )
        )

    one, same, different = load(0), load(0), load(1)
    weight = one.reference.get_parameter("weight")
    assert torch.equal(weight, one.candidate.get_parameter("0.weight"))
    assert torch.equal(weight, same.reference.get_parameter("weight"))
    assert not torch.equal(weight, different.reference.get_parameter("weight"))
    assert torch.equal(one.samples[0].args[0], same.samples[0].args[0])
    assert not torch.equal(one.samples[0].args[0], different.samples[0].args[0])


def test_what_is_printed_while_loading_goes_to_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chatty.py").write_text(
        "from torch import nn\nprint('imported')\n"
        "def make():\n    print('building')\n    return nn.Linear(3, 3)\n"
        "def inputs():\n    import torch\n    return torch.ones(1, 3)\n"
    )
    load_pair(merge(None, reference="chatty.py:make", wrap="dtype", inputs="chatty.py:inputs"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "imported\nbuilding\n" in captured.err


def test_the_dtype_goes_to_both_models_and_to_floats_among_the_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "typed.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make():\n    return nn.Linear(3, 3)\n"
        "def half(reference):\n    return reference.half()\n"
        "def inputs():\n    return torch.ones(1, 3)\n"
    )

    def dtypes(**candidate: Any) -> list[torch.dtype]:
        config = merge(
            None,
            reference="typed.py:make",
            inputs="typed.py:inputs",
            dtype="float64",
            device="cpu",
            **candidate,
        )
        pair = load_pair(config)
        models: list[nn.Module] = [pair.reference, pair.candidate]
        return [*(next(model.parameters()).dtype for model in models), pair.samples[0].args[0].dtype]

    double, half = torch.float64, torch.float16
    assert dtypes(candidate="typed.py:make") == [double, double, double]
    # What was made of the reference keeps the type that its maker chose.
    assert dtypes(candidate="typed.py:half") == [double, half, double]
    assert dtypes(wrap="dtype") == [double, torch.bfloat16, double]


def test_threads_are_set() -> None:
    load_pair(merge(None, **LLAMA, wrap="dtype", threads=2))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"inputs": "a:b", "wrap": "dtype"},
            UsageError,
            "there is no reference; give --reference SPEC, or a config with reference.source",
        ),
        (
            LLAMA,
            UsageError,
            "there is no candidate; give --candidate SPEC or --wrap NAME, or a config with a candidate",
        ),
        (
            {"reference": "a:b", "wrap": "dtype"},
            UsageError,
            "there are no inputs; give --inputs SPEC or --text TEXT, or a config with inputs",
        ),
        (
            {"reference": "zzzzz:x", "inputs": "zzzzz:y", "wrap": "dtyp"},
            UsageError,
            f"there is no wrapper dtyp; did you mean dtype? (known: {', '.join(known_wrappers())})",
        ),
        (
            {**LLAMA, "wrap": "dtype", "call": "forwrad"},
            UsageError,
            "LlamaForCausalLM has no method forwrad to call; did you mean forward or float?",
        ),
        (
            {"reference": "torch.nn:ReLU", "inputs": LLAMA["inputs"], "wrap": "dtype"},
            UsageError,
            "inputs do not fit forward of ReLU: unexpected argument input_ids; did you mean input?",
        ),
        (
            {**LLAMA, "candidate": "torch.nn:ReLU"},
            UsageError,
            "inputs do not fit forward of ReLU: unexpected argument input_ids; did you mean input?",
        ),
        (
            {"reference": "qtrace.zoo.llama:tiny", "text": ["hello"], "wrap": "dtype"},
            UsageError,
            "--text and --image need the reference's own tokenizer or processor, and qtrace.zoo.llama:tiny "
            "(LlamaForCausalLM) names none; use an hf: reference, or give --inputs",
        ),
        (
            {**LLAMA, "candidate": "qtrace.zoo.llama:tokens"},
            SourceError,
            "qtrace.zoo.llama:tokens returned a value of type dict; expected a torch.nn.Module",
        ),
    ],
)
def test_what_a_run_misses_is_one_sentence(options: dict[str, Any], kind: type[QtraceError], message: str) -> None:
    with pytest.raises(kind) as caught:
        load_pair(merge(None, **options))
    assert str(caught.value) == message


def test_a_device_that_is_not_there_is_said_first() -> None:
    with pytest.raises(UsageError, match=r"^device nonsense cannot be used here"):
        load_pair(merge(None, reference="zzzzz:x", inputs="zzzzz:y", wrap="dtype", device="nonsense"))


def test_names_in_a_config_are_relative_to_its_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "beside_config.py").write_text("from torch import nn\ndef make():\n    return nn.Linear(3, 3)\n")
    torch.save(torch.ones(1, 3), inner / "ones.pt")
    (inner / "run.yaml").write_text(
        "reference: beside_config.py:make\ncandidate: beside_config.py:make\ninputs: ones.pt\n"
    )
    monkeypatch.chdir(tmp_path)
    pair = load_pair(load_config("inner/run.yaml"))
    assert pair.samples[0].args[0].shape == (1, 3)


def test_an_empty_config_misses_its_reference() -> None:
    with pytest.raises(UsageError, match=r"^there is no reference"):
        load_pair(RunConfig())
