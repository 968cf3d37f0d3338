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
"""Visits to the page: each has a folder of its own, and sees no other's files and runs."""

import hashlib
import re
import secrets
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from .runs import Run


# Secrets that a browser may name: of as many letters as cannot be guessed
SECRET = re.compile(r"[A-Za-z0-9_-]{32,64}")

# How many of its finished runs a visit is shown; the files of older ones go.
LENGTH_OF_HISTORY = 24

# How many calls a visit may want to end that are none of its own, and how many visits may come that do nothing
MOST_CANCELLED, MOST_IDLE = 1000, 10_000


@dataclass(eq=False)
class Visit:
    """
    One browser's stay, or one program's.

    Attributes:
        folder: for the files of its runs.
        uploads: files that it sent.
        runs: all that it asked for, the oldest first.
        cancelled: Gradio's names of the calls that are to end.
        last_seen: when it last asked for anything, on the monotonic clock.
    """

    folder: Path
    uploads: set[Path] = field(default_factory=set)
    runs: list[Run] = field(default_factory=list)
    cancelled: set[str] = field(default_factory=set)
    last_seen: float = field(default_factory=time.monotonic)

    def owns(self, path: str | Path) -> bool:
        """Whether a path, as it stands and with what links in it lead to, names one of this visit's files."""
        path = Path(path)
        if not path.is_absolute() or ".." in path.parts:
            return False
        resolved = path.resolve()
        return path in self.uploads or (self.folder in path.parents and self.folder.resolve() in resolved.parents)

    def cancel(self, event: object) -> None:
        """Notes that a call is to end, by Gradio's name of it."""
        if isinstance(event, str) and len(event) <= 64 and len(self.cancelled) < MOST_CANCELLED:
            self.cancelled.add(event)

    def add(self, run: Run) -> None:
        """Adds a run, and removes what is too old to be shown."""
        self.runs.append(run)
        over = [run for run in self.runs if run.is_over]
        for run in over[: max(0, len(over) - LENGTH_OF_HISTORY)]:
            self.runs.remove(run)
            shutil.rmtree(run.folder, ignore_errors=True)


class Visits:
    """
    All visits, by their secrets.

    Args:
        root: a folder for their files.
        lifetime: seconds after which the files of a visit go, counted from when it last asked for anything.
    """

    def __init__(self, root: Path, lifetime: float = 3600):
        self.root = root
        self.lifetime = lifetime
        self._visits: dict[str, Visit] = {}
        self._lock = threading.Lock()

    def of(self, secret: str | None) -> tuple[str, Visit]:
        """The visit of a secret, and the secret: a new one of both if it is not one that can be kept."""
        if secret is None or not SECRET.fullmatch(secret):
            secret = secrets.token_urlsafe(32)
        with self._lock:
            visit = self._visits.get(secret)
            if visit is None:
                if len(self._visits) >= MOST_IDLE:
                    self._visits = {name: one for name, one in self._visits.items() if one.uploads or one.runs}
                # The name of the folder is no secret: it stands in addresses.
                name = hashlib.sha256(secret.encode()).hexdigest()[:32]
                visit = self._visits[secret] = Visit(self.root / "visits" / name)
            visit.last_seen = time.monotonic()
        return secret, visit

    def num_bytes(self, visit: Visit | None = None) -> int:
        """How many bytes the uploads of a visit take, or of all."""
        visits = [visit] if visit is not None else list(self._visits.values())
        paths = {path for one in visits for path in one.uploads}
        return sum(path.stat().st_size for path in paths if path.exists())

    def without_folders(self, sentence: str) -> str:
        """A sentence that calls files by the names that the visitor gave them."""
        return re.sub(rf"{re.escape(str(self.root))}/(visits/)?([0-9a-f]+/)+", "", sentence)

    def remove_old(self) -> None:
        """Removes the visits, and other files in the root, that nobody has used for longer than the lifetime."""
        with self._lock:
            for secret, visit in list(self._visits.items()):
                is_busy = any(not run.is_over for run in visit.runs)
                if not is_busy and time.monotonic() - visit.last_seen > self.lifetime:
                    del self._visits[secret]
                    shutil.rmtree(visit.folder, ignore_errors=True)
            kept = {path for visit in self._visits.values() for path in visit.uploads}
            folders = [visit.folder for visit in self._visits.values()]
        oldest = time.time() - self.lifetime
        for path in self.root.rglob("*"):
            is_kept = path in kept or any(folder in path.parents for folder in folders)
            if path.is_file() and not is_kept and path.stat().st_mtime < oldest:
                path.unlink(missing_ok=True)
        for path in self.root.iterdir():
            if path.is_dir() and not any(path.iterdir()) and path.stat().st_mtime < oldest:
                path.rmdir()
