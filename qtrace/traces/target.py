"""The folder that a trace becomes: whether it may be made, the hidden one it is written in until then, one rename.

A process that is killed leaves its hidden folder behind, `.NAME.partial-…`; killed while it replaces a trace, the old
one as well, `.NAME.replaced-…`. The next capture to that place names them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from pathlib import Path

from qtrace.errors import OutputError
from qtrace.traces.manifest_file import DIGEST, MANIFEST

_PART = re.compile(rf"{re.escape(MANIFEST)}|{re.escape(DIGEST)}|tensors-\d+\.safetensors")
_PARTIAL, _REPLACED = "partial", "replaced"
# What systems say that cannot sync a folder, or not for everybody.
_NOT_SYNCED = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP)


class Target:
    """The folder that is asked for. `partial` is the one to write in, `made` puts it in place, `dropped` takes it away.

    Raises `OutputError` as `check_target` does; what the disk refuses later is an `OSError`.
    """

    def __init__(self, folder: Path, *, replaces: bool) -> None:
        check_target(folder, replaces=replaces)
        # Behind a link stands the folder that is replaced, and the link stays.
        self._folder = folder.resolve() if folder.is_symlink() else folder
        self._replaces = replaces
        self.partial = self._beside(_PARTIAL)

    def made(self) -> None:
        """Make what lies in `partial` visible under the name that was asked for."""
        sync(self.partial)
        if self._replaces and self._folder.exists():
            aside = self._beside(_REPLACED)
            os.rename(self._folder, aside)
            try:
                os.rename(self.partial, self._folder)
            except OSError:
                os.rename(aside, self._folder)
                raise
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(self.partial, self._folder)
        sync(self._folder.parent)

    def dropped(self) -> None:
        """Take away what was not put in place."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def _beside(self, what: str) -> Path:
        return self._folder.with_name(f"{_prefix(self._folder, what)}{secrets.token_hex(4)}")


def check_target(folder: Path, *, replaces: bool = False) -> None:
    """Make sure, before anything runs, that a trace can be written there.

    Raises `OutputError` where something is there already (with `replaces`: something that is no trace, or more than
    one), or where the folder around does not exist or takes no files.
    """
    if not folder.parent.is_dir():
        raise OutputError(f"trace {folder}: the folder {folder.parent} does not exist; create it first")
    if not folder.name:
        raise OutputError(f"trace {folder}: name a folder that is to be made")
    # A link that leads nowhere is there, too.
    if os.path.lexists(folder) and not (replaces and _is_trace(folder)):
        what = (
            "and is no trace, or not only one; choose another place"
            if replaces
            else "already; --force replaces a trace"
        )
        raise OutputError(f"trace {folder}: something is there {what}")
    if not os.access(folder.parent, os.W_OK | os.X_OK):
        raise OutputError(f"trace {folder}: the folder {folder.parent} cannot be written to; choose another place")


def leftovers(folder: Path) -> list[Path]:
    """Return what captures to this place that were killed have left beside it, or one that runs is writing now."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(folder.parent.iterdir()):
            if any(path.name.startswith(_prefix(folder, what)) for what in (_PARTIAL, _REPLACED)):
                found.append(path)
    return found


def sync(folder: Path) -> None:
    """Make a folder's entries outlast a power failure; where folders cannot be synced, that is the system's affair."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NOT_SYNCED:
            raise


def _prefix(folder: Path, what: str) -> str:
    return f".{folder.name}.{what}-"


def _is_trace(folder: Path) -> bool:
    """Return whether a folder holds a trace, whole or damaged, and nothing that somebody else has put there."""
    if not folder.is_dir():
        return False
    names = os.listdir(folder)
    return MANIFEST in names and all(map(_PART.fullmatch, names))
