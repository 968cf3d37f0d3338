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
"""Training data: records of prompts and files, checked, and read as clips of pixels."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch

from ..errors import LoomVideoError
from ..media import probe_video, read_video
from ..media.images import is_image, probe_image, read_image
from ..media.records import read_json_records
from ..pipelines.loomvideo_frames import fit, nearest_size
from ..pipelines.loomvideo_mllm import PROMPT_PREFIXES, check_prompt
from .config import DatasetSettings, DataSettings, Dropped


PROMPT_KEYS = ("text", "instruction")
TARGET_KEYS = ("path", "target_video_path", "target_image_path")
SOURCE_KEYS = ("source_video_path", "source_image_path")
REFERENCES_KEY = "reference_image_paths"


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
        """Frames, height, width and number of references: what the records of a batch have in common."""
        return (self.num_frames, self.height, self.width, len(self.references))

    @property
    def files(self) -> list[str]:
        return [self.target, *([] if self.source is None else [self.source]), *self.references]

    def full_prompt(self, dropped: Dropped) -> str:
        """The text that the MLLM reads (architecture: Prompts)."""
        if dropped != "nothing":
            return self.drop_all_prompt if dropped == "all" else ""
        task = f"{'generate' if self.source is None else 'edit'} {'video' if self.is_video else 'image'}"
        return PROMPT_PREFIXES[task, bool(self.references)] + self.prompt


def read_records(settings: DataSettings, strict: bool = False) -> tuple[datasets.Dataset, dict[str, str]]:
    """
    Reads and checks the records of all datasets, and opens each file to see its shape.

    Args:
        settings: where the records are, with `sizes` and `max_frames`.
        strict: whether to read each file to its end, and raise LoomVideoError for the first that is damaged.

    Returns:
        A row for each record whose files can be read, with the attributes of `Record` and the number of its `dataset`;
        and for the others the reason, by the file and place of the record.

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
    # Features are computed from whole files before the training begins.
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
            first = "" if strict else "None of the clips can be read; the first is that of "
            raise LoomVideoError(f"{first}{where}: {problem}")
    readable = [index for index, problem in enumerate(rows["problem"]) if not problem]
    return rows.select(readable).remove_columns("problem"), failures


def describe_failure(error: Exception) -> str:
    """Why a clip cannot be read, in one line; errors of libraries are named by their type."""
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def record_of(row: dict[str, Any]) -> Record:
    return Record(**{name: row[name] for name in Record.__dataclass_fields__})


def shapes_of(records: datasets.Dataset) -> list[tuple[int, int, int, int]]:
    """The `Record.shape` of each row."""
    columns = (records["num_frames"], records["height"], records["width"], map(len, records["references"]))
    return list(zip(*columns))


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
    # Tables exported by other libraries have a null in each empty cell.
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
    prompt, target = _one_of(record, PROMPT_KEYS, where), _one_of(record, TARGET_KEYS, where)
    source = _one_of(record, SOURCE_KEYS, where, required=False)
    assert prompt is not None
    assert target is not None
    check_prompt(prompt[1], f"{where}: `{prompt[0]}`")
    is_video = target[0] == "target_video_path" or (target[0] == "path" and not is_image(root / target[1]))
    if source is not None and is_video != (source[0] == "source_video_path"):
        raise LoomVideoError(
            f"{where}: `{source[0]}` does not go with `{target[0]}`: both must be videos, or both images."
        )

    references = [str(root / reference) for reference in record.get(REFERENCES_KEY, [])]
    files = [(key, str(root / name)) for key, name in ([target] if source is None else [target, source])]
    row = {
        "where": where,
        "prompt": prompt[1],
        "target": files[0][1],
        "source": None if source is None else files[1][1],
        "references": references,
        "is_video": is_video,
    }
    for key, file in [*files, *((REFERENCES_KEY, reference) for reference in references)]:
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
    """The shape that a record is trained in, or its `problem`."""
    shape = {"width": 0, "height": 0, "num_frames": 0, "problem": ""}
    # Whatever the error, it is this record that is left out.
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
    The pixels and the prompt of a sample.

    Attributes:
        prompt: with the task's prefix; without any if it was dropped.
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
    """Reads a target or a source as uint8 `[F, H, W, 3]`, fitted to the record's size, or raises LoomVideoError."""
    frames = read_video(path, max_frames=record.num_frames) if record.is_video else [read_image(path)]
    return torch.from_numpy(np.stack([_fit(frame, record) for frame in frames]))


def read_clip(record: Record, dropped: Dropped) -> Clip:
    """Reads a record's files, cut to one length and fitted to its size; raises LoomVideoError if one is damaged."""
    target, source, references = read_frames(record.target, record), None, []
    if dropped != "all":
        if record.source is not None:
            source = read_frames(record.source, record)
            # A file may be shorter than its header says.
            num_frames = min(len(target), len(source))
            target, source = target[:num_frames], source[:num_frames]
        references = [torch.from_numpy(_fit(read_image(path), record)) for path in record.references]
    return Clip(record.full_prompt(dropped), target, source, references, record.is_video)


def _fit(image: Any, record: Record) -> np.ndarray:
    image = PIL.Image.fromarray(image) if isinstance(image, np.ndarray) else image
    return np.array(fit(image, record.height, record.width))
