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
"""Reading ahead, and writing beside."""

import threading
import time

import pytest

from loomvideo_diffusers.footage.overlap import NUM_WAITING, beside, read_ahead


def test_items_are_read_ahead():
    """In order, in another thread, and only so many."""
    made, threads = [], set()

    def items():
        for index in range(20):
            made.append(index)
            threads.add(threading.get_ident())
            yield index

    reader = read_ahead(items())
    assert next(reader) == 0
    time.sleep(0.1)
    assert len(made) == 1 + NUM_WAITING
    assert list(reader) == list(range(1, 20))
    assert len(threads) == 1
    assert threads != {threading.get_ident()}


def test_what_reading_raises():
    def items():
        yield 1
        raise OSError("the disk is gone")

    reader = read_ahead(items())
    assert next(reader) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(reader)


def test_reading_is_broken_off():
    """No more is read, and no thread stays."""
    before, made = threading.active_count(), []
    reader = read_ahead(made.append(index) or index for index in range(1000))
    next(reader)
    reader.close()
    assert len(made) <= 2 + NUM_WAITING
    assert threading.active_count() == before


def test_calls_beside():
    """In order, all done in the end, and not too many outstanding."""
    done, most = [], 0

    def work(number):
        time.sleep(0.005)
        done.append(number)

    with beside() as later:
        for number in range(20):
            later(work, number)
            most = max(most, number + 1 - len(done))
    assert done == list(range(20))
    assert most <= NUM_WAITING + 1


def test_what_a_call_raises():
    def fail():
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"), beside() as later:
        later(fail)


def test_an_error_beside_calls():
    """Those that have not begun are dropped."""
    done = []

    def break_off():
        with beside() as later:
            later(time.sleep, 0.1)
            later(done.append, 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    assert done == []
