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
"""Training data: from files of records to batches of clips, the same ones in the same order each time."""

import itertools
import math
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset, Sampler

from ..errors import LoomVideoError
from ..media.images import is_image, probe_image, read_image
from ..media.records import read_json_records
from ..media.video import probe_video, read_video
from ..pipelines.loomvideo_frames import fit, nearest_size
from ..pipelines.loomvideo_mllm import PROMPT_PREFIXES, check_prompt
from .config import DatasetSettings, DataSettings


PROMPT_KEYS = ("text", "instruction")
TARGET_KEYS = ("path", "target_video_path", "target_image_path")
SOURCE_KEYS = ("source_video_path", "source_image_path")
REFERENCES_KEY = "reference_image_paths"

# What a sample is trained without, so that guidance has something to guide away from.
Dropped = Literal["nothing", "text", "all"]


@dataclass(frozen=True)
class Record:
    """
    One sample of the training data, with the shape it is trained in.

    Attributes:
        where: the file, and the line or place in it.
        prompt: the user's words.
        target, source, references: paths of files; `source` is None when the target is not an edit.
        is_video: whether the target is a video; an image is a video of one frame.
        width, height: in pixels, one of the sizes of the settings.
        num_frames: how many frames source and target are cut to, 4k + 1.
        drop_all_prompt: what the MLLM reads when all is dropped.
    """

    where: str
    prompt: str
    target: str
    source: str | None
    references: list[str]
    is_video: bool
    width: int
    height: int
    num_frames: int
    drop_all_prompt: str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """What records must have in common to go into one batch."""
        return (self.num_frames, self.height, self.width, len(self.references))

    @property
    def files(self) -> list[str]:
        return [self.target, *([] if self.source is None else [self.source]), *self.references]

    def full_prompt(self, dropped: Dropped) -> str:
        """The text that the MLLM reads (spec: prompts)."""
        if dropped != "nothing":
            return self.drop_all_prompt if dropped == "all" else ""
        task = f"{'generate' if self.source is None else 'edit'} {'video' if self.is_video else 'image'}"
        return PROMPT_PREFIXES[task, bool(self.references)] + self.prompt


def read_records(settings: DataSettings, strict: bool = False) -> tuple[datasets.Dataset, dict[str, str]]:
    """
    Reads and checks all records of all datasets, and opens each file to see what shape it has.

    Args:
        settings: where the records are, with `sizes` and `max_frames`.
        strict: whether to read all of each file, and raise ValueError for the first that is damaged.

    Returns:
        A row for each record whose files can be read, with the attributes of `Record` and the number of its `dataset`;
        and what is wrong with the others, by the file and place of the record.

    Raises:
        LoomVideoError: for the first record that is wrong, with the file and the line, or if no file can be read.
    """
    rows = []
    for number, dataset in enumerate(settings.datasets):
        found = list(_read_dataset(dataset))
        if not found:
            raise LoomVideoError(
                f"{dataset.records} has no records: each is a JSON object, on a line of its own in JSONL."
            )
        rows += [row | {"dataset": number, "drop_all_prompt": settings.drop_all_prompt} for row in found]
    # Where features are computed, that reads all before the training begins.
    read_all = strict and settings.features is None
    rows = datasets.Dataset.from_list(rows).map(
        _add_shape,
        fn_kwargs={"sizes": settings.size_list(), "max_frames": settings.max_frames, "read_all": read_all},
        num_proc=min(settings.num_workers, len(rows)) or None,
        desc="Checking clips",
    )
    failures = {row["where"]: row["problem"] for row in rows.select_columns(["where", "problem"]) if row["problem"]}
    for where, problem in failures.items():
        if strict or len(failures) == len(rows):
            first = "" if strict else "None of the clips can be read, the first is that of "
            raise LoomVideoError(f"{first}{where}: {problem}")
    readable = [index for index, problem in enumerate(rows["problem"]) if not problem]
    return rows.select(readable).remove_columns("problem"), failures


def describe_failure(error: Exception) -> str:
    """Why a clip cannot be read, of errors that do not say it themselves too."""
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def record_of(row: dict[str, Any]) -> Record:
    return Record(**{name: row[name] for name in Record.__dataclass_fields__})


def _read_dataset(settings: DatasetSettings) -> Iterator[dict[str, Any]]:
    path = Path(settings.records)
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in (".json", ".jsonl"))
    root = Path(settings.root) if settings.root is not None else path if path.is_dir() else path.parent
    for file in files:
        for where, record in read_json_records(file):
            yield _check_record(where, record, root)


def _check_record(where: str, record: Any, root: Path) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise LoomVideoError(f"{where} is not a JSON object.")
    # Tables exported by other libraries have a null where there is nothing.
    record = {key: value for key, value in record.items() if value is not None}
    for key, value in record.items():
        if key not in (*PROMPT_KEYS, *TARGET_KEYS, *SOURCE_KEYS, REFERENCES_KEY):
            raise LoomVideoError(
                f"{where} has the unknown key `{key}`: there are "
                f"{', '.join((*PROMPT_KEYS, *TARGET_KEYS, *SOURCE_KEYS, REFERENCES_KEY))}."
            )
        values = value if key == REFERENCES_KEY and isinstance(value, list) else [value]
        if (key == REFERENCES_KEY) != isinstance(value, list) or not all(isinstance(item, str) for item in values):
            raise LoomVideoError(
                f"{where}: `{key}` must be {'a list of strings' if key == REFERENCES_KEY else 'a string'}."
            )
    prompt = _one_of(record, PROMPT_KEYS, where)
    check_prompt(prompt[1], f"{where}: `{prompt[0]}`")
    target = _one_of(record, TARGET_KEYS, where)
    source = _one_of(record, SOURCE_KEYS, where, required=False)
    is_video = target[0] == "target_video_path" or (target[0] == "path" and not is_image(root / target[1]))
    if source is not None and is_video != (source[0] == "source_video_path"):
        raise LoomVideoError(
            f"{where}: `{source[0]}` does not go with `{target[0]}`: both must be videos, or both images."
        )

    references = [str(root / reference) for reference in record.get(REFERENCES_KEY, [])]
    row = {
        "where": where,
        "prompt": prompt[1],
        "target": str(root / target[1]),
        "source": None if source is None else str(root / source[1]),
        "references": references,
        "is_video": is_video,
    }
    named = [(target[0], row["target"]), *((REFERENCES_KEY, reference) for reference in references)]
    named += [] if source is None else [(source[0], row["source"])]
    for key, file in named:
        if not os.path.isfile(file):
            raise LoomVideoError(
                f"{where}: `{key}` names {file}, which is {'no file' if os.path.exists(file) else 'not there'}."
            )
    return row


def _one_of(
    record: dict[str, Any], keys: tuple[str, ...], where: str, required: bool = True
) -> tuple[str, str] | None:
    present = [key for key in keys if key in record]
    if len(present) > 1 or (required and not present):
        problem = f"has both `{present[0]}` and `{present[1]}`" if present else "has no prompt or no target"
        raise LoomVideoError(f"{where} {problem}: it needs one of {', '.join(keys)}.")
    return (present[0], record[present[0]]) if present else None


def _add_shape(row: dict[str, Any], sizes: list[tuple[int, int]], max_frames: int, read_all: bool) -> dict[str, Any]:
    """The shape that a record is trained in, or as its `problem`, why not."""
    shape = {"width": 0, "height": 0, "num_frames": 0, "problem": ""}
    # Whatever is wrong with a file, it is that file that is left out.
    try:
        for reference in row["references"]:
            probe_image(reference)
        clips = [row["target"], *([] if row["source"] is None else [row["source"]])]
        if row["is_video"]:
            shapes = [probe_video(clip, max_frames) for clip in clips]
        else:
            shapes = [(*probe_image(clip), 1) for clip in clips]
        width, height = nearest_size(*shapes[0][:2], sizes)
        shape |= {"width": width, "height": height, "num_frames": min(num_frames for _, _, num_frames in shapes)}
        if read_all:
            read_clip(record_of(row | shape), "nothing")
    except Exception as error:
        shape["problem"] = describe_failure(error)
    return shape


@dataclass
class Clip:
    """
    The pixels of a sample, and what the MLLM reads with them.

    Attributes:
        prompt: with the task's prefix; empty if it was dropped.
        target: uint8 `[F, H, W, 3]`.
        source: uint8 `[F, H, W, 3]`, or None.
        references: uint8, each `[H, W, 3]`.
        is_video: whether the source is shown to the MLLM as a video.
    """

    prompt: str
    target: torch.Tensor
    source: torch.Tensor | None
    references: list[torch.Tensor]
    is_video: bool


def read_frames(path: str, record: Record) -> torch.Tensor:
    """Reads a target or a source as uint8 `[F, H, W, 3]`, fitted to the record's size, or raises ValueError."""
    frames = read_video(path, max_frames=record.num_frames) if record.is_video else [read_image(path)]
    return torch.from_numpy(np.stack([_fit(frame, record) for frame in frames]))


def read_clip(record: Record, dropped: Dropped) -> Clip:
    """Reads a record's files, cut to one length and fitted to its size. Raises LoomVideoError if a file is corrupt."""
    target, source, references = read_frames(record.target, record), None, []
    if dropped != "all":
        if record.source is not None:
            source = read_frames(record.source, record)
            # A file may turn out to be shorter than it says.
            num_frames = min(len(target), len(source))
            target, source = target[:num_frames], source[:num_frames]
        references = [torch.from_numpy(_fit(read_image(path), record)) for path in record.references]
    return Clip(record.full_prompt(dropped), target, source, references, record.is_video)


def _fit(image: Any, record: Record) -> np.ndarray:
    image = PIL.Image.fromarray(image) if isinstance(image, np.ndarray) else image
    return np.array(fit(image, record.height, record.width))


@dataclass(frozen=True)
class Draw:
    """Which row of the records comes next, and the seed of all that is random about it."""

    row: int
    seed: int


@dataclass
class Item:
    """
    What a draw led to.

    Attributes:
        content: what was read.
        seed: of the noise and the timestep.
        failures: what could not be read on the way, as (file and place of the record, reason).
    """

    content: Any
    seed: int
    failures: list[tuple[str, str]] = field(default_factory=list)


class TrainingDataset(Dataset):
    """
    Reads what a `Draw` asks for, with `read(record, dropped)`.

    A record that turns out corrupt is replaced by the next one of its shape, so that a batch stays as large as it is.
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
        dropped = "all" if chance < self.drop_all else "text" if chance < self.drop_all + self.drop_text else "nothing"
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


def shapes_of(records: datasets.Dataset) -> list[tuple[int, int, int, int]]:
    columns = (records["num_frames"], records["height"], records["width"], map(len, records["references"]))
    return list(zip(*columns))


class TokenBatchSampler(Sampler[list[Draw]]):
    """
    Yields endless batches, each of records of one shape that have no more than so many tokens together.

    The order depends on the seed alone. Each process takes its turn in it, so that two processes see in one step what
    one process sees with twice the accumulation, and a run can begin at any batch.

    Args:
        shapes: frames, height, width and number of references of each record.
        dataset_of: the number of the dataset that each record belongs to.
        weights: how often to draw from each dataset, by its number, or None to draw all records equally often.
        token_size: frames, and pixels on a side, of what becomes a token.
        tokens_per_batch: the most tokens of a batch of more than one sample.
        seed: of the order and of all samples.
        first_batch: where to begin, counted over all processes.
        num_processes, process_index: which batches are this process's.
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
        # The rows of each dataset, and how many draws an epoch has of it, which need not be a whole number
        self.rows = {number: np.flatnonzero(np.equal(dataset_of, number)) for number in sorted(set(dataset_of))}
        self.draws = {number: len(rows) for number, rows in self.rows.items()}
        if weights is not None:
            total = sum(weights[number] for number in self.rows)
            self.draws = {number: len(shapes) * weights[number] / total for number in self.rows}
        self.seed = seed
        self.first_batch = first_batch
        self.num_processes = num_processes
        self.process_index = process_index

    def epoch(self, number: int) -> list[list[Draw]]:
        """The batches of an epoch: without weights each record comes once, with them as often as they say."""
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
        """A part of a dataset's endless order, in which each of its records comes once before any comes again."""
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
    """How many tokens a video of so many frames, height and width has, with so many references of its size."""
    num_frames, height, width, num_references = shape
    frame_step, side = token_size
    return ((num_frames - 1) // frame_step + 1 + num_references) * (height // side) * (width // side)
