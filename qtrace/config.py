"""The configuration of a run: reads and checks the YAML config, and merges the command line's options. No torch.

    reference: {source: "qtrace.zoo.qwen3_vl:tiny", args: {seed: 42}}
    candidate: {wrap: tico, args: {quantize: false}}
    inputs:    {source: "qtrace.zoo.qwen3_vl:image_and_text"}
    compare:   {only: [], skip: [], tolerance: auto, local: true}
    policy:    {max_peir: 1.0e-4, overrides: {"model.visual.**": 1.0e-3}, min_coverage: 0.95}

The common options (`seed`, `device`, `dtype`, `threads`, `call`, `cache_dir`, `token`, `revision`, `trust_remote_code`)
stand at top level. An invalid entry is a `UsageError` that names file, line and key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from qtrace.documents import complain, parse_value, read_yaml
from qtrace.errors import UsageError


def _number(value: Any) -> float:
    """Accept a number or a text of a number (`1e-4` is a text in YAML 1.1); never NaN or a bool."""
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isnan(number):
            return number
    raise PydanticCustomError("expected", "a number")


def _amount(value: Any) -> float:
    """Accept a number that is not negative."""
    number = _number(value)
    if number < 0:
        raise PydanticCustomError("expected", "a number that is not negative")
    return number


def _auto_or_amount(value: Any) -> float | Literal["auto"]:
    if value == "auto":
        return "auto"
    try:
        return _amount(value)
    except PydanticCustomError as error:
        raise PydanticCustomError("expected", "auto or a number that is not negative") from error


def _floor(value: Any) -> float | Literal["auto", "measured"]:
    if value == "measured":
        return "measured"
    try:
        return _auto_or_amount(value)
    except PydanticCustomError as error:
        raise PydanticCustomError("expected", "auto, measured or a number that is not negative") from error


def _fraction(value: Any) -> float:
    number = _number(value)
    if not 0 <= number <= 1:
        raise PydanticCustomError("expected", "a number from 0 to 1")
    return number


def _names(value: Any) -> Any:
    """Accept one name in place of a list of names."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _source(value: Any) -> Any:
    """Accept a bare SPEC in place of a section with `source`."""
    return {"source": value} if isinstance(value, str) else value


def _limits(value: Any) -> Any:
    """Accept a bare number in place of a section with `max_peir`."""
    is_section = isinstance(value, (Mapping, BaseModel)) or value is None
    return value if is_section else {"max_peir": value}


Amount = Annotated[float, BeforeValidator(_amount)]
Number = Annotated[float, BeforeValidator(_number)]
Fraction = Annotated[float, BeforeValidator(_fraction)]
AutoOrAmount = Annotated[float | Literal["auto"], BeforeValidator(_auto_or_amount)]
NoiseFloor = Annotated[float | Literal["auto", "measured"], BeforeValidator(_floor)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
Dtype = Literal["float16", "bfloat16", "float32", "float64"]
OutcomeName = Literal["clean", "fault", "drift", "inconclusive"]


class _Section(BaseModel):
    """A mapping in which all keys are known and all values have the expected type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class ReferenceSource(_Section):
    """The source of the reference: a SPEC, and arguments for it when it is a callable."""

    source: str
    args: dict[str, Any] = {}


class CandidateSource(_Section):
    """The source of the candidate: a SPEC of its own, or a registered wrapper of the reference."""

    source: str | None = None
    wrap: str | None = None
    args: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_of_both(self) -> CandidateSource:
        if (self.source is None) == (self.wrap is None):
            got = "has neither" if self.source is None else "has both"
            raise PydanticCustomError("section", f"needs either source or wrap, and {got}")
        return self


class InputsSource(_Section):
    """The inputs of both models: a SPEC or a file, or texts and images for the reference's processor."""

    source: str | None = None
    args: dict[str, Any] = {}
    text: Names = ()
    image: Names = ()

    @model_validator(mode="after")
    def _one_of_both(self) -> InputsSource:
        if (self.source is None) == (not self.text and not self.image):
            got = "has neither" if self.source is None else "has both"
            raise PydanticCustomError("section", f"needs either source, or text and image, and {got}")
        return self


class Compare(_Section):
    """The compared modules and the tolerances: globs over the reference's paths, tolerances as PEIR (a ratio).

    `local` requests the error that each module makes on clean inputs; None measures it only if the outputs differ.
    """

    only: Names = ()
    skip: Names = ()
    rename: dict[str, str] = {}
    tolerance: AutoOrAmount = "auto"
    noise_floor: NoiseFloor = "auto"
    local: bool | None = None


class Limits(_Section):
    """Limits on a row's columns: `max_…` must not be exceeded, `min_…` must be reached. None is no limit.

    PEIR and relative L2 are ratios, SQNR is in dB (higher is better), the mismatch is a fraction; mean, max
    and stddev are of |reference - candidate|, in the tensor's own unit.
    """

    max_mean: Amount | None = None
    max_max: Amount | None = None
    max_stddev: Amount | None = None
    max_peir: Amount | None = None
    max_peir_related: Amount | None = None
    max_peir_in: Amount | None = None
    max_peir_local: Amount | None = None
    max_rel_l2: Amount | None = None
    max_mismatch: Amount | None = None
    min_sqnr_db: Number | None = None
    min_cosine: Number | None = None

    def limits(self) -> dict[str, float | None]:
        """Return the limits that are given here, by name; None lifts a limit that would hold otherwise."""
        return {name: getattr(self, name) for name in Limits.model_fields if name in self.model_fields_set}


class Policy(Limits):
    """The limits that a run must keep to pass: for every row, and others where a module path matches a glob.

    Under `overrides` a bare number stands for `max_peir`. For each column the most specific pattern that matches a path
    and names that column wins, and `null` lifts a limit; see `qtrace.gate.limits`. `min_coverage` is the fraction of
    the reference's calls that must have been compared, `allow_unmatched` names modules that may lack a partner,
    `fail_on` the outcomes that fail by themselves. With `strict`, rows whose difference was absorbed count too.
    """

    overrides: dict[str, Annotated[Limits, BeforeValidator(_limits)]] = {}
    min_coverage: Fraction | None = None
    allow_unmatched: Names = ()
    fail_on: Annotated[tuple[OutcomeName, ...], BeforeValidator(_names)] = ()
    strict: bool = False


class RunConfig(_Section):
    """The whole config of a run. A section that was not given is None; `load_pair` names a section that is missing."""

    reference: Annotated[ReferenceSource, BeforeValidator(_source)] | None = None
    candidate: Annotated[CandidateSource, BeforeValidator(_source)] | None = None
    inputs: Annotated[InputsSource, BeforeValidator(_source)] | None = None
    compare: Compare = Compare()
    policy: Policy | None = None
    seed: int = 0
    device: str | None = None
    dtype: Dtype | None = None
    threads: Annotated[int, Field(ge=1)] | None = None
    call: str = "forward"
    cache_dir: str | None = None
    token: Annotated[str | None, Field(repr=False)] = None
    revision: str | None = None
    trust_remote_code: bool = False
    _folder: Path | None = PrivateAttr(default=None)

    @property
    def folder(self) -> Path | None:
        """The config file's folder, the second place where relative names are searched; None without a file."""
        return self._folder


SectionT = TypeVar("SectionT", bound=BaseModel)


def load_config(path: str | Path) -> RunConfig:
    """Read and check a run's config.

    Raises:
        UsageError: no such file, no valid YAML, an unknown key, a value of the wrong type.
        SourceError: the file exists and cannot be read.
    """
    config, folder = _load(path, RunConfig, "config file")
    config._folder = folder
    return config


def load_policy(path: str | Path) -> Policy:
    """Read and check a policy file: a config's `policy`, at top level. Raises as `load_config` does."""
    return _load(path, Policy, "policy file")[0]


def _load(path: str | Path, kind: type[SectionT], what: str) -> tuple[SectionT, Path]:
    document = read_yaml(path, what)
    value = {} if document.value is None else document.value
    if not isinstance(value, dict):
        known = ", ".join(list(kind.model_fields)[:5])
        held = "a list" if isinstance(value, list) else "a single value"
        raise UsageError(f"{document.name}: a {what} is a mapping of keys ({known}, …), and this is {held}")
    try:
        return kind.model_validate(value), document.path.parent
    except ValidationError as error:
        raise UsageError(complain(error, kind, document.place)) from error


def merge(
    config: RunConfig | None = None,
    *,
    reference: str | None = None,
    candidate: str | None = None,
    wrap: str | None = None,
    wrap_args: Sequence[str] = (),
    inputs: str | None = None,
    text: Sequence[str] = (),
    image: Sequence[str] = (),
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    rename: Sequence[str] = (),
    tolerance: str | float | None = None,
    noise_floor: str | float | None = None,
    local: bool | None = None,
    seed: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    call: str | None = None,
    cache_dir: str | None = None,
    token: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool | None = None,
) -> RunConfig:
    """Return a config (or an empty one) overridden by the command line's options, after checking the whole.

    An option that was given replaces the config's entry: a source with its `args`, a list as a whole. None and an empty
    list mean "not given". `wrap_args` are `key=value` with YAML values; they are passed to `wrap`, or override the
    `args` of the config's own wrapper.

    Raises:
        UsageError: options that exclude each other, or a value that does not fit; the option is named.
    """
    if candidate is not None and wrap is not None:
        raise UsageError(f"--candidate {candidate} and --wrap {wrap} exclude each other; give one of them")
    if inputs is not None and (text or image):
        raise UsageError(f"--inputs {inputs} excludes --text and --image; give one or the other")
    merged: dict[str, Any] = {} if config is None else config.model_dump(exclude_unset=True)
    if reference is not None:
        merged["reference"] = {"source": reference}
    if candidate is not None:
        merged["candidate"] = {"source": candidate}
    if wrap is not None:
        merged["candidate"] = {"wrap": wrap}
    if wrap_args:
        section = merged.get("candidate") or {}
        if section.get("wrap") is None:
            raise UsageError(
                f"--wrap-arg {wrap_args[0]} has no wrapper to go to; give --wrap NAME or a config with candidate.wrap"
            )
        merged["candidate"] = {**section, "args": {**section.get("args", {}), **parse_wrap_args(wrap_args)}}
    if inputs is not None:
        merged["inputs"] = {"source": inputs}
    if text or image:
        merged["inputs"] = {"text": list(text), "image": list(image)}
    compare: dict[str, Any] = {"tolerance": tolerance, "noise_floor": noise_floor, "local": local}
    compare |= {"only": list(only) or None, "skip": list(skip) or None, "rename": parse_renames(rename) or None}
    merged["compare"] = {**merged.get("compare", {}), **_given(compare)}
    common = {"seed": seed, "device": device, "dtype": dtype, "threads": threads, "call": call}
    common |= {"cache_dir": cache_dir, "token": token, "revision": revision}
    merged |= _given({**common, "trust_remote_code": trust_remote_code})
    try:
        result = RunConfig.model_validate(merged)
    except ValidationError as error:
        raise UsageError(complain(error, RunConfig, lambda keys: "", _option)) from error
    result._folder = None if config is None else config._folder
    return result


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def parse_renames(pairs: Sequence[str]) -> dict[str, str]:
    """Return the mapping that `--rename OLD=NEW` options give.

    >>> parse_renames(["encoder.layer.*=layers.*"])
    {'encoder.layer.*': 'layers.*'}

    Raises:
        UsageError: the text is not `OLD=NEW`.
    """
    parsed: dict[str, str] = {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not equals or not old.strip() or not new.strip():
            raise UsageError(
                f"--rename {pair}: expected CANDIDATE=REFERENCE, as in --rename 'encoder.layer.*=layers.*'"
            )
        parsed[old.strip()] = new.strip()
    return parsed


def parse_wrap_args(pairs: Sequence[str]) -> dict[str, Any]:
    """Return the arguments that `--wrap-arg key=value` options give; values are YAML.

    >>> parse_wrap_args(["quantize=true", "dtype=uint8", "scale=1e-4"])
    {'quantize': True, 'dtype': 'uint8', 'scale': 0.0001}

    Raises:
        UsageError: the text is not `key=value`, or the value is no YAML.
    """
    parsed: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--wrap-arg {pair}: expected key=value, as in --wrap-arg quantize=true")
        try:
            parsed[key.strip()] = parse_value(text)
        except yaml.YAMLError as error:
            raise UsageError(f"--wrap-arg {pair}: the value {text} is not valid YAML; quote it") from error
    return parsed


def _option(keys: tuple[object, ...]) -> str:
    """Return the option that sets a config key: `compare.noise_floor` is `--noise-floor`."""
    name = str(keys[-1] if keys and keys[0] in ("compare", "inputs") else keys[0] if keys else "options")
    return f"--{name.replace('_', '-')}"
