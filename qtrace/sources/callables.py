"""Python callables as sources: finds `file.py:name` or `package.module:name`, calls it, reports failures."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from qtrace.documents import find_path, missing
from qtrace.errors import QtraceError, SourceError, UsageError, did_you_mean

_FILES: dict[Path, ModuleType] = {}


def find_object(text: str, folder: Path | None = None) -> Any:
    """Return the object that `file.py:name` or `package.module:name` names; the name may be dotted.

    A file is imported once per process, with its folder on `sys.path`, so that its sibling imports work. For a module,
    the current directory is on `sys.path`.

    Raises:
        SourceError: no such file, module or name in it (similar names are given), or importing it raised.
    """
    target, _, name = text.rpartition(":")
    module = _import_file(text, target, folder) if target.endswith(".py") else _import_module(text, target)
    found: Any = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            names = [known for known in dir(found) if not known.startswith("_") and callable(getattr(found, known))]
            raise SourceError(f"{text}: {target} has no {part}; {did_you_mean(part, names)}") from None
    return found


def call(
    function: Any,
    text: str,
    args: Mapping[str, Any],
    offered: Mapping[str, Any] | None = None,
) -> Any:
    """Call a user's callable with the config's `args`, and with the values of `offered` that it has parameters for.

    Raises:
        UsageError: a parameter without default is not in `args`, or `args` has a name that is no parameter.
        SourceError: the callable raised; the place in the user's file is named, the exception is the `__cause__`.
    """
    given = dict(args)
    signature = _signature(function)
    if signature is not None:
        parameters = {
            name: parameter
            for name, parameter in signature.parameters.items()
            if parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        }
        given |= {name: value for name, value in (offered or {}).items() if name in parameters}
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
        unknown = [name for name in given if name not in parameters and not takes_any]
        if unknown:
            raise UsageError(
                f"{text} takes no parameter {unknown[0]}, which stands in args; {did_you_mean(unknown[0], parameters)}"
            )
        absent = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty and n not in given]
        if absent:
            them = "it" if len(absent) == 1 else "them"
            raise UsageError(
                f"{text} needs the parameter{'s' if len(absent) > 1 else ''} {', '.join(absent)}; "
                f"give {them} under args in the config"
            )
    try:
        return function(**given)
    except QtraceError:
        raise
    except (Exception, SystemExit) as error:
        raise SourceError(f"{text} raised {describe(error, _file_of(function))}") from error


def takes(function: Any, parameter: str) -> bool:
    """Return whether a callable has a parameter of this name."""
    signature = _signature(function)
    return signature is not None and parameter in signature.parameters


def is_required(function: Any, parameter: str) -> bool:
    """Return whether a callable has a parameter of this name without a default."""
    return parameter in required(function)


def required(function: Any) -> list[str]:
    """Return the names of a callable's parameters without a default."""
    signature = _signature(function)
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = signature.parameters.values() if signature is not None else ()
    return [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind not in several]


def describe(error: BaseException, file: str | None = None) -> str:
    """Return `Type: message (file.py:12)`: the innermost place in `file`, else the innermost of all."""
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({Path(error.filename).name}:{error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if file is not None and frame.filename == file]
    place = (own or list(frames))[-1] if frames else None
    where = f" ({Path(place.filename).name}:{place.lineno})" if place is not None else ""
    return f"{type(error).__name__}: {text}{where}"


def _import_file(text: str, target: str, folder: Path | None) -> ModuleType:
    path = find_path(target, folder)
    if path is None:
        raise SourceError(missing("file", target, folder))
    path = path.resolve()
    if path in _FILES:
        return _FILES[path]
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = _free_name(path)
    loaded = sys.modules.get(name)
    if loaded is not None:
        _FILES[path] = loaded
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SourceError(f"{text}: {target} is no Python file that can be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise SourceError(f"{text}: importing {target} raised {describe(error, str(path))}") from error
    _FILES[path] = module
    return module


def _free_name(path: Path) -> str:
    """Return the file's stem if siblings can import it by this name, else a name that hides no other module."""
    try:
        spec = importlib.util.find_spec(path.stem)
    except (ImportError, ValueError):
        spec = None
    if spec is not None and spec.origin is not None and Path(spec.origin).resolve() == path:
        return path.stem
    return f"_qtrace_file_{len(_FILES)}_{path.stem}"


def _import_module(text: str, target: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(target)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{target}.".startswith(f"{error.name}."):
            raise SourceError(f"{text}: importing {target} raised {describe(error)}") from error
        parent, _, last = error.name.rpartition(".")
        near = did_you_mean(last, _module_names(parent))
        if parent:
            raise SourceError(f"{text}: {parent} has no module {last}; {near}") from None
        hint = near if near.startswith("did") else "is its folder the current one, or on PYTHONPATH?"
        raise SourceError(f"{text}: there is no module {error.name}; {hint}") from None
    except (Exception, SystemExit) as error:
        found = importlib.util.find_spec(target)
        raise SourceError(
            f"{text}: importing {target} raised {describe(error, found.origin if found else None)}"
        ) from error


def _module_names(parent: str) -> list[str]:
    """Return the modules near a missing one: those of its package, or of the current directory."""
    if not parent:
        return [module.name for module in pkgutil.iter_modules([str(Path.cwd())])]
    return [module.name for module in pkgutil.iter_modules(getattr(sys.modules.get(parent), "__path__", []))]


def _signature(function: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def _file_of(function: Any) -> str | None:
    try:
        return inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        module = sys.modules.get(type(function).__module__)
        return getattr(module, "__file__", None)
