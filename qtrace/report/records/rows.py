"""Value types for compared values: one tensor of one call, one argument of one call, one call of one side."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from qtrace.report.records.quantizers import QuantFacts


class Status(str, Enum):
    """Whether a pair could be compared, and if not, why."""

    COMPARED = "compared"
    SHAPE_MISMATCH = "shape_mismatch"
    STRUCTURE_MISMATCH = "structure_mismatch"
    NON_FINITE = "non_finite"
    CONSTANT_REFERENCE = "constant_reference"
    REFERENCE_ONLY = "reference_only"
    CANDIDATE_ONLY = "candidate_only"


# A row or an argument that only one side has.
ONE_SIDED = (Status.REFERENCE_ONLY, Status.CANDIDATE_ONLY)


class Verdict(str, Enum):
    """The meaning of a row: agreement, agreement under a relation, or the origin of a difference.

    `EQUAL` is up to rounding, or up to the fill of a mask; `LAYOUT` and `GAIN` are equal in another layout or up to a
    factor. `ABSORBED` differs, but the call around it gives the right output again. `INTRODUCED` is made in this
    module, `MISCALLED` comes from a wrong argument of its caller, `INHERITED` entered with the arguments or comes from
    an inner module, and `AMPLIFIED` left much larger than it entered.
    """

    EQUAL = "equal"
    LAYOUT = "layout"
    GAIN = "gain"
    ABSORBED = "absorbed"
    INHERITED = "inherited"
    AMPLIFIED = "amplified"
    INTRODUCED = "introduced"
    MISCALLED = "miscalled"
    NON_FINITE = "non_finite"
    STRUCTURE = "structure"
    UNMATCHED = "unmatched"


# The caller of a model can use an output in these relations unchanged; it would have to know any other convention.
_TAKEN_AS_THEY_ARE = ("layout", "mask")
# With one of these verdicts a row's two tensors count as the same.
AGREEING = frozenset({Verdict.EQUAL, Verdict.LAYOUT})


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The description of a value without its elements: `dtype` as in "float32"; for a plain value `shape` is None.

    `type` names the class where it is no plain tensor ("int", "NoneType", "QTensor"); `value` is the repr of a plain
    value; `min` and `max` are over the finite elements, where they were measured.
    """

    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    type: str = "Tensor"
    value: str | None = None
    min: float | None = None
    max: float | None = None

    def __str__(self) -> str:
        if self.shape is None:
            return self.value if self.value is not None else self.type
        return f"{self.dtype} [{','.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of |reference - candidate| over the pairs where both are finite; for formulas see `qtrace.numerics`.

    `mean` to `stddev` are in the tensor's own unit (population stddev), `peir` and `rel_l2` are ratios,
    `sqnr_db` is in dB (None where the noise is zero: infinite), `cosine` is in [-1, 1], `mismatch` is the
    fraction of unequal elements (integers and bools only), `non_finite` counts elements per side, `elements` the pairs
    that `mean` to `stddev` are over.
    """

    status: Status = Status.COMPARED
    mean: float | None = None
    min: float | None = None
    max: float | None = None
    stddev: float | None = None
    peir: float | None = None
    sqnr_db: float | None = None
    cosine: float | None = None
    rel_l2: float | None = None
    mismatch: float | None = None
    non_finite: tuple[int, int] | None = None
    reference_min: float | None = None
    reference_max: float | None = None
    elements: int = 0


@dataclass(frozen=True, slots=True)
class Relation:
    """The relation of the candidate's tensor to the reference's; verified by value.

    `kind` "layout" has `parameters` such as {"squeeze": [2, 3], "permute": [0, 2, 1, 3]}; `error` is the PEIR that
    remains under the relation.
    """

    kind: str
    parameters: dict[str, Any]
    error: float | None = None

    def __str__(self) -> str:
        """Return the kind with its parameters.

        >>> str(Relation("layout", {"squeeze": [0], "permute": [0, 2, 1]}))
        'layout: squeeze 0, permute 0 2 1'
        >>> str(Relation("gain", {"factor": 0.17677669, "name": "1/sqrt(32)"}))
        'gain: factor 0.1768 = 1/sqrt(32)'
        >>> str(Relation("where", {"axis": 1, "size": 24, "count": 7, "indices": [[17, 23]], "from": 17}))
        'differs at 7 of 24 along axis 1: from 17 on'
        """
        if self.kind == "where":
            return self._place()
        if self.kind == "masked_positions":
            first, last = self.parameters["first"], self.parameters["last"]
            at = f"{first} to {last}" if first != last else f"{first}"
            return f"padding: masked positions {at} differ, all others agree"
        parts = ", ".join(
            f"{name} {_plain(value)}".strip() for name, value in self.parameters.items() if name != "name"
        )
        parts += f" = {self.parameters['name']}" if self.parameters.get("name") else ""
        kind = self.kind.replace("_", " ")
        return f"{kind}: {parts}" if parts else kind

    def _place(self) -> str:
        told = self.parameters
        ranges = [f"{first}" if first == last else f"{first} to {last}" for first, last in told.get("indices", ())]
        where = f"from {told['from']} on" if "from" in told and told["count"] > 1 else ", ".join(ranges)
        factor = f", by the factor {told['factor']:.4g}" if "factor" in told else ""
        return f"differs at {told.get('count')} of {told.get('size')} along axis {told.get('axis')}: {where}{factor}"


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(_plain, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One tensor of one call: (module, call, output). Paths are the reference's names.

    `module` is the path as in `named_modules` ("" is the root), `call` counts that module's calls from 0, `output` is
    the path within a nested output ("" for a single tensor), `order` the place in the reference's execution order.
    `peir` is raw (after undoing the layout), `peir_related` the PEIR that remains under the verified relation;
    `peir_in` is the largest PEIR among the call's arguments (received), `peir_local` the error that this module makes
    on the reference's arguments (introduced), `peir` itself the accumulated error. `floor` is the PEIR up to which the
    row counts as rounding noise. `non_finite_same` says whether the non-finite values are the same on both sides, at
    the same places.

    A run over several samples makes one row for all samples in which the call was made; `samples` counts them. `mean`
    to `stddev` are over their `elements` together; the verdict and each ratio are the worst. The PEIR with its status,
    relation and floor is from the sample with the index `sample`. See `qtrace.tracing.aggregate.merged`. `peir_local`
    is from the sample that was examined. `quantization` describes how the candidate's module quantizes, where this is
    known.
    """

    module: str
    call: int
    output: str
    type: str
    order: int
    status: Status
    verdict: Verdict | None = None
    sample: int = 0
    samples: int = 1
    reference: TensorSpec | None = None
    candidate: TensorSpec | None = None
    relation: Relation | None = None
    mean: float | None = None
    min: float | None = None
    max: float | None = None
    stddev: float | None = None
    peir: float | None = None
    sqnr_db: float | None = None
    cosine: float | None = None
    rel_l2: float | None = None
    mismatch: float | None = None
    non_finite: tuple[int, int] | None = None
    non_finite_same: bool | None = None
    peir_related: float | None = None
    peir_in: float | None = None
    peir_local: float | None = None
    floor: float | None = None
    elements: int = 0
    quantization: QuantFacts | None = None

    @property
    def error(self) -> float | None:
        """Return the PEIR that counts: the rest under a relation that is undone somewhere, else the raw PEIR.

        Nothing undoes a relation of the model's own output (module ""), except a layout or a mask's fill.
        """
        undone = self.module != "" or self.relation is None or self.relation.kind in _TAKEN_AS_THEY_ARE
        return self.peir_related if self.peir_related is not None and undone else self.peir


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """One argument of one call that differs between the sides.

    `argument` is the reference's parameter name, with the path inside a nested value ("position_embeddings.0");
    `caller` is the path of the module whose code made the call. A side that did not pass it has None. It differs in
    `samples` samples; the values are from the worst one, `sample`.
    """

    module: str
    call: int
    argument: str
    caller: str
    status: Status
    order: int
    sample: int = 0
    samples: int = 1
    reference: TensorSpec | None = None
    candidate: TensorSpec | None = None
    relation: Relation | None = None
    peir: float | None = None
    max: float | None = None


@dataclass(frozen=True, slots=True)
class ValueTrace:
    """One argument or output of one call of one side.

    `name` is the parameter's name or the output path ("" for a single tensor); min and max are in `spec`; `values` is
    the full tensor as text, where it was requested.
    """

    name: str
    spec: TensorSpec
    mean: float | None = None
    stddev: float | None = None
    values: str | None = None


@dataclass(frozen=True, slots=True)
class CallTrace:
    """One call of one side's module, with all arguments and outputs.

    `side` is "reference" or "candidate", `module` the path in that side's own names, `facts` the quantization facts
    that the module holds ({"obs_act_in.scale": "0.0123"}).
    """

    side: str
    module: str
    type: str
    call: int
    arguments: tuple[ValueTrace, ...]
    outputs: tuple[ValueTrace, ...]
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pairing:
    """A candidate module that is aligned with a reference module.

    `rule` is the rule that made the pair ("exact", "name_attribute", "stripped"), `confidence` is "high" or "low";
    `reference_calls` and `candidate_calls` are None where the models were not run.
    """

    reference: str
    candidate: str
    rule: str
    confidence: str = "high"
    reference_type: str = ""
    candidate_type: str = ""
    reference_calls: int | None = None
    candidate_calls: int | None = None
