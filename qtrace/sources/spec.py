"""Parses the forms of a source: `scheme:body?option=value&…`, or `module:name` for a callable."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl

from qtrace.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Spec:
    """A parsed source; `scheme` is empty for a callable."""

    text: str
    scheme: str
    body: str
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadOptions:
    """The common options for loading: the place to load from, and the device and dtype to load to.

    `folder` is the config's folder, the second place where relative names are searched; `dtype` is a name like
    "bfloat16".
    """

    folder: Path | None = None
    device: str | None = None
    dtype: str | None = None
    cache_dir: str | None = None
    token: str | None = field(default=None, repr=False)
    revision: str | None = None
    trust_remote_code: bool = False


def parse_spec(text: str, schemes: Collection[str]) -> Spec:
    """Return the parts of a source.

    >>> parse_spec("hf:org/model?revision=main", ["hf"])
    Spec(text='hf:org/model?revision=main', scheme='hf', body='org/model', options={'revision': 'main'})
    >>> parse_spec("models.py:make", ["hf"]).scheme
    ''

    Raises:
        UsageError: an unknown form; the known forms are listed.
    """
    head, colon, rest = text.partition(":")
    if head in schemes and colon:
        body, _, query = rest.partition("?")
        if not body:
            raise UsageError(f"{text}: nothing stands after {head}:; {forms(schemes)}")
        return Spec(text, head, body, dict(parse_qsl(query, keep_blank_values=True)))
    target, colon, name = text.rpartition(":")
    if not colon or not target or not name:
        raise UsageError(f"{text!r} names no source; {forms(schemes)}")
    if "/" in name or "?" in name or not (target.endswith(".py") or _is_dotted(target)):
        raise UsageError(f"{text}: unknown scheme {head}; {forms(schemes)}")
    return Spec(text, "", text)


def forms(schemes: Collection[str]) -> str:
    """Return the tail of an error message that lists the forms of a source."""
    listed = ["file.py:name", "package.module:name", *(f"{scheme}:…" for scheme in schemes)]
    return f"expected {', '.join(listed[:-1])} or {listed[-1]}"


def check_options(spec: Spec, known: Collection[str]) -> None:
    """Refuse an option after `?` that the scheme does not know.

    Raises:
        UsageError: the option is named, with similar ones.
    """
    for name in spec.options:
        if name not in known:
            raise UsageError(f"{spec.text}: unknown option {name}; {did_you_mean(name, known)}")


def _is_dotted(target: str) -> bool:
    return all(part.isidentifier() for part in target.split("."))
