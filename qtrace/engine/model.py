"""A model as a run sees it: its modules, listed once, and what a reader of the report must know of it as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from qtrace.engine.align import ModuleInfo
from qtrace.report.records import Side

_MODE_MATTERS = (
    torch.nn.modules.dropout._DropoutNd,
    torch.nn.modules.batchnorm._NormBase,
    torch.nn.RReLU,
    torch.nn.RNNBase,
    torch.nn.MultiheadAttention,
    torch.nn.TransformerEncoderLayer,
    torch.nn.TransformerDecoderLayer,
)
# What is quantized for good is not trained, and a graph holds the mode that it was traced in; the flag is of no effect.
_MINDLESS = ("torch.nn", "torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.export", "torch.fx")


@dataclass(frozen=True, slots=True)
class Model:
    """One side's model; `name` is "reference" or "candidate", `modules` are by path, as `named_modules` lists them.

    `aliases` maps the further paths of a module that stands in several places to its first one. `devices` are the
    kinds of device that hold parameters and buffers, "cpu" always among them. `in_training` are the paths of the
    modules in training mode that may behave differently for it: of torch's own classes only few look at the mode; of
    anybody else's any may. `rewriting` says of the modules that have run whether hooks of their own change what they
    return, see `qtrace.engine.hooks`.
    """

    name: str
    root: torch.nn.Module
    source: str = ""
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
        """Return what alignment needs to know of each module."""
        return [
            ModuleInfo(path, type(module).__name__, {k: v for k, v in vars(module).items() if isinstance(v, str)})
            for path, module in self.modules.items()
        ]

    def describe(self) -> Side:
        """Return what a report says of the model as a whole; a parameter that is shared counts once."""
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
        """Return a function that calls the model on a sample, by itself or by the method `call`.

        With a path `at` it calls the module there by itself.
        """
        method = self.modules[at] if at or call == "forward" else getattr(self.root, call)
        return lambda: method(*sample.args, **sample.kwargs)

    def may_leave_fast_path(self) -> bool:
        """Return whether it has torch's transformer layers, which take another path while hooks are there."""
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
        """Return the paths of programs, whose code calls operators where a model calls modules: outermost ones only."""
        found: list[str] = []
        for path, module in self.modules.items():
            if _is_program(module) and not any(not other or path.startswith(f"{other}.") for other in found):
                found.append(path)
        return found

    def warnings(self) -> list[str]:
        """Return what a reader of the report must know before believing it."""
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
