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
"""A queue of runs: one at a time, the visits in turn."""

import shutil
import threading
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from ..errors import LoomVideoError
from ..footage import EditPlan, GenerationPlan
from .work import CANCEL_FILE, Outcome


class State(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(eq=False)
class Run:
    """
    One run of a plan.

    Attributes:
        folder: for its files, of its own, which is made when it is added.
        plan: what to do; None when it is over, as is the context.
        result: the file that it writes.
        model, loras: what to do it with.
        title: what is shown of it, a few words.
        command: the command that makes the same again.
        is_watched: whether to show what becomes of it.
        state: how far it is.
        outcome: what came of it, once it is done or has failed.
        context: of the request for it, in which ZeroGPU finds who asked.
    """

    folder: Path
    plan: EditPlan | GenerationPlan | None
    result: Path
    model: str
    loras: tuple[str, ...]
    title: str
    command: str = ""
    is_watched: bool = True
    state: State = State.WAITING
    outcome: Outcome | None = None
    context: Context | None = field(default_factory=copy_context)

    @property
    def is_over(self) -> bool:
        return self.state not in (State.WAITING, State.RUNNING)


class Runs:
    """
    Runs that wait for each other, in a thread.

    Args:
        work: does a run, and returns what came of it; a run that is cancelled returns None within a step.
        most: how many may wait.
    """

    def __init__(self, work: Callable[[Run], Outcome | None], most: int = 100):
        self.work = work
        self.most = most
        self._changed = threading.Condition()
        # The runs that wait, each with its visit, and how many of each visit were begun
        self._waiting: list[tuple[object, Run]] = []
        self._running: Run | None = None
        self._num_begun: dict[object, int] = {}
        self._is_closed = False
        self._thread = threading.Thread(target=self._go_on, name="runs", daemon=True)
        self._thread.start()

    def add(self, visit: object, run: Run) -> None:
        """
        Lets a run wait.

        Raises:
            LoomVideoError: if too many wait.
        """
        with self._changed:
            if len(self._waiting) >= self.most:
                raise LoomVideoError(f"{self.most} runs are waiting, which is as many as can: try again later.")
            run.folder.mkdir(parents=True)
            # Whoever comes now is served after those who have waited, but before what others want beyond that.
            others = [self._num_begun.get(owner, 0) for owner, _ in self._waiting]
            self._num_begun[visit] = max(self._num_begun.get(visit, 0), min(others, default=0))
            self._waiting.append((visit, run))
            self._changed.notify_all()

    def place(self, run: Run) -> int:
        """How many runs come before one that waits."""
        with self._changed:
            order = self._order()
            return (order.index(run) if run in order else 0) + (self._running is not None)

    def cancel(self, run: Run) -> None:
        """Cancels a run that waits, or tells the one that runs to end."""
        with self._changed:
            for entry in self._waiting:
                if entry[1] is run:
                    self._waiting.remove(entry)
                    self._end(run, State.CANCELLED, None)
                    return
            if self._running is run:
                # A file, because the run may be in another process.
                (run.folder / CANCEL_FILE).touch()

    def close(self) -> None:
        """Cancels everything, and waits until it has ended."""
        with self._changed:
            self._is_closed = True
            waiting = [run for _, run in self._waiting]
            self._changed.notify_all()
        for run in [*waiting, self._running]:
            if run is not None:
                self.cancel(run)
        self._thread.join()

    def _order(self) -> list[Run]:
        """The runs that wait, in the order in which they will be begun: in turn for each visit."""
        num_begun, order, waiting = dict(self._num_begun), [], list(self._waiting)
        while waiting:
            entry = min(waiting, key=lambda entry: num_begun.get(entry[0], 0))  # of several the one that came first
            waiting.remove(entry)
            num_begun[entry[0]] = num_begun.get(entry[0], 0) + 1
            order.append(entry[1])
        return order

    def _go_on(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if self._is_closed:
                    return
                run = self._order()[0]
                visit = next(visit for visit, waiting in self._waiting if waiting is run)
                self._waiting.remove((visit, run))
                self._num_begun[visit] = self._num_begun.get(visit, 0) + 1
                if not self._waiting:
                    self._num_begun = {visit: 1}
                self._running, run.state = run, State.RUNNING
            assert run.context is not None
            outcome = run.context.run(self.work, run)
            with self._changed:
                self._running = None
                state = State.CANCELLED if outcome is None else State.FAILED if outcome.error else State.DONE
                self._end(run, state, outcome)

    def _end(self, run: Run, state: State, outcome: Outcome | None) -> None:
        if state is not State.DONE:
            shutil.rmtree(run.folder, ignore_errors=True)
        # What takes memory goes.
        run.plan = run.context = None
        run.state, run.outcome = state, outcome
