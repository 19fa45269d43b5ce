"""The records of a stored trace's manifest. Free of torch.

A trace is a folder:

    manifest.json       the calls in order; the names of the tensors, and the place of each
    manifest.sha256     the manifest's digest, as `sha256sum` writes it
    tensors-00001.safetensors, …   the tensors, each once

The name of a tensor is the SHA-256 of its dtype, shape and bytes. A shard's digest is the SHA-256 of its header, which
holds those names. So the manifest's digest covers every byte of the folder that a number is computed from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qtrace.report.records import Side, TensorSpec

SCHEMA = "qtrace-trace/1"
# Bytes of an element, by safetensors' name of its dtype.
WIDTHS = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1},
}
# (file, line, function)
Line = tuple[str, int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor of the folder: `spec` as in the model, `dtype` (safetensors' name) and `shape` as stored.

    The two differ under `--as`, for a sketch, and for a tensor subclass, which is stored as the numbers that it
    represents. `offset` counts from the end of the shard's header; `shard` is None where there were no values to read.
    `mean`, `stddev` and `non_finite` are known of sketches only, as are `min` and `max` of the spec.
    """

    spec: TensorSpec
    dtype: str = ""
    shape: tuple[int, ...] = ()
    digest: str = ""
    shard: int | None = None
    offset: int = 0
    bytes: int = 0
    mean: float | None = None
    stddev: float | None = None
    non_finite: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLeaf:
    """One leaf of a nested value: the number of a tensor, or a plain value (see `qtrace.traces.literals`)."""

    path: str
    tensor: int | None = None
    plain: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredValue:
    """A nested value by its leaves; `object` numbers the objects, such as caches, that several calls receive."""

    leaves: tuple[StoredLeaf, ...] = ()
    object: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCall:
    """One call, in the order of entry.

    `parent` is the number of the enclosing call, `caller` the module of that call. `entry` and `order` count the calls
    that had ended when this call was entered and when it returned. `positional` names the arguments that were passed by
    position, `passed` all arguments that were passed. `error` is the exception that it raised where the model went on.
    """

    module: str
    type: str
    call: int
    caller: str
    entry: int
    order: int
    parent: int | None = None
    arguments: dict[str, StoredValue] = field(default_factory=dict)
    positional: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()
    outputs: StoredValue = StoredValue()
    site: Line | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredParameter:
    """The spec of a parameter or buffer, and the digest of its values; None where it has no values to read."""

    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSignature:
    """The parameters of a module's forward, as `qtrace.engine.Signature` has them."""

    positional: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)
    named: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModule:
    """One module of the tree; a module in several places is described at the first, which `alias_of` names.

    `attributes` are the plain attributes, among them the wrapper's name for the float module. `functions` are the
    attributes that hold a function, by the function's qualified name. `forward` is the line where its forward begins.
    """

    path: str
    type: str
    alias_of: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    functions: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, StoredParameter | None] = field(default_factory=dict)
    buffers: dict[str, StoredParameter | None] = field(default_factory=dict)
    signature: StoredSignature = StoredSignature()
    forward: Line | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredInput:
    """A leaf of one sample, as a report lists it: its name, its spec, a digest, and its first values."""

    sample: int
    name: str
    spec: TensorSpec
    digest: str | None = None
    values: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSample:
    """One run of the model: its calls, the value of an entry other than forward, and the calls that were not seen."""

    calls: tuple[StoredCall, ...] = ()
    returned: StoredValue | None = None
    unseen: tuple[tuple[str, str, int], ...] = ()
    silent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A file of tensors: its size, the size of its header, and the SHA-256 of the header."""

    file: str
    bytes: int
    header: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All data of a trace except the elements of its tensors.

    `modules` are those of the whole model. `selected` are the paths of the modules whose calls are recorded (the root
    always is). `arguments` says whether these calls are recorded with arguments, `sketches` whether only sketches of
    the tensors are stored. `draws_random` says that the model drew random numbers while it ran.
    """

    qtrace: str
    created: str
    environment: dict[str, Any]
    model: Side
    call: str = "forward"
    arguments: bool = True
    sketches: bool = False
    cast: str | None = None
    draws_random: bool = False
    selected: tuple[str, ...] = ()
    modules: tuple[StoredModule, ...] = ()
    inputs: tuple[StoredInput, ...] = ()
    samples: tuple[StoredSample, ...] = ()
    tensors: tuple[StoredTensor, ...] = ()
    shards: tuple[Shard, ...] = ()
    warnings: tuple[str, ...] = ()
    schema: str = SCHEMA

    @property
    def stored_bytes(self) -> int:
        """Return the size in bytes of all stored tensors."""
        return sum(tensor.bytes for tensor in self.tensors if tensor.shard is not None)
