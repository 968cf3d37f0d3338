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
"""Reading and writing beside the model's work, each in a thread of its own, so that neither waits for the other."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar


Item = TypeVar("Item")

# Frames that wait, which bounds the memory
NUM_WAITING = 3


def read_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yields the items, of which the next ones are made meanwhile. What making them raises, is raised in its turn."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        waiting: deque[Future] = deque(thread.submit(next, iterator, end) for _ in range(NUM_WAITING))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(next, iterator, end))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)


@contextmanager
def beside() -> Iterator[Callable[..., None]]:
    """
    Yields a function that calls another with arguments later, in order, and waits if too many calls are outstanding.

    What they raise, is raised by one of the next calls, or in the end, when all are done; after an error, those that
    have not begun are dropped.
    """
    with ThreadPoolExecutor(1) as thread:
        waiting: deque[Future] = deque()

        def call(function: Callable[..., Any], *arguments: Any) -> None:
            waiting.append(thread.submit(function, *arguments))
            if len(waiting) > NUM_WAITING:
                waiting.popleft().result()

        try:
            yield call
            while waiting:
                waiting.popleft().result()
        finally:
            thread.shutdown(cancel_futures=True)
