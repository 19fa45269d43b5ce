"""Specs with a scheme: how they are taken apart, what `hf:` and `config:` load, what is said else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM
from transformers.utils import logging

from qtrace.engine.placement import KEPT_BUFFERS, cast, check_device, place_model, place_sample
from qtrace.engine.samples import Sample
from qtrace.errors import QtraceError, SourceError, UsageError
from qtrace.sources.models import load_model
from qtrace.sources.spec import LoadOptions, parse_spec
from qtrace.zoo import llama

FORMS = "expected file.py:name, package.module:name, hf:…, config:… or trace:…"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a folder that holds a tiny saved Llama as `llama` and its bare config as `bare`."""
    monkeypatch.chdir(tmp_path)
    model = llama.tiny()
    model.save_pretrained(tmp_path / "llama")
    model.config.save_pretrained(tmp_path / "bare")
    return tmp_path


def test_a_scheme_is_taken_apart() -> None:
    spec = parse_spec("hf:org/model?class=AutoModel&gguf_file=a.gguf", ["hf"])
    assert (spec.scheme, spec.body) == ("hf", "org/model")
    assert spec.options == {"class": "AutoModel", "gguf_file": "a.gguf"}


@pytest.mark.parametrize("text", ["m.py:f", "a/b/m.py:f.g", "package.module:name", "C:/x/m.py:f"])
def test_a_callable_has_no_scheme(text: str) -> None:
    assert parse_spec(text, ["hf"]).scheme == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trace:", f"trace:: nothing stands after trace:; {FORMS}"),
        ("trace:runs/a?x=1", "trace:runs/a?x=1: unknown option x; none are known"),
        ("foo", f"'foo' names no source; {FORMS}"),
        ("", f"'' names no source; {FORMS}"),
        ("x.py", f"'x.py' names no source; {FORMS}"),
        ("x.py:", f"'x.py:' names no source; {FORMS}"),
        ("hf:", f"hf:: nothing stands after hf:; {FORMS}"),
        ("hff:org/model", f"hff:org/model: unknown scheme hff; {FORMS}"),
        ("hff:model?class=A", f"hff:model?class=A: unknown scheme hff; {FORMS}"),
    ],
)
def test_forms_that_are_not_known(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_model(text)
    assert str(caught.value) == message


def test_hf_loads_a_folder_in_eval_mode(folder: Path) -> None:
    model = load_model("hf:llama")
    assert type(model) is LlamaForCausalLM
    assert not model.training
    weights = llama.tiny().state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_hf_takes_another_class_and_dtype(folder: Path) -> None:
    model = load_model("hf:llama?class=AutoModel&dtype=bfloat16")
    assert type(model).__name__ == "LlamaModel"
    assert next(model.parameters()).dtype == torch.bfloat16
    model = load_model("hf:llama", options=LoadOptions(dtype="float64"))
    assert next(model.parameters()).dtype == torch.float64
    model = load_model("hf:llama?dtype=float16", options=LoadOptions(dtype="float64"))
    assert next(model.parameters()).dtype == torch.float16


def test_hf_leaves_transformers_progress_bars_as_they_were(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert logging.is_progress_bar_enabled()
    load_model("hf:llama")
    assert logging.is_progress_bar_enabled()
    assert capsys.readouterr().out == ""


def test_hf_looks_in_the_configs_folder_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert isinstance(load_model("hf:llama", options=LoadOptions(folder=folder)), LlamaForCausalLM)


def test_config_makes_random_weights_by_seed(folder: Path) -> None:
    state = torch.get_rng_state()
    one, same, other = (load_model(f"config:bare?seed={seed}") for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert type(one) is LlamaForCausalLM
    assert not one.training
    weights = [model.get_parameter("model.embed_tokens.weight") for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_config_takes_a_json_file_a_class_and_a_dtype(folder: Path) -> None:
    model = load_model("config:bare/config.json?class=LlamaModel", options=LoadOptions(dtype="bfloat16"))
    assert type(model).__name__ == "LlamaModel"
    assert next(model.parameters()).dtype == torch.bfloat16
    assert type(load_model("config:bare?class=AutoModel")).__name__ == "LlamaModel"


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("hf:./lama", SourceError, "no such model folder: ./lama; did you mean llama?"),
        ("hf:a/b/c", SourceError, "no such model folder: a/b/c (looked in the current directory)"),
        (
            "hf:.cache/qtrace/smollm2",
            SourceError,
            "no such model folder: .cache/qtrace/smollm2; `make models` puts it there",
        ),
        (
            "hf:llama/config.json",
            SourceError,
            "{}: llama/config.json is a file; hf: takes a folder, or a model's id on the hub",
        ),
        ("hf:llama?clas=AutoModel", UsageError, "{}: unknown option clas; did you mean class?"),
        ("hf:llama?x=1", UsageError, "{}: unknown option x; known: class, dtype, gguf_file, revision"),
        (
            "hf:llama?dtype=fp16",
            UsageError,
            "{}: no dtype fp16 for a model; did you mean float16 or bfloat16?",
        ),
        ("config:bare?seed=x", UsageError, "{}: seed must be a whole number, and is x"),
        ("config:bare?revision=x", UsageError, "{}: unknown option revision; known: class, seed"),
        ("config:bear", SourceError, "no such transformers config: bear; did you mean bare?"),
        (
            "hf:llama?class=AutoModelForCausalML",
            UsageError,
            "{}: transformers has no class AutoModelForCausalML; did you mean AutoModelForCausalLM",
        ),
        ("hf:bare", SourceError, "{}: transformers cannot load it (Error no file named model.safetensors"),
        (
            "config:noise.json",
            SourceError,
            "{}: transformers cannot load it (It looks like the config file at",
        ),
        ("config:untyped.json", SourceError, "{}: transformers cannot load it (Unrecognized model"),
        ("hf:org/none", SourceError, "{}: transformers cannot load it ("),
        ("hf:llama?class=LlamaConfig", SourceError, "{}: "),
    ],
)
def test_what_is_wrong_with_a_scheme_is_one_sentence(
    folder: Path, text: str, kind: type[QtraceError], message: str
) -> None:
    (folder / "noise.json").write_text("{noise")
    (folder / "untyped.json").write_text(json.dumps({"hidden_size": 4}))
    with pytest.raises(kind) as caught:
        load_model(text)
    assert str(caught.value).startswith(message.format(text))
    assert "\n" not in str(caught.value)
    assert caught.type is kind


def test_args_do_not_go_to_a_scheme(folder: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_model("hf:llama", args={"seed": 1})
    assert str(caught.value) == "hf:llama: args go to a callable; write them into the source, after a ?"


def test_a_cast_spares_rotary_frequencies() -> None:
    model = cast(llama.tiny(), torch.bfloat16)
    buffers = dict(model.named_buffers())
    assert {name.rsplit(".", 1)[-1] for name in buffers} <= set(KEPT_BUFFERS)
    assert all(buffer.dtype == torch.float32 for buffer in buffers.values())
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    everything = cast(llama.tiny(), torch.bfloat16, keep=())
    assert everything.get_buffer("model.rotary_emb.inv_freq").dtype == torch.bfloat16


def test_samples_are_placed_with_their_models() -> None:
    sample = Sample((torch.zeros(2),), {"ids": torch.zeros(2, dtype=torch.int64)})
    placed = place_sample(sample, "cpu", "float16")
    assert placed.args[0].dtype == torch.float16
    assert placed.kwargs["ids"].dtype == torch.int64
    assert place_sample(sample, None, None) is sample


def test_a_model_that_cannot_be_cast_says_so() -> None:
    class Stubborn(nn.Linear):
        def to(self, *args: object, **kwargs: object) -> Stubborn:
            raise ValueError("quantized models stay where they are")

    with pytest.raises(SourceError) as caught:
        place_model(Stubborn(2, 2), None, "float16")
    assert str(caught.value) == ("Stubborn cannot be moved to float16: quantized models stay where they are")


def test_a_device_that_is_not_there() -> None:
    check_device(None)
    check_device("cpu")
    with pytest.raises(UsageError, match=r"^device nonsense cannot be used here \(.+\); cpu always can$"):
        check_device("nonsense")


@pytest.mark.real_model
@pytest.mark.parametrize(
    ("name", "kind", "parameters"),
    [("smollm2", "LlamaForCausalLM", 134_515_008), ("minilm", "BertModel", 22_713_216)],
)
def test_the_real_models_load_offline(name: str, kind: str, parameters: int) -> None:
    place = ROOT / ".cache" / "qtrace" / name
    if not place.is_dir():
        pytest.skip(f"{name} is not there; `make models` puts it there")
    model = load_model(f"hf:{place}")
    assert type(model).__name__ == kind
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert next(model.parameters()).dtype == torch.float32
