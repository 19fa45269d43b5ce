"""Read YAML as people write it: `1e-4` is a number, a key given twice is an error, every key has its line.

No torch. PyYAML follows YAML 1.1, where `1e-4` (no dot) is a string; this loader reads it as a float, as
YAML 1.2 does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qtrace.errors import SourceError, UsageError
from qtrace.files import find_path, missing


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 floats that refuses a key given twice."""

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
    """A YAML file: `value` is what it holds, `name` the path as it was given."""

    name: str
    value: Any
    path: Path
    root: yaml.Node | None

    def line(self, keys: tuple[object, ...]) -> int | None:
        """Return the 1-based line of the key or list item that `keys` leads to, or the nearest above."""
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
        """Return `file:line` of a key, for the head of an error message."""
        line = self.line(keys)
        return self.name if line is None else f"{self.name}:{line}"


def read_yaml(name: str | Path, kind: str = "config file") -> Document:
    """Read a YAML file.

    Raises:
        UsageError: there is no such file (near names are given), or it is no valid YAML (file, line, column).
        SourceError: it is there and cannot be read.
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
    """Return what a YAML value on the command line stands for: `true`, `1e-4`, `uint8`, `[1, 2]`, `{a: 1}`.

    Raises:
        yaml.YAMLError: the text is no YAML.
    """
    return yaml.load(text, Loader=_Loader)
