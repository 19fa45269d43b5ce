"""The manifest of a stored trace: its records. Free of torch.

A trace is a folder:

    manifest.json       what ran, call by call; names of tensors, and where each lies
    manifest.sha256     the manifest's digest, as `sha256sum` writes it
    tensors-00001.safetensors, …   the tensors, each once

A tensor is named by the SHA-256 of its dtype, shape and bytes; a shard's digest is that of its header, which holds
those names. So the manifest's digest vouches for every byte of the folder that a number is made of.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qtrace.report.records import Side, TensorSpec

SCHEMA = "qtrace-trace/1"
# Bytes of an element, by the name that safetensors has for its dtype.
WIDTHS = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1},
}
# (file, line, function)
Line = tuple[str, int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor of the folder; `spec` is what the model had, `dtype` (safetensors' name) and `shape` what is stored.

    The two differ under `--as`, for a sketch, and for a subclass, which is stored by the numbers that it stands for.
    `offset` counts from the end of the shard's header; `shard` is None where there were no values to read. `mean`,
    `stddev` and `non_finite` are known of sketches only, as are `min` and `max` of the spec.
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
    """A nested value by its leaves; `object` numbers the objects, such as caches, that several calls are handed."""

    leaves: tuple[StoredLeaf, ...] = ()
    object: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCall:
    """One call, in the order of entry.

    `parent` is the number of the call that it ran inside, `caller` that one's module. `entry` and `order` count the
    calls that the model had left when this one was entered and left. `positional` and `passed` are the names of its
    arguments that were given by position, and that were given at all. `error` is what it raised where the model went
    on.
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
    """A parameter or buffer by what it is, and the digest of its values; None where it has none to read."""

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
    """One module of the tree; one that stands in several places is told at the first, and `alias_of` names that.

    `attributes` are the plain ones, the wrapper's name for the float module among them; `functions` are those that hold
    a function, by its qualified name. `forward` is where the code of its forward begins.
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
    """A leaf of one sample, as a report tells of it: its name, what it is, a digest, and its first values."""

    sample: int
    name: str
    spec: TensorSpec
    digest: str | None = None
    values: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSample:
    """One run of the model: its calls, what another entry than forward returned, and calls that were not seen."""

    calls: tuple[StoredCall, ...] = ()
    returned: StoredValue | None = None
    unseen: tuple[tuple[str, str, int], ...] = ()
    silent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A file of tensors: its size, the size of its header, and the SHA-256 of that."""

    file: str
    bytes: int
    header: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that a trace tells beside the elements of its tensors.

    `modules` are those of the whole model, `selected` the paths of those whose calls are told (the root always);
    `arguments` says whether these are told with their arguments, `sketches` whether the tensors are samples only.
    `draws_random` says that the model drew random numbers while it ran.
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
        """Return the size of all tensors that are stored."""
        return sum(tensor.bytes for tensor in self.tensors if tensor.shard is not None)
