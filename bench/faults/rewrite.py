"""Faults in a module's own code: its real source with one snippet changed, compiled under a file name of its own.

The changed text is registered with `linecache`, so that tracebacks and `inspect` show the faulty line where it stands.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import itertools
import linecache
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

# It looks up the documentation of the class that its function stands in, and computes nothing.
_DOCUMENTATION = "auto_docstring"
_numbers = itertools.count(1)
_changes: dict[str, Changes] = {}


@dataclass(frozen=True, slots=True)
class Changes:
    """The numbers of the lines that a change touched, in the file as it was and as it is."""

    before: frozenset[int]
    after: frozenset[int]


def rewrite(module: nn.Module, old: str, new: str, *, within: str = "forward") -> None:
    """Let this one module run its class's source with `old` replaced by `new`.

    `within` is the method that holds the snippet, or a function of the same file that its `forward` calls: the function
    is then changed for this module alone. The module becomes an instance of a subclass of the same name.

    Raises ValueError unless `old` occurs exactly once in `within`.
    """
    cls = type(module)
    if cls.forward.__code__.co_filename.startswith("<"):
        raise ValueError(f"{cls.__name__} has been rewritten before")
    home = sys.modules[inspect.unwrap(cls.forward).__module__]
    method = within if hasattr(cls, within) else "forward"
    owner = inspect.unwrap(getattr(cls, method)).__qualname__.split(".")[0]
    path = (owner, within) if hasattr(cls, within) else (within,)

    source = inspect.getsource(home)
    changed = _replace_once(source, path, old, new)
    file = f"<{home.__name__.rpartition('.')[2]}.py changed in {'.'.join(path)} ({next(_numbers)})>"
    _changes[file] = _changed_lines(source, changed)
    linecache.cache[file] = (len(changed), None, changed.splitlines(keepends=True), file)
    namespace = dict(vars(home))
    for wanted in dict.fromkeys([path, (owner, method)]):
        namespace[wanted[-1]] = _compile(changed, wanted, file, home, namespace)
    body = {method: namespace[method], "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    module.__class__ = type(cls.__name__, (cls,), body)


def changes_in(module: nn.Module) -> Changes | None:
    """Return what `rewrite` has changed in this module's source; None where that is nothing."""
    methods = (value for value in vars(type(module)).values() if callable(value) and hasattr(value, "__code__"))
    return next((c for c in (_changes.get(method.__code__.co_filename) for method in methods) if c), None)


def _changed_lines(before: str, after: str) -> Changes:
    first, second = before.splitlines(), after.splitlines()
    blocks = difflib.SequenceMatcher(None, first, second, autojunk=False).get_opcodes()
    changed = [(range(a, b), range(c, d)) for kind, a, b, c, d in blocks if kind != "equal"]
    return Changes(
        frozenset(place + 1 for one, _ in changed for place in one),
        frozenset(place + 1 for _, other in changed for place in other),
    )


def _replace_once(source: str, path: tuple[str, ...], old: str, new: str) -> str:
    """Return `source` with the snippet replaced inside the definition at `path`, and nowhere else."""
    node = _definition(ast.parse(source), path)
    lines = source.splitlines(keepends=True)
    first, last = node.lineno - 1, node.end_lineno or node.lineno
    text = "".join(lines[first:last])
    if text.count(old) != 1:
        raise ValueError(f"{old!r} occurs {text.count(old)} times in {'.'.join(path)}; expected exactly once")
    return "".join([*lines[:first], text.replace(old, new), *lines[last:]])


def _definition(tree: ast.Module, path: tuple[str, ...]) -> ast.FunctionDef:
    body: list[ast.stmt] = tree.body
    for name in path[:-1]:
        body = next(node.body for node in body if isinstance(node, ast.ClassDef) and node.name == name)
    return next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == path[-1])


def _compile(source: str, path: tuple[str, ...], file: str, home: ModuleType, namespace: dict[str, Any]) -> Any:
    """Return the function at `path`, compiled with the line numbers that it has in the whole file."""
    function = _definition(ast.parse(source), path)
    if "super" in {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}:
        raise ValueError(f"{'.'.join(path)} uses super(), which would call the unchanged method")
    function.decorator_list = [d for d in function.decorator_list if _DOCUMENTATION not in ast.dump(d)]
    flags = annotations.compiler_flag if getattr(home, "annotations", None) is annotations else 0
    tree = ast.Module(body=[function], type_ignores=[])
    exec(compile(tree, file, "exec", flags=flags, dont_inherit=True), namespace)
    return namespace[path[-1]]
