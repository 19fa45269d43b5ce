"""Reads YAML: finds files, reads `1e-4` as a number, and turns pydantic's messages into one sentence."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from qtrace.errors import SourceError, UsageError, did_you_mean, near


def find_path(name: str, folder: Path | None = None) -> Path | None:
    """Return the file or folder called `name`, or None.

    A relative name is searched in the current directory first, then in `folder` (the config's folder). `~` is the home
    directory.
    """
    path = Path(name).expanduser()
    places = [path] if path.is_absolute() or folder is None else [path, folder / path]
    return next((place for place in places if place.exists()), None)


def near_paths(name: str, folder: Path | None = None) -> list[str]:
    """Return names of existing files similar to a missing one, in its own folder (or the nearest one that exists).

    For `configs/qwen3vl.yaml` the result may be `["configs/qwen3_vl.yaml"]`.
    """
    path = Path(name).expanduser()
    parents = [path.parent] if path.is_absolute() or folder is None else [path.parent, folder / path.parent]
    for parent in parents:
        try:
            names = sorted(entry.name for entry in parent.iterdir())
        except OSError:
            continue
        matches = near(path.name, names, most=2)
        if matches:
            return [str(path.parent / match) if path.parent != Path() else match for match in matches]
    return []


def missing(kind: str, name: str, folder: Path | None = None) -> str:
    """Return the sentence for a missing file: `no such config file: x.yaml; did you mean y.yaml?`"""
    matches = near_paths(name, folder)
    if matches:
        return f"no such {kind}: {name}; did you mean {' or '.join(matches)}?"
    if Path(name).expanduser().is_absolute():
        return f"no such {kind}: {name}"
    looked = "the current directory" if folder is None else f"the current directory or {folder}"
    return f"no such {kind}: {name} (looked in {looked})"


class _Loader(yaml.SafeLoader):
    """A SafeLoader that reads YAML 1.2 floats and refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.value != "<<":
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key_node.value} is given twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


@dataclass(frozen=True)
class Document:
    """A YAML file: `value` is its contents, `name` the path as it was given."""

    name: str
    value: Any
    path: Path
    root: yaml.Node | None

    def line(self, keys: tuple[object, ...]) -> int | None:
        """Return the 1-based line of the key or list item that `keys` leads to, or of the nearest one above it."""
        node, line = self.root, None
        for key in keys:
            if isinstance(node, yaml.MappingNode):
                found = next((pair for pair in node.value if pair[0].value == key), None)
                if found is None:
                    break
                line, node = found[0].start_mark.line + 1, found[1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
                node = node.value[key]
                line = node.start_mark.line + 1
            else:
                break
        return line

    def place(self, keys: tuple[object, ...]) -> str:
        """Return `file:line` of a key, for the beginning of an error message."""
        line = self.line(keys)
        return self.name if line is None else f"{self.name}:{line}"


def read_yaml(name: str | Path, kind: str = "config file") -> Document:
    """Read a YAML file.

    Raises:
        UsageError: there is no such file (similar names are given), or it is no valid YAML (file, line, column).
        SourceError: the file exists and cannot be read.
    """
    text_name = str(name)
    path = find_path(text_name)
    if path is None:
        raise UsageError(missing(kind, text_name))
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{text_name}: expected a {kind} in YAML, and this is not UTF-8 text") from error
    except OSError as error:
        raise SourceError(f"{text_name}: cannot be read as a {kind} ({error.strerror})") from error
    try:
        return Document(text_name, yaml.load(text, Loader=_Loader), path, yaml.compose(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark or error.context_mark, error.problem or error.context
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise UsageError(f"{text_name}{where}: not valid YAML, {problem}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{text_name}: not valid YAML, {' '.join(str(error).split())}") from error


def parse_value(text: str) -> Any:
    """Return the value of a YAML text on the command line: `true`, `1e-4`, `uint8`, `[1, 2]`, `{a: 1}`.

    Raises:
        yaml.YAMLError: the text is no YAML.
    """
    return yaml.load(text, Loader=_Loader)


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
    """Return the sentence for the first error, with the number of further errors.

    `place` returns the place of a key (`file:line`, or nothing), `name` its name (its dotted path).
    """
    problems = error.errors(include_url=False)
    # For a key that is no text, pydantic's location ends with the marker [key].
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
    """Return a key's full path; a key that contains dots is in brackets: `policy.overrides[model.**]`."""
    path = ""
    for key in keys:
        text = str(key)
        if isinstance(key, int) or "." in text or "*" in text:
            path += f"[{text}]"
        else:
            path += f".{text}" if path else text
    return path


def _shown(value: object) -> str:
    """Return a wrong value as it is written in YAML."""
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
    """Return the end of a message that proposes a known key: the same name in another section, else a near one."""
    name = str(keys[-1])
    elsewhere = [path for path in _all_paths(root) if path.rsplit(".", 1)[-1] == name]
    if elsewhere:
        return f"did you mean {elsewhere[0]}?"
    section = _section(root, keys[:-1])
    return did_you_mean(name, section.model_fields if section is not None else ())


def _sections(annotation: object) -> Iterator[tuple[type[BaseModel], bool]]:
    """Yield the section types inside an annotation, and whether a mapping's key precedes them."""
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
