"""Describes a model for a run: its modules, listed once, and the state that it writes while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch

from qtrace.engine.align import ModuleInfo
from qtrace.report.records import Side
from qtrace.tree import join

_MODE_MATTERS = (
    torch.nn.modules.dropout._DropoutNd,
    torch.nn.modules.batchnorm._NormBase,
    torch.nn.RReLU,
    torch.nn.RNNBase,
    torch.nn.MultiheadAttention,
    torch.nn.TransformerEncoderLayer,
    torch.nn.TransformerDecoderLayer,
)
# The mode has no effect here: modules that are quantized for good are not trained, and a graph keeps its traced mode.
_MINDLESS = ("torch.nn", "torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.export", "torch.fx")
# A buffer of at most this many elements is copied in any case.
_SMALL = 1 << 16


@dataclass(frozen=True, slots=True)
class Model:
    """One side's model; `name` is "reference" or "candidate", `modules` are by path, as `named_modules` lists them.

    `aliases` maps the further paths of a module that occurs in several places to its first one. `devices` are the
    kinds of device that hold parameters and buffers, always with "cpu". `in_training` are the paths of the modules in
    training mode that may behave differently for it: few of torch's own classes read the mode, but any other class
    may. Every call of the model is made inside of `within()`. `rewriting` says of the modules that have run whether
    hooks of their own change their output, see `qtrace.engine.hooks`.
    """

    name: str
    root: torch.nn.Module
    source: str = ""
    within: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    modules: dict[str, torch.nn.Module] = field(init=False)
    aliases: dict[str, str] = field(init=False)
    devices: tuple[str, ...] = field(init=False)
    in_training: tuple[str, ...] = field(init=False)
    rewriting: dict[str, bool] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        modules: dict[str, torch.nn.Module] = {}
        first: dict[torch.nn.Module, str] = {}
        aliases: dict[str, str] = {}
        for path, module in self.root.named_modules(remove_duplicate=False):
            if first.setdefault(module, path) == path:
                modules[path] = module
            else:
                aliases[path] = first[module]
        object.__setattr__(self, "modules", modules)
        object.__setattr__(self, "aliases", aliases)
        kinds = {t.device.type for kind in ("_parameters", "_buffers") for t in self._tensors(kind)}
        object.__setattr__(self, "devices", tuple(sorted({"cpu", *kinds} - {"meta"})))
        object.__setattr__(self, "in_training", tuple(p for p, m in self.modules.items() if _minds_training(m)))

    def infos(self) -> list[ModuleInfo]:
        """Return the facts that alignment needs of each module."""
        return [
            ModuleInfo(path, type(module).__name__, {k: v for k, v in vars(module).items() if isinstance(v, str)})
            for path, module in self.modules.items()
        ]

    def describe(self) -> Side:
        """Return the report's description of the model as a whole; a shared parameter counts once."""
        parameters = list({id(p): p for p in self._tensors("_parameters")}.values())
        return Side(
            source=self.source or type(self.root).__name__,
            type=type(self.root).__name__,
            # A lazy module that was never called has parameters without a size.
            parameters=sum(p.numel() for p in parameters if not torch.nn.parameter.is_lazy(p)),
            dtypes=tuple(sorted({str(p.dtype).removeprefix("torch.") for p in parameters})),
            devices=self.devices,
            training=bool(self.in_training),
        )

    def entry(self, call: str, sample: Any, at: str = "") -> Callable[[], Any]:
        """Return a function that calls the model, or its method `call`, on a sample.

        With a path `at` it calls only the module there.
        """
        method = self.modules[at] if at or call == "forward" else getattr(self.root, call)

        def run() -> Any:
            with self.within():
                return method(*sample.args, **sample.kwargs)

        return run

    def may_leave_fast_path(self) -> bool:
        """Return whether the model has torch's transformer layers, which take another path while hooks are there."""
        fast = (torch.nn.TransformerEncoderLayer, torch.nn.MultiheadAttention)
        return any(isinstance(module, fast) for module in self.modules.values())

    def is_compiled(self) -> bool:
        """Return whether any module runs compiled code, where hooks do not fire reliably."""
        return any(
            getattr(module, "_compiled_call_impl", None) is not None
            or type(module).__name__ == "OptimizedModule"
            or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
            for module in self.modules.values()
        )

    def programs(self) -> list[str]:
        """Return the paths of the outermost programs, whose code calls operators where a model calls modules."""
        found: list[str] = []
        for path, module in self.modules.items():
            if _is_program(module) and not any(not other or path.startswith(f"{other}.") for other in found):
                found.append(path)
        return found

    def warnings(self) -> list[str]:
        """Return the warnings that a reader of the report must know before trusting it."""
        found = []
        if self.in_training:
            found.append(
                f"the {self.name} has {_modules(len(self.in_training))} in training mode "
                f"({self.in_training[0] or '<root>'} …): "
                "dropout and batch norm may differ by chance; call .eval() on it"
            )
        if self.is_compiled():
            found.append(f"the {self.name} is compiled: it was run eagerly, so compiled numerics were not measured")
        if programs := self.programs():
            found.append(
                f"{programs[0] or '<root>'} of the {self.name} is a program of torch.jit, torch.fx or torch.export and "
                "calls no modules: only what it returns is compared; give the modules, or an exported program "
                "unflattened"
            )
        if self.may_leave_fast_path():
            found.append(
                f"the {self.name} has torch's transformer layers: torch leaves their fast path while hooks are there"
            )
        return found

    def _tensors(self, kind: str) -> Iterator[torch.Tensor]:
        for module in self.modules.values():
            named = getattr(module, kind)
            if named:
                yield from (tensor for tensor in named.values() if tensor is not None)


def devices_of(models: Iterable[Model]) -> tuple[str, ...]:
    """Return the kinds of device of several models together."""
    return tuple(sorted({kind for model in models for kind in model.devices}))


def _modules(amount: int) -> str:
    return f"{amount} module" + ("" if amount == 1 else "s")


def _is_program(module: torch.nn.Module) -> bool:
    if isinstance(module, torch.fx.GraphModule):
        called = [str(node.target) for node in module.graph.nodes if node.op == "call_module"]
        # An exported program checks its arguments in a module of its own.
        return not any(name != "_guards_fn" for name in called)
    return isinstance(module, torch.jit.ScriptModule)


def _minds_training(module: torch.nn.Module) -> bool:
    if not module.training:
        return False
    return isinstance(module, _MODE_MATTERS) or not type(module).__module__.startswith(_MINDLESS)


@dataclass(frozen=True, slots=True)
class _Kept:
    """A buffer as it was: its module and name, its tensor (None where there was none), and its values."""

    module: torch.nn.Module
    name: str
    buffer: torch.Tensor | None
    values: torch.Tensor | None


@contextlib.contextmanager
def buffers_kept(models: Sequence[Model]) -> Iterator[None]:
    """Restore, at the end, the buffers of modules in training mode (running means) and all small ones (counters).

    A large buffer of a module in eval mode is a table that is never written, and is not copied. A buffer that was
    replaced by another is put back.
    """
    modules = {id(m): (m, path in model.in_training) for model in models for path, m in model.modules.items()}
    kept = [
        _Kept(module, name, buffer, buffer.detach().clone() if _is_copied(buffer, trains) else None)
        for module, trains in modules.values()
        if module._buffers
        for name, buffer in module._buffers.items()
    ]
    try:
        yield
    finally:
        for entry in kept:
            _restore(entry)


def _is_copied(buffer: torch.Tensor | None, trains: bool) -> TypeGuard[torch.Tensor]:
    return buffer is not None and not buffer.is_meta and (trains or buffer.numel() <= _SMALL)


@contextlib.contextmanager
def state_kept(module: torch.nn.Module) -> Iterator[None]:
    """Restore, at the end, all that a module and those inside it hold: attributes, buffers, and the values of tensors.

    This costs a copy of its buffers, so it is meant for one module that is asked something out of turn.
    """
    kept = [(m, dict(vars(m)), dict(m._buffers), _lists(m)) for m in module.modules()]
    held = [t for _, attributes, buffers, _ in kept for t in (*attributes.values(), *buffers.values())]
    tensors = [(t, t.detach().clone()) for t in held if isinstance(t, torch.Tensor) and not t.is_meta]
    try:
        yield
    finally:
        for m, attributes, buffers, lists in kept:
            for name in vars(m).keys() - attributes.keys():
                del m.__dict__[name]
            m.__dict__.update(attributes)
            m._buffers.clear()
            m._buffers.update(buffers)
            for items, copied in lists:
                items[:] = copied
        for tensor, values in tensors:
            if not torch.equal(tensor, values):
                with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                    tensor.copy_(values)


def _lists(module: torch.nn.Module) -> list[tuple[list[Any], list[Any]]]:
    return [(value, list(value)) for value in vars(module).values() if isinstance(value, list)]


class SharedTensors:
    """The parameters and buffers whose memory both models share, and how often they had been written so far."""

    def __init__(self, models: tuple[Model, Model]) -> None:
        first, second = (list(_named(model)) for model in models)
        mine = {address_of(tensor) for _, tensor in first} - {0}
        both = mine & {address_of(tensor) for _, tensor in second}
        self._versions = [
            (name, tensor, _version(tensor)) for name, tensor in (*first, *second) if address_of(tensor) in both
        ]

    def written(self) -> list[str]:
        """Return the names of the shared tensors written since; a name that both sides use occurs once."""
        found = (name for name, tensor, version in self._versions if _version(tensor) != version)
        return list(dict.fromkeys(found))

    def warnings(self) -> list[str]:
        """Return the warning about the shared tensors written since, if there are any."""
        names = self.written()
        if not names:
            return []
        some = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
        return [
            f"reference and candidate share {some}, which was written while they ran: "
            "each side may have computed with what the other wrote; give the candidate a copy"
        ]


def _named(model: Model) -> Iterator[tuple[str, torch.Tensor]]:
    for path, module in model.modules.items():
        for kind in (module._parameters, module._buffers):
            for name, tensor in kind.items():
                if tensor is not None and not torch.nn.parameter.is_lazy(tensor):
                    yield join(path, name), tensor


def address_of(tensor: torch.Tensor) -> int:
    """Return the address of a tensor's memory; 0 for a tensor without memory, or without a readable address."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def _version(tensor: torch.Tensor) -> int | None:
    """Return how often a tensor was written; inference tensors do not count it."""
    return None if tensor.is_inference() else tensor._version


def _restore(kept: _Kept) -> None:
    buffer, values = kept.buffer, kept.values
    kept.module._buffers[kept.name] = buffer
    # The version counter is not reliable: batch norm's kernel writes the running statistics without raising it.
    if buffer is None or values is None or buffer.is_meta or torch.equal(buffer, values):
        return
    # Outside inference mode, an inference tensor cannot be written.
    with torch.inference_mode(buffer.is_inference()), torch.no_grad():
        buffer.copy_(values)
