"""The notes on a row beside its numbers, in a few words."""

from __future__ import annotations

from qtrace.report.records import Row, Status, TensorSpec
from qtrace.report.text import ABSENT, share

STATUS_WORDS = {
    Status.COMPARED: "compared",
    Status.SHAPE_MISMATCH: "shape mismatch",
    Status.STRUCTURE_MISMATCH: "structure mismatch",
    Status.NON_FINITE: "non-finite",
    Status.CONSTANT_REFERENCE: "constant reference",
    Status.REFERENCE_ONLY: "only in the reference",
    Status.CANDIDATE_ONLY: "only in the candidate",
}

REASON_WORDS = {
    "no_partner": "without a partner in the other model",
    "passed_on": "returning a tensor that was compared elsewhere",
    "fused": "computed by the candidate in one with others",
    "split": "computed by the candidate in several modules",
    "no_tensor": "without a tensor in the output",
    "alone": "without a counterpart in the candidate's run",
    "partner_not_called": "with a partner that was not called",
    "other_place": "called in another place",
    "raised": "raised inside the model",
    "empty": "with nothing but empty outputs",
    "shape_mismatch": "with outputs of other shapes",
    "structure_mismatch": "with outputs of another structure",
    "in_thread": "made in another thread",
    "in_vmap": "made under a function transform such as vmap",
    "unfinished": "not finished when the run ended",
}


def reason(key: str) -> str:
    """Return the reason why calls were not compared in words; an unknown reason is its own key."""
    return REASON_WORDS.get(key, key.replace("_", " "))


def notes(row: Row, *, leap: Row | None = None, largest: Row | None = None) -> list[str]:
    """Return the row's marks, its status unless it is plainly "compared", its relation, and its quantization."""
    said = []
    if row is leap:
        said.append("first leap")
    if row is largest:
        said.append("largest PEIR")
    if row.status is Status.NON_FINITE:
        said.append("non-finite " + "/".join(map(str, row.non_finite or ("?", "?"))))
    elif row.status is not Status.COMPARED:
        said.append(STATUS_WORDS[row.status])
    if row.status is Status.STRUCTURE_MISMATCH and row.reference == row.candidate:
        # The two specs are alike: the class of one side gives no access to its numbers.
        said.append(f"{spec(row.candidate)} without values that can be read")
    elif row.status in (Status.SHAPE_MISMATCH, Status.STRUCTURE_MISMATCH) or _other_kind(row):
        said.append(f"{spec(row.reference)} / {spec(row.candidate)}")
    if row.mismatch:
        said.append(f"{share(row.mismatch, 1)} of elements differ")
    if row.relation is not None:
        said.append(str(row.relation))
    if row.quantization is not None:
        said.append(row.quantization.short())
    return said


def spec(value: TensorSpec | None) -> str:
    """Return a value's dtype and shape; `-` for a missing value."""
    return ABSENT if value is None else str(value)


def _other_kind(row: Row) -> bool:
    """Return whether only one side holds floats; the heading states float32 against bfloat16.

    A quantized tensor represents floats, and its quantization, where known, states its type.
    """
    if row.status not in (Status.COMPARED, Status.NON_FINITE, Status.CONSTANT_REFERENCE):
        return False
    dtypes = [value.dtype for value in (row.reference, row.candidate) if value is not None and value.dtype]
    floats = ("float", "qint", "quint") if row.quantization is not None else ("float",)
    return len({any(part in dtype for part in floats) for dtype in dtypes}) > 1
