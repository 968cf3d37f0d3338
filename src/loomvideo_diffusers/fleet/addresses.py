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
"""Files elsewhere, at addresses such as `s3://bucket/clip.mp4`, which fsspec reads and writes."""

import os
import random
import re
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit
from urllib.request import url2pathname

from ..errors import LoomVideoError
from ..media import write_whole
from ..media.files import DiskFullError
from ..progress import progress_bar


# Two letters at least: one is a drive of Windows.
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")

# An address in a text: its scheme, its user and password, what may be shown, and its query and fragment
IN_A_TEXT = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+://)(?:[^\s/?#'\"]*@)?([^\s?#'\"]*)(?:[?#][^\s'\"]*)?")

# Where a file appears when all of it has arrived, and not before. Elsewhere it is sent under another name first.
WHOLE_OR_NOT = {"s3", "s3a", "gs", "gcs", "hf", "az", "abfs", "memory"}

# In seconds, before something is tried again
PAUSES = (0.5, 2, 8)

Result = TypeVar("Result")


class NotThereError(LoomVideoError):
    """There is no such file."""


class NotAllowedError(LoomVideoError):
    """This machine may not read or write a file; another might."""


class Address(str):
    """The address of a file that is on no disk of this machine, with all that it takes to reach it."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """The file's name, which is quoted in addresses of the web alone."""
        name = self.partition("?")[0].rsplit("/", 1)[-1]
        return unquote(urlsplit(name).path) if self.startswith(("http://", "https://")) else name

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix


def to_location(place: str | os.PathLike) -> Path | Address:
    """A path, also of a `file://` address, or the address of a file elsewhere."""
    if isinstance(place, Address):
        return place
    text = os.fspath(place)
    if not SCHEME.match(text):
        return Path(text)
    if text.startswith("file://"):
        return Path(url2pathname(urlsplit(text).path))
    return Address(text)


def redact(text: object) -> str:
    """A text without the users, passwords, queries and fragments of the addresses in it, which may be secret."""
    return IN_A_TEXT.sub(r"\1\2", str(text))


def _without_secrets(error: Exception, address: Address) -> str:
    """What an error says, without what is secret in the address, which it may name without its scheme."""
    said = redact(error)
    parts = urlsplit(address)
    for part in (f"{parts.netloc.rpartition('@')[0]}@", f"?{parts.query}"):
        if len(part) > 1:
            said = said.replace(part, "")
    for secret in (parts.password or "", *dict(parse_qsl(parts.query)).values()):
        if len(secret) >= 8:  # Shorter ones may be words of the sentence.
            said = said.replace(secret, "...")
    return said


def check_address(address: Address, is_written: bool) -> None:
    """Raises a LoomVideoError if nothing that is installed reads or writes such addresses."""
    from fsspec.registry import get_filesystem_class

    scheme = address.partition("://")[0].lower()
    if is_written and scheme in ("http", "https"):
        raise LoomVideoError(f"{redact(address)} cannot be written: choose a bucket, such as s3://, or a path.")
    try:
        get_filesystem_class(scheme)
    except ImportError as error:
        raise LoomVideoError(f"{scheme}:// needs a package that is not installed: {error}") from error
    except ValueError as error:
        raise LoomVideoError(f"{redact(address)} cannot be reached ({error}): see its address.") from error


def fetch(address: Address, folder: Path) -> Path:
    """
    Reads a file into a folder, as a stream. It appears there when all of it has come.

    Raises:
        LoomVideoError: if it is not there, may not be read, or what reads such addresses is not installed.
        OSError: if it cannot be read for a reason that may pass.
    """
    path = folder / (address.name or "file")

    def get(system: Any, remote: str) -> None:
        size = system.info(remote).get("size")
        write_whole(path, lambda file: system.get_file(remote, file))
        if size is not None and path.stat().st_size != size:
            path.unlink()
            raise OSError(f"only a part of it came, {path.name} of {size} bytes")

    _reach(address, "read", get)
    return path


def deliver(path: Path, address: Address) -> None:
    """
    Writes a file to an address, where it appears when all of it has arrived.

    Raises:
        LoomVideoError: if it may not be written, or what writes such addresses is not installed.
        OSError: if it cannot be written for a reason that may pass.
    """

    def put(system: Any, remote: str) -> None:
        protocols = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
        if protocols & WHOLE_OR_NOT:
            system.put_file(str(path), remote)
            return
        parent, _, name = remote.rpartition("/")
        unfinished = f"{parent}/.unfinished-{secrets.token_hex(4)}-{name}"
        system.makedirs(parent, exist_ok=True)
        try:
            system.put_file(str(path), unfinished)
            system.mv(unfinished, remote)
        finally:
            if system.exists(unfinished):
                system.rm_file(unfinished)

    _reach(address, "written", put)


def size_of(address: Address) -> int:
    """
    The size of a file in bytes; 0 if its server does not tell.

    Raises:
        LoomVideoError, OSError: as `fetch` does.
    """
    return _reach(address, "read", lambda system, remote: system.info(remote).get("size")) or 0


def list_sizes(addresses: Iterable[Address]) -> dict[Address, int]:
    """
    The sizes of those files that are there, in bytes, from the listings of their folders: one for many files.

    Where there are no listings, as on the web, no file is found, nor is one in a folder that cannot be listed now.
    """
    folders: dict[str, list[Address]] = {}
    for address in addresses:
        if not address.startswith(("http://", "https://")):
            folders.setdefault(address.partition("?")[0].rpartition("/")[0], []).append(address)
    sizes = {}
    for folder, members in progress_bar(folders.items(), desc="Listing folders", leave=False):
        listed: dict[str, int] = {}
        with suppress(LoomVideoError, OSError):
            listed = _reach(Address(folder), "read", _list_folder)
        for address in members:
            if (size := listed.get(address.partition("?")[0].rpartition("/")[2])) is not None:
                sizes[address] = size
    return sizes


def _list_folder(system: Any, remote: str) -> dict[str, int]:
    entries = system.ls(remote, detail=True, refresh=True)
    return {entry["name"].rpartition("/")[2]: entry["size"] or 0 for entry in entries if entry["type"] == "file"}


def _reach(address: Address, done: str, operation: Callable[[Any, str], Result]) -> Result:
    """
    Calls an operation with the file system of an address, and its path there; errors name it without its secrets.

    What fails for a reason that may pass is tried again, after longer and longer pauses.
    """
    from fsspec.core import url_to_fs

    shown = redact(address)
    for pause in (*PAUSES, None):
        try:
            return operation(*url_to_fs(str(address)))
        except ImportError as error:
            raise LoomVideoError(f"{shown} needs a package that is not installed: {error}") from error
        except FileNotFoundError as error:
            raise NotThereError(f"{shown} is not there.") from error
        except PermissionError as error:
            raise NotAllowedError(
                f"{shown} may not be {done} here ({_without_secrets(error, address)}): see who may."
            ) from error
        except (ValueError, NotImplementedError) as error:
            raise LoomVideoError(
                f"{shown} cannot be {done} ({_without_secrets(error, address)}): see its address."
            ) from error
        except DiskFullError:
            raise
        except Exception as error:  # Each kind of file system has errors of its own.
            kind = type(error).__name__
            if "Credential" in kind:
                raise NotAllowedError(
                    f"{shown} may not be {done} here ({_without_secrets(error, address)}): see who may."
                ) from error
            if pause is None:
                raise OSError(f"{shown} cannot be {done} ({kind}: {_without_secrets(error, address)})") from error
        time.sleep(pause * random.uniform(0.5, 1.5))
    raise AssertionError
