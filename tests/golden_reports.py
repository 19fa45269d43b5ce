"""Reports made by hand, one for each kind of thing that a reader meets."""

from __future__ import annotations

from typing import Any

from qtrace.records import (
    Argument,
    Coverage,
    Finding,
    Outcome,
    Relation,
    ReportData,
    Row,
    Side,
    Status,
    TensorSpec,
    Unmatched,
    Verdict,
)

TEXT = "model.language_model"
VISUAL = "model.visual"
# The noise of a correct float32 candidate, about 1e-6, must never be taken for a difference.
AGREE = 1e-5


def tensor(*shape: int, dtype: str = "float32", low: float | None = None, high: float | None = None) -> TensorSpec:
    return TensorSpec(shape=shape, dtype=dtype, min=low, max=high)


class Rows:
    """Collects rows in execution order; numbers follow from PEIR so that each row's are its own."""

    def __init__(self, shape: tuple[int, ...] = (1, 84, 32)) -> None:
        self.rows: list[Row] = []
        self._shape = shape
        self._order = 0

    def add(self, module: str, peir: float | None, type: str = "Linear", *, new: bool = True, **fields: Any) -> None:
        """Add a row; with `new` False it is another output of the call before."""
        self._order += new
        verdict = Verdict.DIFFERS if peir is None or peir > AGREE else Verdict.EQUAL
        numbers: dict[str, Any] = {}
        if peir is not None:
            numbers = {
                "mean": peir / 13,
                "min": 0.0,
                "max": peir * 1.7,
                "stddev": peir / 11,
                "sqnr_db": 90.0 - self._order if peir else None,
                "cosine": 1 - peir / 3,
                "rel_l2": peir / 2,
            }
        spec = tensor(*self._shape)
        defaults = {
            "call": 0,
            "output": "",
            "status": Status.COMPARED,
            "verdict": verdict,
            "reference": spec,
            "candidate": spec,
        }
        named = {"module": module, "type": type, "order": self._order, "peir": peir}
        self.rows.append(Row(**{**defaults, **numbers, **named, **fields}))


def side(source: str, kind: str, **fields: Any) -> Side:
    usual = {"parameters": 1_234_567, "dtypes": ("float32",), "devices": ("cpu",), "training": False}
    return Side(source=source, type=kind, **{**usual, **fields})


def report(rows: Rows, outcome: Outcome, **fields: Any) -> ReportData:
    defaults: dict[str, Any] = {
        "qtrace": "0.1.0",
        "created": "2026-01-02T03:04:05+00:00",
        "environment": {},
        "reference": side("qtrace.zoo.qwen3_vl:tiny(seed=42)", "Qwen3VLForConditionalGeneration"),
        "candidate": side("wrap tico(quantize=False)", "QuantQwen3VLForConditionalGeneration"),
        "inputs": (
            {"sample": 0, "name": "input_ids", "spec": tensor(1, 84, dtype="int64", low=0.0, high=151655.0),
             "values": "[151644.,    872.,    198., 151652.]"},
            {"sample": 0, "name": "pixel_values", "spec": tensor(192, 1536, low=-1.0, high=0.9922),
             "values": "[-0.0118, -0.0118, -0.0118, -0.0118]"},
        ),
        "coverage": Coverage(77, 74, {"no_partner": 2, "no_tensor": 1}),
        "unmatched": (
            Unmatched("reference", f"{TEXT}.rotary_emb", "Qwen3VLTextRotaryEmbedding", 1, "no_partner"),
            Unmatched("reference", f"{VISUAL}.rotary_pos_emb", "VisionRotaryEmbedding", 1, "no_partner"),
        ),
        "settings": {"tolerance": "auto"},
    }  # fmt: skip
    return ReportData(outcome=outcome, rows=tuple(rows.rows), **{**defaults, **fields})


def _vision(rows: Rows) -> None:
    rows.add(f"{TEXT}.embed_tokens", 0.0, "Embedding")
    layout = Relation("layout", {"reshape": [1, 48, 64]})
    rows.add(f"{VISUAL}.patch_embed.proj", 1.11e-06, "Conv3d", relation=layout, verdict=Verdict.LAYOUT)
    rows.add(f"{VISUAL}.patch_embed", 1.11e-06, "PatchEmbed")
    rows.add(f"{VISUAL}.blocks.0.attn.qkv", 0.34)
    rows.add(f"{VISUAL}.blocks.0.attn.proj", 5.1e-07)
    rows.add(f"{VISUAL}.blocks.0.attn", 5.1e-07, "VisionAttention")
    rows.add(f"{VISUAL}.blocks.0", 6.2e-07, "VisionBlock")
    rows.add(VISUAL, 6.4e-07, "VisionModel", output="last_hidden_state")


def mask_bug() -> ReportData:
    """The seed's pair: the leap is at `o_proj`, the cause an attention mask of another shape."""
    rows = Rows()
    _vision(rows)
    arguments = []
    for layer in range(4):
        path = f"{TEXT}.layers.{layer}"
        arguments.append(
            Argument(
                module=path,
                call=0,
                argument="attention_mask",
                caller=TEXT,
                status=Status.SHAPE_MISMATCH,
                order=len(rows.rows),
                reference=tensor(1, 1, 84, 84, low=-3.4028e38, high=0.0),
                candidate=tensor(1, 84, dtype="int64", low=1.0, high=1.0),
            )
        )
        received = 0.5 * layer
        for name in ("q_proj", "k_proj", "v_proj"):
            rows.add(f"{path}.self_attn.{name}", 7.13e-07 + received / 9)
        rows.add(f"{path}.self_attn.o_proj", 0.578 + layer / 1000)
        rows.add(f"{path}.self_attn", 0.578 + layer / 1000, "TextAttention", output="0")
        rows.add(f"{path}.mlp", 0.6 + layer / 1000, "TextMLP")
        rows.add(path, 0.59 + layer / 1000, "DecoderLayer")
    rows.add(f"{TEXT}.norm", 0.611, "RMSNorm")
    rows.add(TEXT, 0.611, "TextModel", output="last_hidden_state")
    rows.add("lm_head", 0.618)
    rows.add("", 0.4017, "Qwen3VLForConditionalGeneration", output="logits", sqnr_db=11.24, mean=0.132488)
    return report(rows, Outcome.FAULT, arguments=tuple(arguments))


def clean() -> ReportData:
    """The correct pair: a folded scale shows at `qkv` and is undone before the output."""
    rows = Rows()
    _vision(rows)
    rows.add("lm_head", 6.5e-07)
    rows.add("", 6.5e-07, "Qwen3VLForConditionalGeneration", output="logits")
    return report(rows, Outcome.CLEAN, settings={"tolerance": 1e-5}, coverage=Coverage(9, 9))


def odds() -> ReportData:
    """Everything that is no plain pair of numbers, over repeated calls, nested outputs and two samples."""
    rows = Rows((2, 3))
    numberless: dict[str, Any] = {"mean": None, "min": None, "max": None, "stddev": None}
    structure: dict[str, Any] = {**numberless, "verdict": Verdict.STRUCTURE}
    for sample in (0, 1):
        rows.add("encoder.step", 0.0, call=0, sample=sample)
        rows.add("encoder.step", 2e-07, call=1, sample=sample, candidate=tensor(2, 3, dtype="int64"))
        rows.add("encoder.cache", 3e-07, "Cache", output="layers.0.keys", sample=sample)
        rows.add("encoder.cache", 4e-07, "Cache", output="layers.0.values", sample=sample, new=False)
        relation = Relation("layout", {"squeeze": [2, 3], "permute": [0, 2, 1, 3]})
        rows.add("encoder.norm", 5e-07, "LayerNorm", relation=relation, verdict=Verdict.LAYOUT, sample=sample)
    rows.add("decoder.shape", None, sample=1, status=Status.SHAPE_MISMATCH, candidate=tensor(2, 4), **structure)
    none = TensorSpec(type="NoneType", value="None")
    rows.add("decoder.pair", None, sample=1, status=Status.STRUCTURE_MISMATCH, candidate=none, **structure)
    nan: dict[str, Any] = {"status": Status.NON_FINITE, "verdict": Verdict.NON_FINITE, "non_finite": (0, 3)}
    rows.add("decoder.nan", 0.25, sample=1, **nan)
    rows.add("decoder.constant", None, sample=1, status=Status.CONSTANT_REFERENCE, mean=0.5, max=1.0, stddev=0.25)
    rows.add("decoder.argmax", 0.02, "ArgMax", sample=1, mismatch=0.125)
    alone: dict[str, Any] = {**numberless, "verdict": Verdict.UNMATCHED}
    rows.add("decoder.skipped", None, sample=1, status=Status.REFERENCE_ONLY, candidate=None, **alone)
    rows.add("decoder.extra", None, sample=1, status=Status.CANDIDATE_ONLY, reference=None, **alone)
    rows.add("decoder.a_component_whose_name_is_longer_than_its_column", 0.03, "Wide", sample=1)
    rows.add("", 0.125, "Net", sample=0, output="logits", verdict=Verdict.DIFFERS)
    rows.add("", None, "Net", sample=1, output="logits", status=Status.SHAPE_MISMATCH,
             candidate=tensor(3, 2), **structure)  # fmt: skip
    arguments = (
        Argument(module="decoder", call=2, argument="past_key_values.0", caller="", sample=1,
                 status=Status.REFERENCE_ONLY, order=11, reference=tensor(2, 3), candidate=None),
        Argument(module="decoder", call=0, argument="scale", caller="", sample=0,
                 status=Status.COMPARED, order=3, peir=0.5, reference=TensorSpec(type="float", value="1.0"),
                 candidate=TensorSpec(type="float", value="2.0")),
    )  # fmt: skip
    return report(
        rows,
        Outcome.FAULT,
        arguments=arguments,
        reference=side("models.py:reference", "Net"),
        candidate=side(
            "models.py:quant", "QuantNet", dtypes=("bfloat16", "float32"), devices=("cuda",), training=True
        ),
        inputs=({"sample": 0, "name": "x", "spec": {"shape": [2, 3], "dtype": "float32", "type": "Tensor"}},
                {"sample": 1, "name": "x", "spec": {"shape": [2, 4], "dtype": "float32", "type": "Tensor"}}),
        coverage=Coverage(20, 17, {"alone": 1, "no_partner": 2}),
        unmatched=(Unmatched("reference", "decoder.skipped", "Linear", 1, "partner_not_called"),),
        warnings=("the candidate has 2 modules in training mode (decoder …); call .eval() on it",),
    )  # fmt: skip


def inconclusive() -> ReportData:
    """Names that never met: nothing may look like agreement."""
    rows = Rows()
    rows.add("", 0.0, "Net", output="logits")
    names = [f"encoder.layers.{n}" for n in range(6)]
    return report(
        rows,
        Outcome.INCONCLUSIVE,
        coverage=Coverage(12, 2, {"no_partner": 10}),
        unmatched=tuple(Unmatched("reference", name, "Layer", 1, "no_partner") for name in names),
    )


def partial() -> ReportData:
    """A forward that raised half-way."""
    rows = Rows()
    rows.add("embed", 0.0, "Embedding")
    rows.add("layers.0", 3e-07, "Block")
    return report(
        rows,
        Outcome.INCONCLUSIVE,
        coverage=Coverage(3, 2, {"unfinished": 1}),
        unmatched=(),
        error="the candidate raised ValueError in layers.1 (Block): too bad (models.py:7)",
    )


def drift() -> ReportData:
    """Slow growth without a leap, with what a diagnosis adds."""
    rows = Rows()
    for layer in range(24):
        rows.add(f"model.layers.{layer}", 2e-03 * (layer + 1), "DecoderLayer")
    rows.add("", 0.05, "LlamaForCausalLM", output="logits")
    finding = Finding(
        rank=1,
        module="model.layers.7",
        call=0,
        kind="introduces",
        summary="adds more error than its peers",
    )
    return report(rows, Outcome.DRIFT, findings=(finding,), coverage=Coverage(24, 24), unmatched=(), inputs=())


REPORTS = {
    "mask_bug": mask_bug,
    "clean": clean,
    "odds": odds,
    "inconclusive": inconclusive,
    "partial": partial,
    "drift": drift,
}
