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

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from ..errors import LoomVideoError
from ..media import write_whole


# Two letters at least: one is a drive of Windows.
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")

# An address in a text: its scheme, its user and password, what may be shown, and its query and fragment
IN_A_TEXT = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+://)(?:[^\s/?#'\"]*@)?([^\s?#'\"]*)(?:[?#][^\s'\"]*)?")

# Where a file appears when all of it has arrived, and not before. Elsewhere it is sent under another name first.
WHOLE_OR_NOT = {"s3", "s3a", "gs", "gcs", "hf", "az", "abfs", "memory"}


class Address(str):
    """The address of a file that is on no disk of this machine, with all that it takes to reach it."""

    @property
    def name(self) -> str:
        """The file's name, which is quoted in addresses of the web alone."""
        name = self.partition("?")[0].rsplit("/", 1)[-1]
        return unquote(urlsplit(name).path) if self.startswith(("http://", "https://")) else name

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix


def to_location(text: str) -> Path | Address:
    """A path, also of a `file://` address, or the address of a file elsewhere."""
    if not SCHEME.match(text):
        return Path(text)
    if text.startswith("file://"):
        return Path(url2pathname(urlsplit(text).path))
    return Address(text)


def redact(text: object) -> str:
    """A text without the users, passwords, queries and fragments of the addresses in it, which may be secret."""
    return IN_A_TEXT.sub(r"\1\2", str(text))


def fetch(address: Address, folder: Path) -> Path:
    """
    Reads a file into a folder, as a stream. It appears there when all of it has come.

    Raises:
        LoomVideoError: if it is not there, may not be read, or what reads such addresses is not installed.
        OSError: if it cannot be read for a reason that may pass.
    """
    path = folder / (address.name or "file")
    with _reaching(address, "read") as (system, remote):
        write_whole(path, lambda file: system.get_file(remote, file))
        size = system.info(remote).get("size")
        if size is not None and path.stat().st_size != size:
            path.unlink()
            raise OSError(f"only a part of it came, {path.name} of {size} bytes")
    return path


def deliver(path: Path, address: Address) -> None:
    """
    Writes a file to an address, where it appears when all of it has arrived.

    Raises:
        LoomVideoError: if it may not be written, or what writes such addresses is not installed.
        OSError: if it cannot be written for a reason that may pass.
    """
    with _reaching(address, "written") as (system, remote):
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


@contextmanager
def _reaching(address: Address, done: str) -> Iterator[tuple[Any, str]]:
    """Yields the file system of an address, and its path there; errors name the address without its secrets."""
    from fsspec.core import url_to_fs

    shown = redact(address)
    try:
        yield url_to_fs(str(address))
    except ImportError as error:
        raise LoomVideoError(f"{shown} needs a package that is not installed: {redact(error)}") from error
    except FileNotFoundError as error:
        raise LoomVideoError(f"{shown} is not there.") from error
    except (PermissionError, NotImplementedError) as error:
        raise LoomVideoError(f"{shown} may not be {done} ({redact(error)}): see who may.") from error
    except ValueError as error:
        raise LoomVideoError(f"{shown} cannot be {done} ({redact(error)}): see its address.") from error
    except Exception as error:  # Each kind of file system has errors of its own.
        raise OSError(f"{shown} cannot be {done} ({type(error).__name__}: {redact(error)})") from error
