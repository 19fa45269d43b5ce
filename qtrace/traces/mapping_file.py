"""The mapping file of `qtrace import`: which tensor of another runtime is which output of the reference."""

from __future__ import annotations

from pathlib import Path

from qtrace.documents import read_yaml
from qtrace.errors import UsageError


def read_mapping(path: Path) -> dict[str, str]:
    """Read a YAML file that maps names of tensors to modules, `module`, `module#call` or `module:output`.

    Raises `UsageError` where it is missing, is no YAML, or holds anything but names for names.
    """
    document = read_yaml(path, "mapping file")
    value = document.value if document.value is not None else {}
    if not isinstance(value, dict) or not all(isinstance(part, str) for pair in value.items() for part in pair):
        raise UsageError(f"{document.name}: expected a mapping, of a tensor's name to a module's; both are text")
    return value
