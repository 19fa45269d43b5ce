"""A command's body as typer wants it.

Typer reads a command's options from its signature. `command` writes that signature: a parameter whose type
is a dataclass (a group of `qtrace.cli.options`) stands for all of its fields, and is handed over filled.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

from qtrace.cli.exits import errors_end_the_command
from qtrace.cli.options import ScreenOptions


def command(body: Callable[..., None]) -> Callable[..., None]:
    """Return `body` as typer wants it: option groups spread out, and errors turned into exit codes."""
    hints = get_type_hints(body, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(body).parameters.items():
        if name in groups:
            parameters += _parameters(groups[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=parameter.KEYWORD_ONLY))

    @functools.wraps(body)
    def spread(**values: Any) -> None:
        filled = {
            name: group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
            for name, group in groups.items()
        }
        screen = next((group for group in filled.values() if isinstance(group, ScreenOptions)), ScreenOptions())
        with errors_end_the_command(traceback=screen.traceback):
            body(**filled, **values)

    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return spread


def _parameters(group: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(group)
    ]
