"""What was typed, in words again: which pair is compared and how, without how it is shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

from typer.models import OptionInfo

from qtrace.cli.options import CompareOptions, PairOptions, RuntimeOptions

# These are for the screen of whoever types them, never for one that others read.
SECRET = ("token",)


def typed(pair: PairOptions, compare: CompareOptions, runtime: RuntimeOptions) -> tuple[str, ...]:
    """Return the command line's words that say what was run, for repeating it with other words added.

    >>> from pathlib import Path
    >>> typed(PairOptions(config=Path("a.yaml")), CompareOptions(local=False, only=["x.*"]), RuntimeOptions(seed=3))
    ('a.yaml', '--only', 'x.*', '--no-local', '--seed', '3')
    """
    return tuple(word for group in (pair, compare, runtime) for word in _words(group))


def _words(group: Any) -> Iterator[str]:
    hints = get_type_hints(type(group), include_extras=True)
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if value is None or field.name in SECRET:
            continue
        name = _option(field.name, hints[field.name])
        if name is None:
            yield str(value)
        elif isinstance(value, bool):
            yield name if value else name.replace("--", "--no-", 1)
        else:
            for one in value if isinstance(value, list) else [value]:
                yield from (name, str(one))


def _option(field: str, hint: Any) -> str | None:
    """Return how the option of a field is spelt; None for an argument without a name."""
    declared = get_args(hint)[1]
    if not isinstance(declared, OptionInfo):
        return None
    # Inside Annotated, typer takes the first name for the default until it builds the command.
    names = [name for name in (declared.default, *(declared.param_decls or ())) if isinstance(name, str)]
    return names[0].split("/")[0] if names else f"--{field.replace('_', '-')}"
