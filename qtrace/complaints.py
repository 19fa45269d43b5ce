"""Turn what pydantic found wrong into one sentence: where, which key, what was expected, the nearest key."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from qtrace.errors import did_you_mean

_EXPECTED = {
    "string_type": "a string",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "tuple_type": "a list",
    "list_type": "a list",
    "none_required": "nothing",
}


def complain(
    error: ValidationError,
    root: type[BaseModel],
    place: Callable[[tuple[object, ...]], str],
    name: Callable[[tuple[object, ...]], str] | None = None,
) -> str:
    """Return the sentence for the first thing that is wrong, and how many more there are.

    `place` says where a key stands (`file:line`, or nothing), `name` what it is called (its dotted path).
    """
    problems = error.errors(include_url=False)
    # For a key that is no text, pydantic's location ends in the marker [key].
    keys = tuple(key for key in problems[0]["loc"] if key != "[key]")
    where = place(keys)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where}{': ' if where else ''}{_problem(root, keys, problems[0], (name or dotted)(keys))}{more}"


def _problem(root: type[BaseModel], keys: tuple[object, ...], problem: Mapping[str, Any], name: str) -> str:
    kind = problem["type"]
    if kind == "extra_forbidden":
        return f"unknown key {name}; {_nearest(root, keys)}"
    if kind == "missing":
        return f"{dotted(keys[:-1])} needs the key {keys[-1]}"
    if kind == "invalid_key" or problem["loc"][-1] == "[key]":
        section = f" of {dotted(keys[:-1])}" if len(keys) > 1 else ""
        return f"the keys{section} must be texts, and one is {_shown(problem['input'])}"
    if kind == "section":
        return f"{name} {problem['msg']}"
    if kind == "literal_error":
        expected = problem["ctx"]["expected"].replace("'", "")
    elif kind == "greater_than_equal":
        expected = f"a whole number of at least {problem['ctx']['ge']}"
    else:
        expected = problem["msg"] if kind == "expected" else _EXPECTED.get(kind, problem["msg"])
    return f"{name} must be {expected}, and is {_shown(problem['input'])}"


def dotted(keys: tuple[object, ...]) -> str:
    """Return a key's full path; one that holds dots itself is in brackets: `policy.overrides[model.**]`."""
    path = ""
    for key in keys:
        text = str(key)
        if isinstance(key, int) or "." in text or "*" in text:
            path += f"[{text}]"
        else:
            path += f".{text}" if path else text
    return path


def _shown(value: object) -> str:
    """Return a wrong value as a person knows it from YAML."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping of keys"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = str(value)
    text = text if len(text) <= 40 else f"{text[:39]}…"
    return f"the text {text!r}" if isinstance(value, str) else text


def _nearest(root: type[BaseModel], keys: tuple[object, ...]) -> str:
    """Return the tail that proposes a known key: of that name in another section, else near ones of this."""
    name = str(keys[-1])
    elsewhere = [path for path in _all_paths(root) if path.rsplit(".", 1)[-1] == name]
    if elsewhere:
        return f"did you mean {elsewhere[0]}?"
    section = _section(root, keys[:-1])
    return did_you_mean(name, section.model_fields if section is not None else ())


def _sections(annotation: object) -> Iterator[tuple[type[BaseModel], bool]]:
    """Yield the section types inside an annotation, and whether keys of a mapping stand before them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, False
    is_mapping = getattr(annotation, "__origin__", None) is dict
    for part in get_args(annotation):
        yield from ((section, is_mapping or nested) for section, nested in _sections(part))


def _section(root: type[BaseModel], keys: tuple[object, ...]) -> type[BaseModel] | None:
    """Return the section type that a key's path leads to."""
    section: type[BaseModel] | None = root
    rest = list(keys)
    while rest and section is not None:
        field = section.model_fields.get(str(rest.pop(0)))
        found = next(_sections(field.annotation), None) if field is not None else None
        section, in_mapping = found if found is not None else (None, False)
        if in_mapping and rest:
            rest.pop(0)
    return section


def _all_paths(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every known key."""
    for name, field in section.model_fields.items():
        yield prefix + name
        for nested, in_mapping in _sections(field.annotation):
            if not in_mapping:
                yield from _all_paths(nested, f"{prefix}{name}.")
