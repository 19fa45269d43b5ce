"""Inputs: from callables, from files of tensors, from texts and images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from qtrace.config import InputsSource
from qtrace.engine.samples import Sample
from qtrace.errors import QtraceError, SourceError, UsageError
from qtrace.sources.inputs import load_inputs
from qtrace.sources.spec import LoadOptions

ROOT = Path(__file__).parents[2]


class Named(nn.Module):
    """A model that says, as transformers' models do, where it was loaded from."""

    def __init__(self, name_or_path: str | Path = "") -> None:
        super().__init__()
        self.name_or_path = str(name_or_path)

    def forward(self, **kwargs: Any) -> Any:
        return kwargs


class NoMask(Named):
    def forward(self, input_ids: Any) -> Any:  # type: ignore[override]
        return input_ids


def load(section: InputsSource, reference: nn.Module | None = None, source: str = "m.py:make") -> list[Sample]:
    return load_inputs(section, reference or Named(), source, LoadOptions())


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture
def red(folder: Path) -> str:
    """Return the name of a small picture."""
    Image.new("RGB", (10, 8), (255, 0, 0)).save(folder / "red.png")
    return "red.png"


def test_a_callable_gets_its_args() -> None:
    (sample,) = load(InputsSource(source="qtrace.zoo.llama:tokens", args={"length": 5}))
    assert sample.kwargs["input_ids"].shape == (1, 5)


def test_a_callable_may_take_the_model(folder: Path) -> None:
    (folder / "inputs_of_model.py").write_text(
        "import torch\n"
        "def make(model, rows=1):\n    return [torch.zeros(rows, model.in_features), (1, 2)]\n"
        "ready = {'x': 1}\n"
    )
    first, second = load(InputsSource(source="inputs_of_model.py:make", args={"rows": 3}), nn.Linear(4, 2))
    assert first.args[0].shape == (3, 4)
    assert second.args == (1, 2)
    assert load(InputsSource(source="inputs_of_model.py:ready")) == [Sample(kwargs={"x": 1})]


def test_safetensors_and_npz_are_keyword_arguments(folder: Path) -> None:
    save_file({"x": torch.ones(2)}, folder / "a.safetensors")
    np.savez(folder / "a.npz", x=np.ones(2, dtype=np.float32), ids=np.arange(3))
    for name in ("a.safetensors", "a.npz"):
        (sample,) = load(InputsSource(source=name))
        assert torch.equal(sample.kwargs["x"], torch.ones(2))
    assert sample.kwargs["ids"].dtype == torch.int64


def test_pt_holds_any_form_of_inputs(folder: Path) -> None:
    torch.save([{"x": torch.ones(2)}, (torch.zeros(1),)], folder / "a.pt")
    first, second = load(InputsSource(source="a.pt"))
    assert torch.equal(first.kwargs["x"], torch.ones(2))
    assert torch.equal(second.args[0], torch.zeros(1))


def test_a_pickle_is_not_run(folder: Path) -> None:
    torch.save({"x": Path("a")}, folder / "evil.pt")
    with pytest.raises(SourceError, match=r"^evil\.pt: cannot be read as \.pt \(Weights only load failed"):
        load(InputsSource(source="evil.pt"))
    np.savez(folder / "evil.npz", x=np.array([{}], dtype=object))
    with pytest.raises(SourceError) as caught:
        load(InputsSource(source="evil.npz"))
    assert str(caught.value) == (
        "evil.npz: cannot be read as .npz (Object arrays cannot be loaded when allow_pickle=False)"
    )


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz", "a.pt"])
def test_a_damaged_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"noise")
    with pytest.raises(SourceError) as caught:
        load(InputsSource(source=name))
    assert str(caught.value).startswith(f"{name}: cannot be read as {Path(name).suffix} (")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("input.npz", SourceError, "no such inputs file: input.npz; did you mean inputs.npz?"),
        (
            "inputs.csv",
            UsageError,
            "inputs inputs.csv: expected file.py:name, package.module:name, trace:FOLDER, "
            "or a file that ends in .safetensors, .npz, .pt",
        ),
        (
            "hf:org/model",
            UsageError,
            "hf:org/model: unknown scheme hf; expected file.py:name or package.module:name",
        ),
        ("empty.pt", UsageError, "empty.pt: inputs are an empty list; give at least one sample"),
        ("json:loads", UsageError, "json:loads needs the parameter s; give it under args in the config"),
        ("sys:maxsize", UsageError, "sys:maxsize: inputs are of type int; expected a mapping"),
    ],
)
def test_what_is_wrong_with_inputs_is_one_sentence(
    folder: Path, source: str, kind: type[QtraceError], message: str
) -> None:
    (folder / "inputs.npz").touch()
    torch.save([], folder / "empty.pt")
    with pytest.raises(kind) as caught:
        load(InputsSource(source=source))
    assert str(caught.value).startswith(message)


@pytest.fixture(scope="module")
def processors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tokenizer, an image processor and two processors of both, each in a folder of its own."""
    import transformers
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("processors")
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "hello": 2, "world": 3, "user": 4}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    tokenizer.add_tokens([AddedToken("<image>", special=True)])
    sizes = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    pictures = transformers.CLIPImageProcessor(**sizes)
    template = (
        "{% for m in messages %}user {% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
    )
    chat = transformers.LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="full",
        image_token="<image>",
        chat_template=template,
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder / "vit")
    transformers.CLIPProcessor(pictures, tokenizer).save_pretrained(folder / "clip")
    chat.save_pretrained(folder / "chat")
    return folder


def test_each_text_is_a_sample(processors: Path) -> None:
    section = InputsSource(text=("hello world", "world"))
    samples = load(section, Named(processors / "tokenizer"))
    assert [sample.kwargs["input_ids"].tolist() for sample in samples] == [[[2, 3]], [[3]]]
    assert samples[0].kwargs["attention_mask"].tolist() == [[1, 1]]


def test_the_tokenizer_beside_an_hf_or_config_reference_is_used(processors: Path, folder: Path) -> None:
    section = InputsSource(text=("hello",))
    place = processors / "tokenizer"
    (sample,) = load(section, source=f"hf:{place}?class=AutoModel")
    assert sample.kwargs["input_ids"].tolist() == [[2]]
    (sample,) = load(section, source=f"config:{place}/tokenizer_config.json?seed=1")
    assert sample.kwargs["input_ids"].tolist() == [[2]]


def test_what_the_model_does_not_take_is_left_out(processors: Path) -> None:
    (sample,) = load(InputsSource(text=("hello",)), NoMask(processors / "tokenizer"))
    assert list(sample.kwargs) == ["input_ids"]


def test_images_alone(processors: Path, red: str) -> None:
    (sample,) = load(InputsSource(image=(red,)), Named(processors / "vit"))
    assert list(sample.kwargs) == ["pixel_values"]
    assert sample.kwargs["pixel_values"].shape == (1, 3, 8, 8)


def test_texts_and_images_go_in_pairs(processors: Path, red: str) -> None:
    samples = load(InputsSource(text=("hello", "world"), image=(red,)), Named(processors / "clip"))
    assert [sample.kwargs["input_ids"].tolist() for sample in samples] == [[[2]], [[3]]]
    assert all(sample.kwargs["pixel_values"].shape == (1, 3, 8, 8) for sample in samples)


def test_a_chat_template_places_the_image(processors: Path, red: str) -> None:
    (sample,) = load(InputsSource(text=("hello",), image=(red,)), Named(processors / "chat"))
    ids = sample.kwargs["input_ids"][0].tolist()
    assert (ids[0], ids[-1], len(ids)) == (4, 2, 6)
    (sample,) = load(InputsSource(image=(red,)), Named(processors / "chat"))
    assert sample.kwargs["input_ids"][0].tolist() == ids[:-1]


NEED = "--text and --image need the reference's own tokenizer or processor, and "


@pytest.mark.parametrize(
    ("section", "place", "kind", "message"),
    [
        (
            {"text": ("hello",)},
            "",
            UsageError,
            NEED + "m.py:make (Named) names none; use an hf: reference, or give --inputs",
        ),
        ({"text": ("  ",)}, "tokenizer", UsageError, "the text '  ' makes no tokens; give one that does"),
        (
            {"image": ("red.png",)},
            "tokenizer",
            UsageError,
            "--image: m.py:make has a TokenizersBackend, which takes no images",
        ),
        (
            {"text": ("hello",), "image": ("red.png",)},
            "vit",
            UsageError,
            "--text: m.py:make has a ViTImageProcessor",
        ),
        ({"image": ("rde.png",)}, "vit", SourceError, "no such image: rde.png; did you mean red.png?"),
        ({"image": ("scribble",)}, "vit", SourceError, "scribble: no image that Pillow can read"),
        (
            {"text": ("a", "b", "c"), "image": ("red.png", "red.png")},
            "clip",
            UsageError,
            "3 texts and 2 images make no pairs; give equally many, or one of either",
        ),
        (
            {"text": ("hello",)},
            "vit",
            SourceError,
            "m.py:make has no tokenizer that transformers can load from ",
        ),
        (
            {"text": ("a <image>",), "image": ("red.png",)},
            "chat",
            SourceError,
            "the LlavaProcessor of m.py:make cannot process these texts and images (",
        ),
    ],
)
def test_what_a_processor_cannot_do_is_one_sentence(
    processors: Path,
    folder: Path,
    red: str,
    section: dict[str, Any],
    place: str,
    kind: type[QtraceError],
    message: str,
) -> None:
    (folder / "scribble").write_bytes(b"noise")
    with pytest.raises(kind) as caught:
        load(InputsSource(**section), Named(processors / place if place else ""))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.real_model
def test_a_text_through_a_real_tokenizer() -> None:
    place = ROOT / ".cache" / "qtrace" / "smollm2"
    if not place.is_dir():
        pytest.skip("smollm2 is not there; `make models` puts it there")
    (sample,) = load(InputsSource(text=("The capital of France is Paris.",)), source=f"hf:{place}")
    assert sorted(sample.kwargs) == ["attention_mask", "input_ids"]
    assert sample.kwargs["input_ids"].tolist() == [[504, 3575, 282, 4649, 314, 7042, 30]]
