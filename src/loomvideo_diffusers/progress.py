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
"""One progress bar at a time, in the last line of the terminal; what is printed meanwhile appears above it."""

import itertools
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, TextIO
from weakref import WeakSet

from tqdm import tqdm


# Seconds between two lines of one bar where stderr is a file and not a terminal
SECONDS_BETWEEN_LINES = 60

# The open bars, the innermost last: only that one is drawn.
_bars: list["ProgressBar"] = []


@dataclass(frozen=True)
class Progress:
    """
    How far something is.

    Attributes:
        description: what is being done.
        num_done: how much of it is done.
        total: of how much; None if that is unknown.
        detail: where exactly it is, such as `step 2/20, window 1/3`, or nothing.
    """

    description: str
    num_done: int = 0
    total: int | None = None
    detail: str = ""


Observer = Callable[[Progress], None]

_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)


@contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """
    Tells `observer` of all progress that this thread would otherwise show as bars.

    What the observer raises ends what is being done, as any error does: nothing is left half-written.
    """
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


@contextmanager
def without_bars() -> Iterator[None]:
    """Shows no bars of this thread."""
    with observed_by(lambda progress: None):
        yield


def progress_bar(
    iterable: Iterable[Any] | None = None,
    *,
    desc: str | None = None,
    total: int | None = None,
    disable: bool = False,
    **options: Any,
) -> "ProgressBar | ObservedBar":
    """
    Opens a bar that is used like tqdm's: iterated, with `update`, `set_postfix` and `close`, or in `with`.

    A bar that is opened within another takes over its line, shows there how far the outer one is, and leaves nothing
    behind. What is printed to `sys.stdout` and `sys.stderr` meanwhile, warnings included, appears above the line.
    Where stderr is no terminal, a bar prints a line a minute and one at its end. Of several processes only the first
    has bars.

    `pipe.progress_bar = functools.partial(progress_bar, desc="Denoising")` makes a pipeline use them.
    """
    observer = _observer.get()
    if observer is not None and not disable:
        return ObservedBar(observer, iterable, desc, total)
    disable = disable or int(os.environ.get("RANK", 0)) > 0
    return ProgressBar(iterable, desc=desc, total=total, disable=disable, **options)


@contextmanager
def stage(description: str) -> Iterator[None]:
    """Shows what is being done and for how long, where progress is unknown, until a bar takes over its line."""
    with progress_bar(desc=description, bar_format="{desc} [{elapsed}]", leave=False) as bar:
        ended = threading.Event()

        def show_seconds() -> None:
            while not ended.wait(1):
                bar.refresh()

        thread = threading.Thread(target=show_seconds, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class Stopwatch:
    """Measures how long each stage of something takes, in `seconds`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def message(text: str) -> None:
    """Prints a line to stderr, above the bar."""
    print(text, file=sys.stderr, flush=True)


def close_bars() -> None:
    """Closes the bars that an error left open, so that what is printed next is the last line."""
    while _bars:
        _bars[-1].close()


class ProgressBar(tqdm):
    """See `progress_bar`."""

    disable: bool

    # Its own set: otherwise tqdm would move other libraries' bars, which `_AboveTheBar` shows in this line, one down.
    _instances = WeakSet()

    def __init__(self, iterable: Iterable[Any] | None = None, *, file: TextIO | None = None, **options: Any):
        file = _terminal_of(file or sys.stderr)
        self.is_terminal = file.isatty()
        self.next_line = time.monotonic() + SECONDS_BETWEEN_LINES
        options = {"position": 0, "leave": None if all(bar.total is None for bar in _bars) else False} | options
        # On a terminal that does not tell its size, as in some containers, tqdm would draw nothing.
        columns, lines = shutil.get_terminal_size()
        size = {"dynamic_ncols": True} if _has_size(file) else {"ncols": columns, "nrows": lines}
        super().__init__(iterable, file=file, **size | options)
        if not self.disable:
            with self.get_lock():
                if _bars:
                    _bars[-1].clear()
                _bars.append(self)
                _redirect(self.is_terminal)
                self.refresh()

    def __iter__(self) -> Iterator[Any]:
        # tqdm's own updates its count only now and then, and a bar within this one shows the count.
        with self:
            for item in self.iterable:
                yield item
                self.update()

    @property
    def format_dict(self) -> dict[str, Any]:
        values = super().format_dict
        # tqdm's bars compare equal if they are in the same line.
        outer = itertools.takewhile(lambda bar: bar is not self, _bars)
        return values | {"prefix": "".join(bar.place for bar in outer) + (values["prefix"] or "")}

    @property
    def place(self) -> str:
        """How far it is, as shown before the text of a bar within it."""
        return "" if self.total is None else f"{self.desc.removesuffix(': ')} {self.n}/{self.total}, ".lstrip()

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if self.is_terminal:
            return bool(_bars) and self is _bars[-1] and super().display(msg, pos)
        if time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            self.fp.write(f"{self}\n")
        return True

    def clear(self, nolock: bool = False) -> None:
        if self.is_terminal:
            super().clear(nolock)

    def close(self) -> None:
        if self.disable:
            return
        with self.get_lock():
            if self.is_terminal:
                super().close()
            else:
                if self.leave is not False:
                    self.fp.write(f"{self}\n")
                self.disable = True
                self._decr_instances(self)
            _bars[:] = [bar for bar in _bars if bar is not self]
            _redirect(self.is_terminal)
            if _bars:
                _bars[-1].refresh()


class ObservedBar(tqdm):
    """A bar that is not drawn: an observer is told of it."""

    def __init__(self, observer: Observer, iterable: Iterable[Any] | None, desc: str | None, total: int | None):
        super().__init__(iterable, total=total, disable=True)
        self.observer = observer
        self.progress = Progress(desc or "", 0, self.total)
        observer(self.progress)

    def __iter__(self) -> Iterator[Any]:
        for item in self.iterable:
            yield item
            self.update()

    def update(self, n: float | None = 1) -> None:
        self.n += n
        self._tell(num_done=self.n)

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        self._tell(detail=s)

    def _tell(self, **changes: Any) -> None:
        self.progress = replace(self.progress, **changes)
        self.observer(self.progress)


class _AboveTheBar:
    """Stands in for a terminal: writes whole lines above the bar, and other libraries' bars into its line."""

    def __init__(self, terminal: TextIO):
        self.terminal = terminal
        self.rest = ""

    def write(self, text: str) -> int:
        with ProgressBar.get_lock():
            if not _bars:
                return self.terminal.write(text)
            *lines, self.rest = (line.rpartition("\r")[2] for line in (self.rest + text).split("\n"))
            if lines:
                _bars[-1].clear()
                self.terminal.write("".join(line + "\n" for line in lines))
                self.terminal.flush()
                _bars[-1].refresh()
            if "\r" in text and self.rest:
                _bars[-1].sp(self.rest)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.terminal, name)


def _redirect(is_terminal: bool) -> None:
    """Lets what is printed to the terminal appear above the bar as long as one is open."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, _AboveTheBar):
            if not _bars:
                setattr(sys, name, stream.terminal)
                stream.terminal.write(stream.rest)
        elif _bars and is_terminal and stream.isatty():
            setattr(sys, name, _AboveTheBar(stream))


def _terminal_of(stream: TextIO) -> TextIO:
    return stream.terminal if isinstance(stream, _AboveTheBar) else stream


def _has_size(file: TextIO) -> bool:
    try:
        return os.get_terminal_size(file.fileno()).columns > 0
    except (OSError, ValueError):
        return False
