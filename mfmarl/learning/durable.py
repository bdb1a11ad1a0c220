"""Files that are there whole or not at all, whatever dies in between: the process, the disk, the power.

Bytes go to `NAME.tmp` in the same folder, are flushed and fsynced, renamed over NAME, and the folder is fsynced.
A reader sees the old file or the new one. What cannot be written is a ResourceFault, never a silent "saved".
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from mfmarl.errors import ResourceFault

SUFFIX = ".tmp"
_SPARE = 64 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomic(path: Path, content: bytes) -> None:
    """Write a whole file, or leave the old one as it was.

    Raises ResourceFault when the disk is full, the folder is gone or may not be written, or the disk fails.
    """
    demand_room(path.parent, len(content))
    temporary = path.with_name(path.name + SUFFIX)
    try:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(temporary, flags, 0o666)
        try:
            write_all(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise resource_fault(error, path, len(content)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_all(descriptor: int, content: bytes) -> None:
    """All of it: `os.write` may stop half-way."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder last through a power cut; where folders cannot be synced, nothing."""
    if sys.platform == "win32":  # pragma: no cover
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def demand_room(folder: Path, size: int) -> None:
    """Raises ResourceFault unless `size` more bytes, and a little, are free where the folder is."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise resource_fault(error, folder, size) from error
    if free < size + _SPARE:
        raise ResourceFault(
            f"The disk of {folder} is full: {size:,} bytes are to be written and {free:,} are free. "
            "Free some space, or use another folder.",
            "disk-full",
        )


def resource_fault(error: OSError, path: Path, size: int = 0) -> ResourceFault:
    """What the operating system refused, as one sentence with what to do."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        amount = f" of {size:,} bytes" if size else ""
        told = f"{path}{amount} cannot be written: {reason}. Free some space, or use another folder."
        return ResourceFault(told, "disk-full")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        told = f"{path} cannot be written: its folder is gone or is not a folder ({reason})."
        return ResourceFault(told, "folder-gone")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ResourceFault(f"{path} cannot be written: {reason}. Use a folder that you may write to.", "not-writable")
    return ResourceFault(f"{path} cannot be written: {reason}.", "disk-failed")


def read_limited(path: Path, limit: int, refuse: Callable[[str], Exception]) -> bytes:
    """All of a plain file of at most `limit` bytes; otherwise raises what `refuse` makes of a sentence on `path`."""
    try:
        size = path.stat().st_size
        if not path.is_file():  # a pipe or a device might never end
            raise refuse(f"{path} is not a file.")
        if size > limit:
            raise refuse(f"{path} has {size:,} bytes, more than the {limit:,} that it may have.")
        with path.open("rb") as file:
            return file.read(size)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise refuse(f"There is no file {path}.") from error
    except (OSError, ValueError) as error:
        raise refuse(f"{path} cannot be read: {error.strerror if isinstance(error, OSError) else error}.") from error


def remove_stale(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Remove what a killed writer left: `*SUFFIX.tmp` for the given suffixes and nothing else. Returns what went."""
    removed = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        if path.name.removesuffix(SUFFIX).endswith(suffixes) and (path.is_file() or path.is_symlink()):
            with contextlib.suppress(OSError):
                path.unlink()
                removed.append(path)
    return removed
