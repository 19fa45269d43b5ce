"""What is known of the candidate's weights beside the reference's, and what takes the rounding out of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from qtrace.diagnosis.quantization.weight_faults import bias_fault, weight_fault


@dataclass(frozen=True, slots=True)
class Place:
    """Where the candidate has a weight: the module with a parameter `weight`, or one that stores codes.

    `reference` is the reference's weight as it may be in the candidate, with all that was multiplied into it, and
    `candidate` what the candidate computes with.
    """

    module: nn.Module
    from_codes: bool
    reference: Tensor
    candidate: Tensor
    bias: Tensor | None


@dataclass(slots=True)
class Weighed:
    """What is known of a weight of the candidate's.

    `fault` holds the reference's and it, where it is no rounding of that one; `scaled` tells what gains were fitted.
    `bias` holds the reference's and that which a module adds that stores codes; `lacks` is a norm whose scales it was
    not multiplied by, `mistakes` one that was divided by others than it was multiplied by, which are its `columns`.
    `paired` tells what it takes up of another weight, `unsure` that gains were fitted for each row or column. `place`
    is where it is, `noise` the norm of its rounding over its own, `before` the weight that codes were made from.
    """

    name: str
    fault: tuple[Tensor, Tensor] | None = None
    scaled: str = ""
    lacks: str = ""
    mistakes: str = ""
    paired: str = ""
    columns: Tensor | None = None
    place: Place | None = None
    noise: float = 0.0
    unsure: bool = False
    before: Tensor | None = None
    bias: tuple[Tensor | None, Tensor] | None = None
    _said: tuple[str, ...] | None = None

    @property
    def is_unsound(self) -> bool:
        """Return whether the weight is not the reference's up to rounding, and scales of norms."""
        return self.fault is not None or bool(self.scaled)

    @property
    def is_unsure(self) -> bool:
        """Return whether it is unknown how the weight was before its rounding, or known only with noise."""
        return self.fault is not None or self.unsure

    @property
    def sentences(self) -> tuple[str, ...]:
        """Return in words how the weight and the bias differ beyond rounding."""
        # Reading the weight takes a while.
        if self._said is None:
            found = [f"{self.name} {weight_fault(*self.fault)}"] if self.fault is not None else []
            found += [f"{self.name} is the reference's {self.scaled}"] if self.scaled else []
            if self.lacks:
                found.append(f"{self.name} is not multiplied by the scales that {self.lacks} was divided by")
            if self.paired:
                found.append(f"{self.name} is the reference's {self.paired}")
            if self.mistakes:
                found.append(f"{self.name} is multiplied by other scales than {self.mistakes} is divided by")
            other = bias_fault(*self.bias) if self.bias is not None else None
            self._said = (*found, *([other] if other else ()))
        return self._said

    def note(self, *, lacks: str, mistakes: str) -> None:
        """Note a norm whose scales the weight does not take up, or takes up wrongly."""
        self.lacks, self.mistakes, self._said = lacks, mistakes, None


@dataclass(slots=True)
class Unrounding:
    """What takes the rounding out of a candidate's weights.

    `weights` are parameters to put in the place of others, by (module, name); `forwards` are functions in the place of
    the forward of modules that store codes, and `maps` what these compute with their codes, as they were asked.
    `weighed` holds what is known of each weight that differs, by the reference's path. `is_needed` says that some of
    them were rounded. `same` are the parameters, by (module, name), that are the reference's up to rounding; `coded`
    the paths of modules that store codes, `asked` the modules themselves. With `is_partial` there are further codes, of
    which nothing is known.
    """

    weights: list[tuple[nn.Module, str, Tensor]] = field(default_factory=list)
    forwards: list[tuple[nn.Module, Callable[..., Tensor]]] = field(default_factory=list)
    maps: list[tuple[nn.Module, Callable[..., Tensor]]] = field(default_factory=list)
    weighed: dict[str, Weighed] = field(default_factory=dict)
    is_needed: bool = False
    same: set[tuple[str, str]] = field(default_factory=set)
    coded: set[str] = field(default_factory=set)
    asked: list[nn.Module] = field(default_factory=list)
    is_partial: bool = False

    @property
    def noises(self) -> list[float]:
        """Return how noisy each rounded weight is that is known to be no other one."""
        return [known.noise for known in self.weighed.values() if known.fault is None and known.noise > 0]

    @property
    def is_exact(self) -> bool:
        """Return whether all weights are the reference's up to what is known without noise."""
        return not any(known.unsure for known in self.weighed.values())

    def sentences(self, module: str) -> tuple[str, ...] | None:
        """Return how a module's weights differ beyond rounding, in words; None where none of them was weighed."""
        known = self.weighed.get(module)
        return None if known is None else known.sentences

    def is_sound(self, module: str) -> bool:
        """Return whether a module's weight was weighed, and is the reference's up to rounding."""
        known = self.weighed.get(module)
        if known is None or known.is_unsound or known.lacks or known.mistakes:
            return False
        return known.bias is None or bias_fault(*known.bias) is None

    def is_only_weight(self, module: str) -> bool:
        """Return whether all that is known to be wrong with a module is its weight, and no scale of a norm."""
        known = self.weighed.get(module)
        if known is None or known.lacks or known.mistakes or not known.is_unsound:
            return False
        return known.bias is None or bias_fault(*known.bias) is None

    def faulty(self) -> list[str]:
        """Return the reference's modules with a weight that is no rounding of the reference's."""
        return [path for path, known in self.weighed.items() if known.fault is not None]
