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
"""Batches: which records come when, what is dropped of them, and reading them ahead."""

import itertools
import math
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import LoomVideoError
from .config import Dropped, TrainingConfig
from .data import Record, describe_failure, record_of, shapes_of


@dataclass(frozen=True)
class Draw:
    """A row of the records to read next, and the seed of everything random about this sample."""

    row: int
    seed: int


@dataclass
class Item:
    """
    What was read for a draw.

    Attributes:
        content: a clip or its features; None if no record of the shape can be read.
        seed: of the noise and the timestep.
        failures: the records that could not be read, as (file and place of the record, reason).
    """

    content: Any
    seed: int
    failures: list[tuple[str, str]] = field(default_factory=list)


class TrainingDataset(Dataset):
    """
    Reads the record of a `Draw` with `read(record, dropped)`.

    A record that cannot be read is replaced by the next one of its shape, so that batches keep their size.
    """

    def __init__(
        self, records: datasets.Dataset, read: Callable[[Record, Dropped], Any], drop_all: float, drop_text: float
    ):
        self.records = records
        self.read = read
        self.drop_all = drop_all
        self.drop_text = drop_text
        self.shapes = shapes_of(records)
        self.rows_by_shape = {}
        for row, shape in enumerate(self.shapes):
            self.rows_by_shape.setdefault(shape, []).append(row)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: Draw) -> Item:
        chance = random.Random(draw.seed).random()
        dropped: Dropped = (
            "all" if chance < self.drop_all else "text" if chance < self.drop_all + self.drop_text else "nothing"
        )
        failures = []
        for row in self._rows_like(draw.row):
            record = record_of(self.records[row])
            try:
                return Item(self.read(record, dropped), draw.seed, failures)
            except Exception as error:
                failures.append((record.where, describe_failure(error)))
        return Item(None, draw.seed, failures)

    def _rows_like(self, row: int) -> Iterator[int]:
        yield row
        alike = self.rows_by_shape[self.shapes[row]]
        place = alike.index(row)
        yield from alike[place + 1 :] + alike[:place]


class TokenBatchSampler(Sampler[list[Draw]]):
    """
    Yields batches without end, each of records of one shape, with no more than `tokens_per_batch` tokens together.

    The order depends on the seed alone, and the processes take turns in it. So two processes see in one step what one
    process sees with twice the accumulation, and a run can start at any batch.

    Args:
        shapes: frames, height, width and number of references of each record.
        dataset_of: the number of the dataset that each record belongs to.
        weights: how often to draw from each dataset, by its number, or None to draw all records equally often.
        token_size: frames, and pixels on a side, that become one token.
        tokens_per_batch: the most tokens of a batch of more than one sample.
        seed: of the order and of all samples.
        first_batch: where to start, counted over all processes.
        num_processes, process_index: this process takes each `num_processes`-th batch.
    """

    def __init__(
        self,
        shapes: list[tuple[int, int, int, int]],
        dataset_of: list[int],
        weights: list[float] | None,
        token_size: tuple[int, int],
        tokens_per_batch: int,
        seed: int,
        first_batch: int = 0,
        num_processes: int = 1,
        process_index: int = 0,
    ):
        self.shapes = shapes
        self.batch_sizes = {
            shape: max(1, tokens_per_batch // num_tokens(shape, token_size)) for shape in sorted(set(shapes))
        }
        # The rows of each dataset, and how many draws an epoch has of them, not always a whole number
        self.rows = {number: np.flatnonzero(np.equal(dataset_of, number)) for number in sorted(set(dataset_of))}
        self.draws: dict[int, float] = {number: len(rows) for number, rows in self.rows.items()}
        if weights is not None:
            total = sum(weights[number] for number in self.rows)
            self.draws = {number: len(shapes) * weights[number] / total for number in self.rows}
        self.seed = seed
        self.first_batch = first_batch
        self.num_processes = num_processes
        self.process_index = process_index

    def epoch(self, number: int) -> list[list[Draw]]:
        """The batches of an epoch: each record once, or with weights as often as they say."""
        rng = np.random.default_rng([self.seed, number])
        rows = np.concatenate(
            [
                self._draw(dataset, math.floor(number * draws), math.floor((number + 1) * draws))
                for dataset, draws in self.draws.items()
            ]
        )
        rng.shuffle(rows)
        seeds = rng.integers(0, 2**63, len(rows))
        by_shape = {}
        for row, seed in zip(rows.tolist(), seeds.tolist()):
            by_shape.setdefault(self.shapes[row], []).append(Draw(row, seed))
        batches = [
            draws[start : start + self.batch_sizes[shape]]
            for shape, draws in by_shape.items()
            for start in range(0, len(draws), self.batch_sizes[shape])
        ]
        return [batches[index] for index in rng.permutation(len(batches))]

    def _draw(self, dataset: int, first: int, end: int) -> np.ndarray:
        """A part of a dataset's order without end, in which each record comes once before any comes again."""
        rows = self.rows[dataset]
        if first == end:
            return rows[:0]
        rounds = range(first // len(rows), (end - 1) // len(rows) + 1)
        order = np.concatenate(
            [np.random.default_rng([self.seed, dataset, number, 1]).permutation(rows) for number in rounds]
        )
        start = rounds[0] * len(rows)
        return order[first - start : end - start]

    def __iter__(self) -> Iterator[list[Draw]]:
        index = 0
        for number in itertools.count():
            for batch in self.epoch(number):
                if index >= self.first_batch and index % self.num_processes == self.process_index:
                    yield batch
                index += 1


def num_tokens(shape: tuple[int, int, int, int], token_size: tuple[int, int]) -> int:
    """How many tokens a video of a `Record.shape` has, together with its references."""
    num_frames, height, width, num_references = shape
    frame_step, side = token_size
    return ((num_frames - 1) // frame_step + 1 + num_references) * (height // side) * (width // side)


def make_sampler(
    accelerator: Accelerator,
    config: TrainingConfig,
    records: datasets.Dataset,
    token_size: tuple[int, int],
    first_batch: int,
) -> TokenBatchSampler:
    weights = [dataset.weight for dataset in config.data.datasets if dataset.weight is not None]
    return TokenBatchSampler(
        shapes=shapes_of(records),
        dataset_of=records["dataset"],
        weights=weights or None,
        token_size=token_size,
        tokens_per_batch=config.data.tokens_per_batch,
        seed=config.seed,
        first_batch=first_batch,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
    )


def load_batches(
    config: TrainingConfig,
    records: datasets.Dataset,
    read: Callable[[Record, Dropped], Any],
    sampler: TokenBatchSampler,
) -> Iterator[list[Item]]:
    """Yields the sampler's batches, read ahead by worker processes."""
    return iter(
        DataLoader(
            TrainingDataset(records, read, config.data.drop_all, config.data.drop_text),
            batch_sampler=sampler,
            collate_fn=list,
            num_workers=config.data.num_workers,
            worker_init_fn=_leave_signals_to_parent,
            # Its base seed would otherwise change the random state, which a resumed run has to find as it was.
            generator=torch.Generator().manual_seed(config.seed),
        )
    )


def _leave_signals_to_parent(worker: int) -> None:
    # A scheduler may send SIGTERM to all processes of a job, but the parent still needs the data of its step.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def collect_failures(failures: dict[str, str], batches: list[list[Item]], strict: bool) -> None:
    """
    Prints the clips that could not be read, and adds them to `failures`.

    Raises:
        LoomVideoError: for the first of them if `strict`, or if no clip of a shape can be read.
    """
    for item in itertools.chain.from_iterable(batches):
        for where, reason in item.failures:
            if strict:
                raise LoomVideoError(f"{where}: {reason}")
            if where not in failures:
                print(f"Skipping {where}: {reason}")
            failures[where] = reason
        if item.content is None:
            where, reason = item.failures[-1]
            raise LoomVideoError(f"No clip of the shape of {where} can be read: {reason}")
