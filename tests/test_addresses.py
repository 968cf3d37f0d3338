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
"""Files elsewhere: whole or not at all, and without their secrets in anything that is said."""

from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from loomvideo_diffusers.errors import LoomVideoError
from loomvideo_diffusers.fleet.addresses import Address, check_address, deliver, fetch, redact, to_location


@pytest.fixture(autouse=True)
def empty(monkeypatch):
    monkeypatch.setattr("loomvideo_diffusers.fleet.addresses.PAUSES", (0.01, 0.01))
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.mark.parametrize(
    ("text", "location"),
    [
        ("clip.mp4", Path("clip.mp4")),
        ("/a/b.mp4", Path("/a/b.mp4")),
        ("C:/clips/a.mp4", Path("C:/clips/a.mp4")),
        ("file:///a/b%20c.mp4", Path("/a/b c.mp4")),
        ("s3://bucket/a.mp4", Address("s3://bucket/a.mp4")),
        ("https://a.example/b.mp4?sig=x", Address("https://a.example/b.mp4?sig=x")),
        ("hf://datasets/me/clips/a.mp4", Address("hf://datasets/me/clips/a.mp4")),
    ],
)
def test_locations(text, location):
    assert to_location(text) == location
    assert type(to_location(text)) is type(location)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:secret@bucket/a.mp4", "s3://bucket/a.mp4"),
        ("https://a.example/b.mp4?X-Amz-Signature=abc&x=1", "https://a.example/b.mp4"),
        ("https://me:pw@a.example:8443/b.mp4#token", "https://a.example:8443/b.mp4"),
        ("cannot read 'https://u@h/a b?c' and gs://b/c?d, sorry", "cannot read 'https://h/a b?c' and gs://b/c sorry"),
        ("no address: a?b@c", "no address: a?b@c"),
    ],
)
def test_secrets_are_not_shown(text, shown):
    assert redact(text) == shown


def test_secrets_are_not_in_errors(monkeypatch, tmp_path):
    """Libraries name an address without its scheme, or a part of it."""
    words = "key:the-secret@bucket/a.mp4 does not exist (signature abcdefgh1234, ?sig=abcdefgh1234&n=1)"
    monkeypatch.setattr(MemoryFileSystem, "info", lambda *_, **__: (_ for _ in ()).throw(OSError(words)))
    with pytest.raises(OSError, match=r"bucket/a\.mp4 does not exist \(signature \.\.\., \)") as error:
        fetch(Address("memory://key:the-secret@bucket/a.mp4?sig=abcdefgh1234&n=1"), tmp_path)
    assert str(error.value).startswith("memory://bucket/a.mp4 cannot be read (OSError: ")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("https://a.example/b.mp4?x", r"^https://a\.example/b\.mp4 cannot be written: choose a bucket"),
        ("nothing://u:p@a/b.mp4", r"^nothing://a/b\.mp4 cannot be reached"),
        ("adl://a/b.mp4", "^adl:// needs a package that is not installed: "),
    ],
)
def test_addresses_that_nothing_writes(address, message):
    with pytest.raises(LoomVideoError, match=message):
        check_address(Address(address), is_written=True)


def test_names():
    assert Address("https://a.example/my%20clip.mp4?x=/y.png").name == "my clip.mp4"
    assert Address("s3://bucket/a/b.MP4").suffix == ".MP4"
    assert Address("s3://bucket/a/50%20off_%04d.png?versionId=1").name == "50%20off_%04d.png"


def test_a_file_there_and_back(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"clip" * 1000)
    deliver(tmp_path / "a.mp4", Address("memory://bucket/out/b.mp4"))
    fetched = fetch(Address("memory://bucket/out/b.mp4"), tmp_path / "cache")
    assert fetched == tmp_path / "cache" / "b.mp4"
    assert fetched.read_bytes() == b"clip" * 1000
    assert list(MemoryFileSystem.store) == ["/bucket/out/b.mp4"]


def test_where_a_file_is_not_there_at_once(tmp_path, monkeypatch):
    """It is sent under another name first; of one that breaks off, nothing stays."""
    monkeypatch.setattr("loomvideo_diffusers.fleet.addresses.WHOLE_OR_NOT", set())
    (tmp_path / "a.mp4").write_bytes(b"clip")
    names = []
    put = MemoryFileSystem.put_file

    def put_file(self, local, remote, **options):
        names.append(remote)
        put(self, local, remote, **options)
        if remote == "/bucket/c.mp4" or len(names) > 1:
            raise OSError("the line is down")

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
    deliver(tmp_path / "a.mp4", Address("memory://bucket/b.mp4"))
    assert ".unfinished-" in names[0]
    with pytest.raises(OSError, match="the line is down"):
        deliver(tmp_path / "a.mp4", Address("memory://bucket/c.mp4"))
    assert list(MemoryFileSystem.store) == ["/bucket/b.mp4"]


def test_what_cannot_be_reached(tmp_path, monkeypatch):
    with pytest.raises(LoomVideoError, match=r"^memory://bucket/none.mp4 is not there\.$"):
        fetch(Address("memory://bucket/none.mp4?secret"), tmp_path)
    with pytest.raises(LoomVideoError, match=r"^nothing://a/b cannot be read"):
        fetch(Address("nothing://me:secret@a/b"), tmp_path)
    assert not list(tmp_path.iterdir())
    fsspec.filesystem("memory").pipe_file("/bucket/a.mp4", b"clip")
    monkeypatch.setattr(MemoryFileSystem, "get_file", lambda self, remote, local: Path(local).write_bytes(b"cl"))
    with pytest.raises(OSError, match="only a part of it came"):
        fetch(Address("memory://bucket/a.mp4"), tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_file()]
    monkeypatch.setattr(MemoryFileSystem, "get_file", lambda *_: (_ for _ in ()).throw(PermissionError("key=secret")))
    with pytest.raises(LoomVideoError, match="may not be read"):
        fetch(Address("memory://bucket/a.mp4"), tmp_path)
