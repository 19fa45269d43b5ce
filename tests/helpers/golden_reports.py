"""Reports made by hand, one for each kind of thing that a reader meets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from qtrace.report.records import (
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
        verdict = Verdict.INHERITED if peir is None or peir > AGREE else Verdict.EQUAL
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


def site(file: str, line: int) -> dict[str, Any]:
    return {"file": file, "line": line, "function": "forward"}


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
    rows.add(f"{VISUAL}.blocks.0.attn.qkv", 0.34, verdict=Verdict.ABSORBED, peir_in=5.2e-07)
    rows.add(f"{VISUAL}.blocks.0.attn.proj", 5.1e-07)
    rows.add(f"{VISUAL}.blocks.0.attn", 5.1e-07, "VisionAttention")
    rows.add(f"{VISUAL}.blocks.0", 6.2e-07, "VisionBlock")
    rows.add(VISUAL, 6.4e-07, "VisionModel", output="last_hidden_state")


def blameless() -> ReportData:
    """The seed's pair after one pass alone: the leap is at `o_proj`, the cause an attention mask of another shape."""
    return _masked(measured=False)


def mask_bug() -> ReportData:
    """The same with its diagnosis: who hands the mask on, in which lines, and what a graft does."""
    finding = Finding(
        rank=1,
        module=TEXT,
        call=0,
        kind="miscalls",
        argument="attention_mask",
        callee=f"{TEXT}.layers.0",
        callees=tuple(f"{TEXT}.layers.{layer}" for layer in range(4)),
        summary=f"receives the same arguments on both sides, but calls {TEXT}.layers.0 (and 3 more) with another "
        "attention_mask: float32 [1,1,84,84] against int64 [1,84], all 1",
        confirmed=True,
        graft={"before": 0.4017, "after": 5.41e-07},
        source={
            "reference": site("transformers/models/qwen3_vl/modeling_qwen3_vl.py", 849),
            "candidate": site("tico/quantization/wrapq/quant_text_model.py", 212),
        },
    )
    return dataclasses.replace(_masked(measured=True), findings=(finding,))


def _masked(*, measured: bool) -> ReportData:
    rows = Rows()
    _vision(rows)
    arguments = []

    def add(path: str, peir: float, type: str, received: float, verdict: Verdict, **fields: Any) -> None:
        local = 3.1e-07 + len(rows.rows) * 1e-09 if measured else None
        rows.add(path, peir, type, peir_in=received, peir_local=local, verdict=verdict, **fields)

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
        known = Verdict.INHERITED if layer else Verdict.EQUAL
        for name in ("q_proj", "k_proj", "v_proj"):
            add(f"{path}.self_attn.{name}", 7.13e-07 + received / 9, "Linear", received, known)
        add(f"{path}.self_attn.o_proj", 0.578 + layer / 1000, "Linear", 0.62, Verdict.INHERITED)
        leaves = Verdict.INHERITED if layer else Verdict.AMPLIFIED
        add(f"{path}.self_attn", 0.578 + layer / 1000, "TextAttention", received, leaves, output="0")
        add(f"{path}.mlp", 0.6 + layer / 1000, "TextMLP", 0.4, Verdict.INHERITED)
        add(path, 0.59 + layer / 1000, "DecoderLayer", received, Verdict.MISCALLED)
    add(f"{TEXT}.norm", 0.611, "RMSNorm", 0.593, Verdict.INHERITED)
    add(TEXT, 0.611, "TextModel", 4.99e-07, Verdict.AMPLIFIED, output="last_hidden_state")
    add("lm_head", 0.618, "Linear", 0.611, Verdict.INHERITED)
    rows.add("", 0.4017, "Qwen3VLForConditionalGeneration", output="logits", sqnr_db=11.24, mean=0.132488,
             peir_in=0.0)  # fmt: skip
    return report(rows, Outcome.FAULT, arguments=tuple(arguments))


def _llama(layers: int, own: Mapping[str, float]) -> Rows:
    """Rows of a decoder in which the modules `own` introduce so much each, the error growing from there on."""
    rows = Rows((1, 16, 64))
    error = 2e-07

    def add(path: str, type: str) -> None:
        nonlocal error
        received, local = error, own.get(path, 4e-07)
        error = max(error, local) * 1.02
        verdict = Verdict.EQUAL if error < AGREE else Verdict.INTRODUCED if local > AGREE else Verdict.INHERITED
        rows.add(path, error, type, peir_in=received, peir_local=local, verdict=verdict, floor=3e-06)

    for layer in range(layers):
        for name, type in (("self_attn.o_proj", "Linear"), ("mlp.act_fn", "SiLUActivation"), ("mlp", "LlamaMLP")):
            add(f"model.layers.{layer}.{name}", type)
    add("model.norm", "LlamaRMSNorm")
    rows.add("", error, "LlamaForCausalLM", output="logits", peir_in=0.0)
    return rows


LLAMA: dict[str, Any] = {
    "reference": side("hf:models/llama", "LlamaForCausalLM"),
    "candidate": side("port.py:llama", "LlamaForCausalLM"),
    "inputs": (),
    "unmatched": (),
}
HEALED = {"before": 0.0213, "after": 6.1e-07}


def leaf() -> ReportData:
    """One wrong activation, in every layer."""
    path = "model.layers.{}.mlp.act_fn"
    names = tuple(path.format(layer) for layer in range(30))
    finding = Finding(
        rank=1,
        module=names[0],
        call=0,
        kind="introduces",
        summary="computes something else from the same arguments: approximate is 'none' against 'tanh'",
        members=names,
        count=30,
        confirmed=True,
        graft=HEALED,
        evidence=(
            "output: PEIR 1.94e-03 on clean arguments, where rounding explains 3.00e-06",
            "approximate: 'none' against 'tanh'",
            "in all 30 modules alike",
            "no parameter differs",
            "no buffer differs",
        ),
    )
    rows = _llama(30, dict.fromkeys(names, 1.94e-03))
    return report(rows, Outcome.FAULT, findings=(finding,), coverage=Coverage(91, 91), **LLAMA)


def two() -> ReportData:
    """Two independent faults, one of them in a container's own code."""
    wrong = {"model.layers.0.mlp": 0.08, "model.layers.2.self_attn.o_proj": 0.011}
    own = Finding(
        rank=1,
        module="model.layers.0.mlp",
        call=0,
        kind="introduces",
        summary="its own code computes something else from the same arguments",
        confirmed=True,
        graft={"before": 0.0911, "after": 4.4e-07},
        source={
            "reference": site("transformers/models/llama/modeling_llama.py", 171),
            "candidate": site("port.py", 88),
        },
    )
    row = Finding(
        rank=2,
        module="model.layers.2.self_attn.o_proj",
        call=0,
        kind="introduces",
        summary="computes something else from the same arguments: weight row 17 has the opposite sign",
        confirmed=True,
        graft={"before": 0.0124, "after": 4.4e-07},
        evidence=("weight: row 17 has the opposite sign",),
    )
    return report(_llama(4, wrong), Outcome.FAULT, findings=(own, row), coverage=Coverage(13, 13), **LLAMA)


def unconfirmed() -> ReportData:
    """A suspect whose graft does not heal the final outputs, and more of them than are told in full."""
    names = [f"model.layers.{layer}.self_attn.o_proj" for layer in range(5)]
    findings = tuple(
        Finding(
            rank=rank,
            module=name,
            call=0,
            kind="introduces",
            summary="computes something else from the same arguments",
            graft={"before": 0.0311, "after": 0.0298},
        )
        for rank, name in enumerate(names, 1)
    )
    rows = _llama(5, dict.fromkeys(names, 0.01))
    return report(rows, Outcome.FAULT, findings=findings, coverage=Coverage(16, 16), **LLAMA)


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
    both: dict[str, Any] = {"samples": 2}
    rows.add("encoder.step", 0.0, call=0, **both)
    rows.add("encoder.step", 2e-07, call=1, candidate=tensor(2, 3, dtype="int64"))
    rows.add("encoder.cache", 3e-07, "Cache", output="layers.0.keys", sample=1, **both)
    rows.add("encoder.cache", 4e-07, "Cache", output="layers.0.values", new=False, **both)
    relation = Relation("layout", {"squeeze": [2, 3], "permute": [0, 2, 1, 3]})
    rows.add("encoder.norm", 5e-07, "LayerNorm", relation=relation, verdict=Verdict.LAYOUT, **both)
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
    rows.add("", 0.125, "Net", output="hidden", verdict=Verdict.INTRODUCED, **both)
    rows.add("", None, "Net", new=False, sample=1, output="logits", status=Status.SHAPE_MISMATCH,
             candidate=tensor(3, 2), **structure, **both)  # fmt: skip
    arguments = (
        Argument(module="decoder", call=2, argument="past_key_values.0", caller="", sample=1,
                 status=Status.REFERENCE_ONLY, order=11, reference=tensor(2, 3), candidate=None),
        Argument(module="decoder", call=0, argument="scale", caller="", sample=1, samples=2,
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


def raised() -> ReportData:
    """A forward that only the candidate's code cannot do."""
    finding = Finding(
        rank=1,
        module="layers.1",
        call=0,
        kind="raises",
        summary="raises ValueError in the candidate alone: too bad",
        confirmed=True,
        evidence=("the candidate's module is wrapped.layers.1",),
    )
    return dataclasses.replace(partial(), outcome=Outcome.FAULT, findings=(finding,))


def drift() -> ReportData:
    """Slow growth without a leap, in which each layer has its small part."""
    rows = Rows()
    for layer in range(24):
        own = 2e-03 + layer % 5 * 1e-04
        rows.add(f"model.layers.{layer}", 2e-03 * (layer + 1), "DecoderLayer", peir_in=2e-03 * layer, peir_local=own,
                 verdict=Verdict.INTRODUCED)  # fmt: skip
    rows.add("", 0.05, "LlamaForCausalLM", output="logits", peir_in=0.0)
    return report(rows, Outcome.DRIFT, coverage=Coverage(24, 24), unmatched=(), inputs=())


REPORTS: dict[str, Callable[[], ReportData]] = {
    "mask_bug": mask_bug,
    "blameless": blameless,
    "leaf": leaf,
    "two": two,
    "unconfirmed": unconfirmed,
    "clean": clean,
    "odds": odds,
    "inconclusive": inconclusive,
    "partial": partial,
    "raised": raised,
    "drift": drift,
}
