"""Value types of the operator view: the operators of two modules inside one call, and where they part."""

from __future__ import annotations

import json
from dataclasses import dataclass

from qtrace.report.records.codec import to_plain
from qtrace.report.records.rows import Relation, Status, TensorSpec

SCHEMA = "qtrace-operators/1"


@dataclass(frozen=True, slots=True)
class CodeLine:
    """One line of a model's source code, unchanged."""

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class CodePlace:
    """A place in a model's code; `around` are the lines around it, where they were requested and could be read."""

    file: str
    line: int
    function: str
    around: tuple[CodeLine, ...] = ()


@dataclass(frozen=True, slots=True)
class Partner:
    """The counterpart of an operator's result on the other side.

    `operators` are those of the other side; there are none where the other side received the value as an argument. A
    result that holds all heads has several, where the other side has one operator for each head. `relation` relates the
    two; it is None where they are the same values in the same order.
    """

    operators: tuple[int, ...]
    relation: Relation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator of one side, in execution order.

    `name` is torch's ("aten.add.Tensor"), `inputs` are the operators whose results it took, `given` the arguments and
    parameters of the module that it took, `settings` its plain values ("dim=-1"). `module` is the innermost running
    module, in the side's own names. `place` is the first line outside of torch that called it. `own` is the line of the
    chosen module's own code, which differs where that line called an inner module or a function.
    """

    index: int
    name: str
    outputs: tuple[TensorSpec, ...]
    inputs: tuple[int, ...] = ()
    given: tuple[str, ...] = ()
    settings: str = ""
    module: str = ""
    place: CodePlace | None = None
    own: CodePlace | None = None
    partner: Partner | None = None


@dataclass(frozen=True, slots=True)
class Differing:
    """An argument or an output of the call that differs; a side without this value has None."""

    name: str
    status: Status
    reference: TensorSpec | None = None
    candidate: TensorSpec | None = None
    relation: Relation | None = None
    peir: float | None = None


@dataclass(frozen=True, slots=True)
class Agreement:
    """A pair of operators whose results agree: `error` is the PEIR between them after undoing the relation."""

    reference: int
    candidate: int
    relation: Relation | None = None
    error: float | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """Where the sides part: on each side the first operator on the way to the outputs whose result has no partner.

    It takes results that both sides hold, and no later value that is computed from its own result has a partner. None
    where a side returned a value that it had received. A side with `left_out` returns a result that the other side
    holds as well, made by the named operator; this side leaves out what the other side computes from it. `agreed` is
    the last pair before. `error` is the PEIR between the two results where these can be compared, `relation` their
    relation. `arguments` are the differing arguments that enter at these operators.
    """

    reference: int | None
    candidate: int | None
    left_out: tuple[bool, bool] = (False, False)
    agreed: Agreement | None = None
    relation: Relation | None = None
    error: float | None = None
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorView:
    """The result for one call of one module; `agrees` says whether its outputs agree.

    `module` is the reference's path, `candidate` the path of its partner. `call` counts the calls from 0, `calls` is
    the number of calls of each side. `arguments` and `outputs` are those that differ; `error` is the largest PEIR among
    these outputs.
    """

    schema: str = SCHEMA
    module: str
    candidate: str
    call: int
    calls: tuple[int, int]
    agrees: bool
    error: float | None
    arguments: tuple[Differing, ...]
    outputs: tuple[Differing, ...]
    split: Split | None
    reference_operators: tuple[Operator, ...]
    candidate_operators: tuple[Operator, ...]

    @property
    def paired(self) -> tuple[int, int]:
        """The number of operators of each side that have a partner."""
        both = self.reference_operators, self.candidate_operators
        return sum(o.partner is not None for o in both[0]), sum(o.partner is not None for o in both[1])


def operators_json(view: OperatorView) -> str:
    """Return the view as JSON text, ending with a newline."""
    return json.dumps(to_plain(view), indent=1, allow_nan=False) + "\n"
