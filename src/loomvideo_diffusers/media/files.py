# Copyright 2026 The LoomVideo for Diffusers authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Files that are whole or not there, what killed runs left behind, and folders that one run has to itself."""

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import LoomVideoError


try:
    import fcntl
except ImportError:
    # Windows, where what is open cannot be removed, which says as much as a lock. Not tested there.
    fcntl = None


UNFINISHED = ".unfinished-"

# What the system says if there is no room: on the disk, of what the user may have, of what one file may have
NO_ROOM = {errno.ENOSPC, errno.EFBIG, *([errno.EDQUOT] if hasattr(errno, "EDQUOT") else [])}

# What is written to see whether there is room, in bytes
PROBE_SIZE = 2**16

# What is open because it is locked
_held: set[int] = set()


class DiskFullError(OSError):
    """There is no room for a file."""


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """
    Yields a path of the same name in a hidden folder beside `path`, where what is written appears when all of it is.

    The hidden folder is locked for as long, and the lock ends with the process: what a killed run left is removed by
    the next call for the same path, and what another run is writing is left alone.

    Args:
        path: where to, or the pattern of the names of several files; the folder is made if needed.

    Raises:
        LoomVideoError: if there can be no file at `path`.
        DiskFullError: if there is no room; then as after any other error, nothing is left behind.
    """
    path = Path(path)
    with _unfinished(path) as unfinished:
        yield unfinished
        for written in sorted(unfinished.parent.iterdir()):
            os.chmod(written, 0o644)
            os.replace(written, path.with_name(written.name))


def write_whole(path: str | os.PathLike, write: Callable[[str], None]) -> None:
    """Has `write` write a file, given the path to write to, see `whole_file`."""
    with whole_file(path) as unfinished:
        write(str(unfinished))


def replace_folder(path: str | os.PathLike, write: Callable[[Path], None]) -> None:
    """
    Has `write` fill a folder, which then takes the place of what was there; otherwise as `write_whole`.

    It does so in two steps: if it is killed between them, there is no folder.
    """
    path = Path(path)
    with _unfinished(path) as unfinished:
        write(unfinished)
        if path.exists():
            os.replace(path, unfinished.with_name(".removed"))
        os.replace(unfinished, path)


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """A path of the same name, in a hidden and locked folder beside `path` that is removed in the end."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        folder, handle = _make_unfinished(path)
    except OSError as error:
        raise LoomVideoError(f"{path} cannot be written ({error.strerror}): choose another folder.") from error
    try:
        yield folder / path.name
    except Exception as error:
        reason = reason_of_full_disk(error, folder / path.name)
        if reason is not None:
            raise DiskFullError(
                f"{path} could not be written ({reason}): make room, or choose another disk."
            ) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _let_go(handle)


def reason_of_full_disk(error: Exception, path: Path) -> str | None:
    """What the system says if it was for want of room that a library failed to write a file or folder, or None."""
    seen = error
    while seen is not None:
        if isinstance(seen, DiskFullError):
            return None  # says already which file it is
        for code in NO_ROOM:
            if getattr(seen, "errno", None) == code or os.strerror(code) in str(seen):
                return os.strerror(code)
        seen = seen.__cause__ or seen.__context__
    # Libraries such as PyTorch do not say why they failed.
    try:
        with open(path / ".probe" if path.is_dir() else path, "ab") as opened:
            opened.write(bytes(PROBE_SIZE))
    except OSError as full:
        return os.strerror(full.errno) if full.errno in NO_ROOM else None
    return None


def remove_leftovers(path: str | os.PathLike) -> None:
    """Removes what killed runs left of writing a file, and nothing that a run is writing now."""
    path = Path(path)
    name = re.compile(re.escape(_unfinished_prefix(path)) + "[a-z0-9_]{8}")
    for folder in path.parent.glob(f"{UNFINISHED}*~*"):
        if name.fullmatch(folder.name):
            _remove_if_dead(folder)


def remove_leftovers_in(folder: Path) -> None:
    """
    Removes all that killed runs left in a folder, files and folders, though not in those within it.

    Only for the one run that has the folder to itself: some leftovers have no locks.
    """
    for path in [*folder.glob(f"{UNFINISHED}*"), *folder.glob(".removed-*")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def lock_folder(folder: str | os.PathLike) -> Iterator[None]:
    """
    Has a folder to itself, which is made if needed; the lock is a hidden file in it, removed in the end.

    A run that is killed leaves the file, but not the lock on it, so that the next run goes on.

    Raises:
        LoomVideoError: if another run has the folder, or it cannot be written to.
    """
    folder = Path(folder)
    with _lock(folder / ".lock", folder):
        yield


@contextmanager
def lock_beside(path: str | os.PathLike) -> Iterator[None]:
    """
    Has a file or folder that is to be written to itself, by a hidden file beside it; see `lock_folder`.

    Raises:
        LoomVideoError: if another run is writing it, or it cannot be written.
    """
    path = Path(path)
    with _lock(path.with_name(f".lock-{_short_name(path)}"), path):
        yield


@contextmanager
def _lock(file: Path, what: Path) -> Iterator[None]:
    made = [parent for parent in file.absolute().parents if not parent.exists()]
    _check_folder(file.absolute().parent, what)
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = _open_lock(file, what)
    try:
        yield
    finally:
        if fcntl is None:
            os.close(handle)
            file.unlink(missing_ok=True)
        else:
            # Who has opened it in the meantime finds that it is no longer there, and makes another.
            with suppress(OSError):
                file.unlink()
            _let_go(handle)
        for parent in made:
            with suppress(OSError):  # there is something in it
                parent.rmdir()


def _open_lock(file: Path, what: Path) -> int:
    busy = LoomVideoError(f"Another run is writing to {what}: wait until it has ended, or choose another place.")
    if fcntl is None:
        try:
            file.unlink(missing_ok=True)
            return os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except OSError as error:
            raise busy from error
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        _held.add(handle)
        if not _take_lock(handle, is_writer=True):
            _let_go(handle)
            raise busy
        if _is_at(handle, file):
            return handle
        _let_go(handle)  # Another run removed it in the moment before it was locked.


def check_output_path(path: str | os.PathLike, suffixes: tuple[str, ...], why: str = "") -> None:
    """Raises LoomVideoError if a file of one of these kinds, which `why` explains, could not be written there."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise LoomVideoError(f"{why}{path} must end in {' or '.join(suffixes)}.")
    if path.is_dir():
        raise LoomVideoError(f"{path} is a folder: choose the name of a file.")
    check_writable(path)


def check_writable(path: str | os.PathLike) -> None:
    """Raises LoomVideoError if a file or folder could not be made there, in folders that may have to be made first."""
    _check_folder(Path(path).absolute().parent, path)


def _check_folder(folder: Path, what: str | os.PathLike) -> None:
    while not folder.exists() and not folder.is_symlink():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise LoomVideoError(f"{what} cannot be written: {folder} is not a folder that can be written to.") from error


def _unfinished_prefix(path: Path) -> str:
    return f"{UNFINISHED}{_short_name(path)}~"


def _short_name(path: Path) -> str:
    """A file's name, or if there is no room for more in it, a hash."""
    return path.name if len(os.fsencode(path.name)) < 200 else hashlib.sha256(os.fsencode(path.name)).hexdigest()


def _make_unfinished(path: Path) -> tuple[Path, int | None]:
    """A new folder, open and locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_unfinished_prefix(path), dir=path.parent))
        if fcntl is None:
            return folder, None
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # Another run took it for a leftover before it was locked.
        _held.add(handle)
        if _take_lock(handle, is_writer=True) and _is_at(handle, folder):
            return folder, handle
        _let_go(handle)  # likewise


def _remove_if_dead(folder: Path) -> None:
    with suppress(OSError):
        if fcntl is None:
            shutil.rmtree(folder)
            return
        handle = os.open(folder, os.O_RDONLY)
        try:
            if _take_lock(handle, is_writer=False):
                shutil.rmtree(folder)
        finally:
            os.close(handle)


def _take_lock(handle: int, is_writer: bool) -> bool:
    """
    Takes the lock on an open file or folder, if nobody else has it.

    On file systems without locks, a writer goes on as if it had one, and nothing is taken for dead.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return is_writer
    return True


def _is_at(handle: int, file: str | os.PathLike) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except FileNotFoundError:
        return False


def _let_go(handle: int | None) -> None:
    if handle is not None:
        _held.remove(handle)
        os.close(handle)


def _forget_held() -> None:
    # A child, such as one that reads data ahead, would otherwise keep the locks of a parent that is killed.
    for handle in list(_held):
        _let_go(handle)


if fcntl is not None:
    os.register_at_fork(after_in_child=_forget_held)
