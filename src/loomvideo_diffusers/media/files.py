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
"""Files that are written whole or not at all, removal of what killed runs left behind, and locks."""

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
    # On Windows an open file cannot be removed, which serves as a lock. This is not tested there.
    fcntl = None  # type: ignore[assignment]


UNFINISHED = ".unfinished-"

# Errors of a system that has no room: the disk is full, the file would be too large, or the user's quota is used up.
NO_ROOM = {errno.ENOSPC, errno.EFBIG, *([errno.EDQUOT] if hasattr(errno, "EDQUOT") else [])}

# In bytes: how much is written to find out whether there is room
PROBE_SIZE = 2**16

# Open files and folders that are locked
_held: set[int] = set()


class DiskFullError(OSError):
    """There is no room for a file."""


class LockedError(LoomVideoError):
    """Another run is writing a file."""


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """
    Yields a path of the same name in a hidden folder beside `path`. In the end, all files in the hidden folder are
    moved beside `path`, or after an error removed.

    The hidden folder is locked until then, and the lock ends with the process. So the next call for the same path can
    remove what a killed run left, and leaves alone what another run is writing.

    Args:
        path: the file to write, or the pattern of an image sequence; folders are made if needed.

    Raises:
        LoomVideoError: if there can be no file at `path`.
        DiskFullError: if there is no room.
    """
    path = Path(path)
    with _unfinished(path) as unfinished:
        yield unfinished
        for written in sorted(unfinished.parent.iterdir()):
            os.chmod(written, 0o644)
            os.replace(written, path.with_name(written.name))


def write_whole(path: str | os.PathLike, write: Callable[[str], None]) -> None:
    """Calls `write` with a path to write a file to, which becomes `path` when it is whole; see `whole_file`."""
    with whole_file(path) as unfinished:
        write(str(unfinished))


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a file of text, which appears when all of it is written: see `write_whole`."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def replace_folder(path: str | os.PathLike, write: Callable[[Path], None]) -> None:
    """
    Calls `write` with the path of a new folder to fill, which then replaces the folder at `path`; see `whole_file`.

    The old folder is moved away before the new one takes its place: if the process is killed in between, there is
    none.
    """
    path = Path(path)
    with _unfinished(path) as unfinished:
        write(unfinished)
        if path.exists():
            os.replace(path, unfinished.with_name(".removed"))
        os.replace(unfinished, path)


@contextmanager
def temporary_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a new folder beside `path`, which is removed in the end; those of killed runs are removed too."""
    with _unfinished(Path(path)) as unfinished:
        yield unfinished.parent


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """Yields a path of the same name in a hidden, locked folder beside `path`, which is removed in the end."""
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
    """
    Returns what the system says if an error is due to lack of room, or None if it is due to something else.

    Args:
        error: what a library raised while it wrote a file or folder.
        path: the file or folder.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, DiskFullError):
            return None  # It names the file that did not fit.
        for code in NO_ROOM:
            if getattr(seen, "errno", None) == code or os.strerror(code) in str(seen):
                return os.strerror(code)
        seen = seen.__cause__ or seen.__context__
    # Libraries such as PyTorch do not say why they failed, so try to write.
    try:
        with open(path / ".probe" if path.is_dir() else path, "ab") as opened:
            opened.write(bytes(PROBE_SIZE))
    except OSError as full:
        return os.strerror(full.errno) if full.errno in NO_ROOM else None
    return None


def remove_leftovers(path: str | os.PathLike) -> None:
    """Removes what killed runs left when they wrote this file, and nothing that is being written now."""
    path = Path(path)
    name = re.compile(re.escape(_unfinished_prefix(path)) + "[a-z0-9_]{8}")
    for folder in path.parent.glob(f"{UNFINISHED}*~*"):
        if name.fullmatch(folder.name):
            _remove_if_dead(folder)


def remove_leftovers_in(folder: Path) -> None:
    """
    Removes all files and folders that killed runs left in a folder, but not those in its subfolders.

    The caller must hold the lock of the folder, since some leftovers have none.
    """
    for path in [*folder.glob(f"{UNFINISHED}*"), *folder.glob(".removed-*")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def lock_folder(folder: str | os.PathLike) -> Iterator[None]:
    """
    Locks a folder, which is made if needed. The lock is on a hidden file in it, which is removed in the end.

    A killed run leaves the hidden file, but not the lock on it: the next run takes the lock.

    Raises:
        LoomVideoError: if another run holds the lock, or the folder cannot be written to.
    """
    folder = Path(folder)
    with _lock(folder / ".lock", folder):
        yield


@contextmanager
def lock_beside(path: str | os.PathLike) -> Iterator[None]:
    """
    Locks a file or folder that is to be written. The lock is on a hidden file beside it; see `lock_folder`.

    Raises:
        LoomVideoError: if another run holds the lock, or the file cannot be written.
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
            # A run that has opened it in the meantime notices that it is gone, and makes another.
            with suppress(OSError):
                file.unlink()
            _let_go(handle)
        for parent in made:
            with suppress(OSError):  # The folder is not empty.
                parent.rmdir()


def _open_lock(file: Path, what: Path) -> int:
    busy = LockedError(f"Another run is writing to {what}: wait until it has ended, or choose another place.")
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
    """
    Refuses a path that no file can be written to, before any work is done.

    Args:
        path: the file to write.
        suffixes: the endings that it may have, in lower case.
        why: beginning of the error if it has another, which says why it must not.

    Raises:
        LoomVideoError: if the ending is another, `path` is a folder, or its folder cannot be written to.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise LoomVideoError(f"{why}{path} must end in {' or '.join(suffixes)}.")
    if path.is_dir():
        raise LoomVideoError(f"{path} is a folder: choose the name of a file.")
    check_writable(path)


def check_writable(path: str | os.PathLike) -> None:
    """Raises LoomVideoError if no file or folder can be made at `path`, whose own folder may not exist yet."""
    _check_folder(Path(path).absolute().parent, path)


def _check_folder(folder: Path, what: str | os.PathLike) -> None:
    while not folder.exists() and not folder.is_symlink():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise LoomVideoError(
            f"{what} cannot be written, since {folder} is not a folder that can be written to: choose another."
        ) from error


def _unfinished_prefix(path: Path) -> str:
    return f"{UNFINISHED}{_short_name(path)}~"


def _short_name(path: Path) -> str:
    """The name of a file, or a hash of it if it is too long for more to be added."""
    return path.name if len(os.fsencode(path.name)) < 200 else hashlib.sha256(os.fsencode(path.name)).hexdigest()


def _make_unfinished(path: Path) -> tuple[Path, int | None]:
    """Makes a hidden folder, opens it and locks it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_unfinished_prefix(path), dir=path.parent))
        if fcntl is None:
            return folder, None
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # Another run removed it as a leftover before it was locked.
        _held.add(handle)
        if _take_lock(handle, is_writer=True) and _is_at(handle, folder):
            return folder, handle
        _let_go(handle)  # Another run removed it, or is about to.


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
    Tries to lock an open file or folder, and returns whether it may be used.

    On file systems without locks, a writer goes on without one, and nothing is removed as a leftover.
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
    # Otherwise a child process, such as one that loads training data, would keep the locks of a killed parent.
    for handle in list(_held):
        _let_go(handle)


if fcntl is not None:
    os.register_at_fork(after_in_child=_forget_held)
