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
"""Locks, by which pipelines in several threads share components: what runs at once, and what waits."""

import functools
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch


class SharedLock:
    """
    A lock that many threads hold together, or one holds alone. They get it in the order in which they asked for it.

    A thread that holds it gets it again at once. What it holds together with others, it cannot get alone as well.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()
        # How often each thread holds it, and the one that holds it alone
        self._holders: Counter[int] = Counter()
        self._owner: int | None = None

    @property
    def is_mine(self) -> bool:
        """Whether this thread holds it."""
        return threading.get_ident() in self._holders

    @contextmanager
    def hold(self, alone: bool = True) -> Iterator[None]:
        """
        Waits for the lock, and holds it.

        Raises:
            RuntimeError: if this thread wants alone what it holds together with others: it would wait forever.
        """
        thread, ticket = threading.get_ident(), object()
        with self._changed:
            if alone and self.is_mine and self._owner != thread:
                raise RuntimeError(
                    "This call needs a model for itself, for a LoRA scale or for offloading, and was made by a "
                    "callback of a call that shares the model with other threads: make it when that call is done."
                )
            if not self.is_mine:
                self._queue.append(ticket)
                try:
                    self._changed.wait_for(
                        lambda: self._queue[0] is ticket and not (self._holders if alone else self._owner)
                    )
                finally:
                    self._queue.remove(ticket)
                    self._changed.notify_all()
                self._owner = thread if alone else None
            self._holders[thread] += 1
        try:
            yield
        finally:
            with self._changed:
                self._holders[thread] -= 1
                if self._holders[thread] == 0:
                    del self._holders[thread]
                    self._owner = None
                    self._changed.notify_all()


# They are not kept on the components, which are copied and pickled.
_LOCKS: "WeakKeyDictionary[Any, SharedLock]" = WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


def lock_of(component: Any) -> SharedLock:
    """The lock of a model, a processor, a scheduler or a pipeline, the same for all who share it."""
    with _LOCKS_LOCK:
        # `torch.compile` wraps a module in another.
        return _LOCKS.setdefault(getattr(component, "_orig_mod", component), SharedLock())


def has_hooks(model: torch.nn.Module) -> bool:
    """Whether Accelerate or Diffusers have hooks in a model, as of offloading, layerwise casting and step caches."""
    return any(
        "_hf_hook" in attributes or ("_diffusers_hook" in attributes and attributes["_diffusers_hook"].hooks)
        for attributes in map(vars, model.modules())
    )


@contextmanager
def hold(models: Iterable[Any], component: Any = None, alone: bool = True) -> Iterator[None]:
    """
    Waits until this thread may use a component, alone or together with others.

    Where hooks move the weights of a pipeline's `models`, or keep what belongs to one call, all of them are taken
    alone, and without a component too.
    """
    models = [model for model in models if model is not None]
    is_model = any(component is model for model in models)
    with ExitStack() as stack:
        # The order in which they are taken is the same everywhere, lest two threads wait for each other.
        if (component is None or is_model) and any(map(has_hooks, models)):
            for model in models:
                stack.enter_context(lock_of(model).hold())
        elif component is not None:
            stack.enter_context(lock_of(component).hold(alone))
        yield


def one_call_at_a_time(call: Callable) -> Callable:
    """For what takes a pipeline and keeps on it how far it is: other threads that want the same pipeline wait."""

    @functools.wraps(call)
    def wait_and_call(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        transformer, scheduler = getattr(pipe, "transformer", None), getattr(pipe, "scheduler", None)
        if lock_of(pipe).is_mine:
            raise RuntimeError(
                "A callback called the pipeline that called it: call another, made by `from_pipe` with a scheduler of "
                "its own."
            )
        if scheduler is not None and lock_of(scheduler).is_mine:
            raise RuntimeError(
                "A callback made a call with the scheduler that called it, which keeps the state of one call: give "
                "the other pipeline its own, by `from_pipe(pipe, scheduler=copy.deepcopy(pipe.scheduler))`."
            )
        if getattr(transformer, "is_cache_enabled", False) and lock_of(transformer).is_mine:
            raise RuntimeError(
                "A callback made a call with the transformer that called it, whose step cache keeps the state of one "
                "call: make it when that call is done, or `disable_cache()`."
            )
        with lock_of(pipe).hold(), pipe.use():
            return call(pipe, *args, **kwargs)

    return wait_and_call
