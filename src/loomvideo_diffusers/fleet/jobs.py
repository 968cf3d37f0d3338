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
"""A list of edits or generations in a file: each line is a job."""

import csv
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, PlainValidator, ValidationError
from pydantic.dataclasses import dataclass

from ..errors import LoomVideoError
from ..footage.generation import GenerationPlan, plan_generation
from ..footage.masks import Box
from ..footage.plan import EditPlan, identity, plan_edit
from ..media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, check_output_path, is_image
from ..media.encoding import FOOTAGE_SUFFIXES, check_footage_path
from ..media.records import read_json_records
from ..media.sequences import has_frame_number, is_sequence, sequence_files
from ..pipelines.loomvideo_mllm import check_prompt
from .addresses import Address, check_address, fetch, redact, to_location


Location = Path | Address

OF_CLIPS = ("num_frames", "audio", "max_crop", "keep_unchanged", "lossless")


def _check_words(words: str) -> str:
    check_prompt(words, "it")
    return words


def _to_location(value: object) -> Location:
    if not isinstance(value, (str, Path)):
        raise LoomVideoError("Input should be a valid string")
    location = to_location(value)
    if not location.name or "\0" in str(location):
        raise LoomVideoError("it must be the name of a file")
    return location


Words = Annotated[str, AfterValidator(_check_words)]
FileLocation = Annotated[Location, PlainValidator(_to_location)]
CONFIG = ConfigDict(extra="forbid")


# Lists may be long: with slots, a job takes half a kilobyte.
@dataclass(config=CONFIG, slots=True, kw_only=True)
class Job:
    """
    What jobs of both kinds say.

    Attributes:
        prompt: what to show, or the instruction.
        output: the file to write: a path, relative to the folder of the job file, or an address that fsspec writes.
        reference: images that the prompt calls `@Image 1`, `@Image 2`, ...
        seed: seed of the noise; by default that of the command, or else one of the job's own, always the same.
        sha256: hash of the output, in hexadecimal digits: if it is there with this hash, the job is done.
    """

    example: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    prompt: Words
    output: FileLocation
    reference: list[FileLocation] = Field(default_factory=list)
    seed: int | None = Field(default=None, ge=0, lt=2**63, strict=True)
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")

    @property
    def inputs(self) -> list[Location]:
        """The files that it reads."""
        return self.reference

    def described(self) -> dict[str, Any]:
        """What the command that makes the result again is given: files by where they are, without secrets."""
        names = [name for name in self.__dataclass_fields__ if name != "sha256"]
        return {name: _shown(getattr(self, name)) for name in names}

    def choose_seed(self, default: int | None) -> int:
        """Its seed, or the default, or a number that looks random and follows from where it writes what."""
        if self.seed is not None:
            return self.seed
        if default is not None:
            return default
        return int(hashlib.sha256(f"{redact(self.output)}\n{self.prompt}".encode()).hexdigest()[:8], 16)

    def check_files(self) -> None:
        """Raises a LoomVideoError if a file is not there, or the output cannot be written."""
        for file in (self.output, *self.inputs):
            if isinstance(file, Address):
                check_address(file, is_written=file is self.output)
                if has_frame_number(file.name):
                    raise LoomVideoError(f"{redact(file)} is an image sequence: keep it on a disk of this machine.")
        for file in self.inputs:
            if isinstance(file, Path) and not is_sequence(file) and not file.is_file():
                raise LoomVideoError(f"{file} is not there.")
        if isinstance(self.output, Address) and self.output.suffix.lower() not in self.suffixes:
            raise LoomVideoError(f"{redact(self.output)} must end in {' or '.join(self.suffixes)}.")

    def plan(self, files: Mapping[Location, Path], **options: Any) -> EditPlan | GenerationPlan:
        """
        Plans it.

        Args:
            files: where those of its files that are at addresses are on this machine.
            **options: of `plan_edit` or `plan_generation`.
        """
        raise NotImplementedError


@dataclass(config=CONFIG, slots=True, kw_only=True)
class EditJob(Job):
    """
    An edit: see `Job`.

    Attributes:
        input: the video or image: a path, or an address that fsspec reads.
        mask: an image or video of what may change.
        box: what may change, as `X,Y,W,H`, or several as `X,Y,W,H@SECONDS`.
        mask_invert: whether what is outside of the mask or the box may change instead; by default as the command says.
    """

    example: ClassVar[str] = '{"input": "a.mp4", "prompt": "make it night", "output": "b.mp4"}'
    suffixes: ClassVar[tuple[str, ...]] = (*FOOTAGE_SUFFIXES, *IMAGE_SUFFIXES)

    input: FileLocation
    mask: FileLocation | None = None
    box: list[str] = Field(default_factory=list)
    mask_invert: bool | None = None

    @property
    def inputs(self) -> list[Location]:
        masks = [] if self.mask is None else [self.mask]
        return [self.input, *self.reference, *masks]

    def check_files(self) -> None:
        Job.check_files(self)
        for box in self.box:
            Box.parse(box)
        if isinstance(self.input, Path) and is_sequence(self.input):
            sequence_files(self.input)
        if isinstance(self.input, Address):
            # What it is, a clip or an image, is seen when it is fetched.
            if isinstance(self.output, Path):
                check_output_path(self.output, self.suffixes)
        elif isinstance(self.output, Path):
            if not is_sequence(self.input) and is_image(self.input):
                check_output_path(self.output, IMAGE_SUFFIXES, f"{self.input} is an image: ")
            else:
                check_footage_path(self.output, f"{self.input} is no image: ")

    def plan(self, files: Mapping[Location, Path], **options: Any) -> EditPlan:
        references = [files.get(reference, reference) for reference in self.reference]
        source, output = Path(files.get(self.input, self.input)), files.get(self.output, self.output)
        if self.mask is not None or self.box:
            mask = None if self.mask is None else files.get(self.mask, self.mask)
            options |= {"mask": mask, "boxes": self.box}
        if self.mask_invert is not None:
            options["mask_invert"] = self.mask_invert
        # A list may be of several kinds, and what is said of one does not concern the others.
        if not is_sequence(source):
            options.pop("rate", None)
            if is_image(source):
                options = {name: value for name, value in options.items() if name not in OF_CLIPS}
        return plan_edit(source, self.prompt, output, references=references, **options)


@dataclass(config=CONFIG, slots=True, kw_only=True)
class GenerationJob(Job):
    """A generation: see `Job`."""

    example: ClassVar[str] = '{"prompt": "a cat in the snow", "output": "cat.mp4"}'
    suffixes: ClassVar[tuple[str, ...]] = (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)

    def check_files(self) -> None:
        Job.check_files(self)
        if isinstance(self.output, Path):
            check_output_path(self.output, self.suffixes)

    def plan(self, files: Mapping[Location, Path], **options: Any) -> GenerationPlan:
        references = [files.get(reference, reference) for reference in self.reference]
        return plan_generation(self.prompt, files.get(self.output, self.output), references=references, **options)


JobKind = TypeVar("JobKind", bound=Job)


def _shown(value: Any) -> Any:
    if isinstance(value, list):
        return [_shown(one) for one in value]
    return redact(value) if isinstance(value, Address) else value


def read_jobs(path: str | os.PathLike, kind: type[JobKind] = EditJob) -> list[JobKind]:  # type: ignore[assignment]
    """
    Reads a file with a job on each line, a `.json` with a list of them, a `.csv` or a `.parquet`.

    In a `.csv`, the first line names the columns; several references or boxes are a JSON list.

    Args:
        path: the file, or its address.
        kind: `EditJob` or `GenerationJob`.

    Raises:
        LoomVideoError: naming the line, if one is not a job, reads a file that does not exist, writes one that cannot
            be written, or writes one that another job reads or writes. Files at addresses are looked for later.
        OSError: if the file is at an address and cannot be read now.
    """
    path = to_location(path)
    jobs: list[JobKind] = []
    written: dict[Any, str] = {}
    read: dict[Any, str] = {}
    for where, record in _read_records(path):
        try:
            job = to_job(record, kind)
            job.output = _beside(path, job.output)
            job.reference = [_beside(path, reference) for reference in job.reference]
            if isinstance(job, EditJob):
                job.input = _beside(path, job.input)
                job.mask = None if job.mask is None else _beside(path, job.mask)
            job.check_files()
        except LoomVideoError as error:
            raise LoomVideoError(f"{where}: {error}") from error
        output = _identity(job.output)
        if output in written:
            shown = redact(job.output)
            raise LoomVideoError(f"{where}: {written[output]} writes {shown} too: choose another output.")
        written[output] = where
        for file in job.inputs:
            read[_identity(file)] = where
        jobs.append(job)
    for job in jobs:
        output = _identity(job.output)
        if output in read:
            shown = redact(job.output)
            raise LoomVideoError(
                f"{written[output]} writes {shown}, which {read[output]} reads: choose another output."
            )
    if not jobs:
        raise LoomVideoError(f"{redact(path)} has no jobs: write one a line, such as {kind.example}.")
    return jobs


def to_job(record: Any, kind: type[JobKind]) -> JobKind:
    """
    Makes a job of names and values.

    Raises:
        LoomVideoError: if one is missing, unknown or wrong.
    """
    if not isinstance(record, dict):
        raise LoomVideoError("a job is an object with names and values.")
    try:
        return kind(**record)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ").removesuffix(".")
        if first["type"] == "unexpected_keyword_argument":
            message = "a job has nothing of that name"
        raise LoomVideoError(f"{key}: {redact(message)}.") from error


def _read_records(path: Location) -> Iterator[tuple[str, Any]]:
    """Yields where each record of a file stands, such as `jobs.csv:3`, and the record."""
    if isinstance(path, Address):
        with TemporaryDirectory() as folder:
            yield from _read_records(fetch(path, Path(folder)))
        return
    suffix = path.suffix.lower()
    if suffix == ".csv":
        yield from _read_csv(path)
    elif suffix == ".parquet":
        yield from _read_parquet(path)
    else:
        yield from read_json_records(path)


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if None in row or None in row.values():
                    raise LoomVideoError(f"{where} has not as many columns as the first line.")
                record: dict[str, Any] = {name: value for name, value in row.items() if value != ""}
                if record.get("seed", "").isdecimal():
                    record["seed"] = int(record["seed"])
                for name in record.keys() & {"reference", "box"}:
                    record[name] = _read_list(name, record[name], where)
                yield where, record
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LoomVideoError(f"{path} cannot be read as CSV in UTF-8 ({error}): save it as that.") from error


def _read_list(name: str, text: str, where: str) -> Any:
    """Several texts, as a JSON list, or one."""
    if not text.lstrip().startswith("["):
        return [text]
    try:
        return json.loads(text)
    except ValueError as error:
        raise LoomVideoError(f"{where}: {name} is not JSON, although it begins like a list.") from error


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise LoomVideoError(f"{path} needs PyArrow: pip install pyarrow.") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(10_000):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", {name: value for name, value in record.items() if value is not None}
    except (OSError, pyarrow.ArrowException) as error:
        raise LoomVideoError(f"{path} cannot be read as Parquet ({error}): is it complete?") from error


def _beside(jobs: Location, location: Location) -> Location:
    """What a path in a job file means, which is relative to the folder of that file."""
    if isinstance(location, Address):
        return location
    if isinstance(jobs, Address) and not location.is_absolute():
        return Address(f"{jobs.rpartition('/')[0]}/{location.as_posix()}")
    return location if isinstance(jobs, Address) else jobs.parent / location


def _identity(location: Location) -> tuple[int, int] | str:
    return redact(location) if isinstance(location, Address) else identity(location)
