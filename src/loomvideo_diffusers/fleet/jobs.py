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
"""A list of edits in a file: each line is a job."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, PrivateAttr, ValidationError

from ..errors import LoomVideoError
from ..footage.plan import identity
from ..media import IMAGE_SUFFIXES, check_output_path, is_image
from ..media.encoding import FOOTAGE_SUFFIXES, check_footage_path
from ..media.records import read_json_records
from ..media.sequences import has_frame_number, is_sequence, sequence_files
from ..pipelines.loomvideo_mllm import check_prompt
from .addresses import Address, fetch, redact, to_location


EXAMPLE = '{"input": "a.mp4", "prompt": "make it night", "output": "b.mp4"}'


def _check_words(words: str) -> str:
    check_prompt(words, "it")
    return words


def _to_location(value: object) -> Path | Address:
    if not isinstance(value, (str, Path)):
        raise LoomVideoError("Input should be a valid string")
    location = to_location(value) if isinstance(value, str) else value
    if not location.name or "\0" in str(location):
        raise LoomVideoError("it must be the name of a file")
    return location


Location = Annotated[Path | Address, PlainValidator(_to_location)]


class Job(BaseModel):
    """
    An edit.

    Attributes:
        input: the video or image: a path, relative to the folder of the job file, or an address that fsspec reads.
        prompt: the instruction.
        output: the file to write, a path or an address.
        reference: images that the prompt calls `@Image 1`, `@Image 2`, ...
        seed: seed of the noise; by default that of the command, or else a random one.
    """

    model_config = ConfigDict(extra="forbid")

    input: Location
    prompt: Annotated[str, AfterValidator(_check_words)]
    output: Location
    reference: list[Location] = []
    seed: int | None = Field(default=None, ge=0, lt=2**63, strict=True)
    _stated: "Job | None" = PrivateAttr(None)

    def with_files(self, input: Location, output: Location, reference: list[Location]) -> "Job":
        """The same job with files on this machine in the place of those that were stated."""
        job = self.model_copy(update={"input": input, "output": output, "reference": reference})
        job._stated = self
        return job

    def described(self) -> dict[str, Any]:
        """What the command that makes the result again is given: files by where they are, without secrets."""
        values = (self._stated or self).model_dump()
        return {name: _shown(value) for name, value in values.items()}


def _shown(value: Any) -> Any:
    if isinstance(value, list):
        return [_shown(one) for one in value]
    return redact(value) if isinstance(value, Address) else value


def read_jobs(path: Path | Address) -> list[Job]:
    """
    Reads a file with a job on each line, a `.json` with a list of them, a `.csv` or a `.parquet`.

    In a `.csv`, the first line names the columns, and several references are a JSON list.

    Raises:
        LoomVideoError: naming the line, if one is not a job, reads a file that does not exist, writes one that cannot
            be written, or writes one that another job reads or writes. Files at addresses are looked for later.
        OSError: if the file is at an address and cannot be read now.
    """
    jobs, written, read = [], {}, {}
    for where, record in _read_records(path):
        try:
            job = Job.model_validate(record)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            message = first["msg"].removeprefix("Value error, ").removesuffix(".")
            raise LoomVideoError(f"{where}: {key + ': ' if key else ''}{redact(message)}.") from error
        job.input, job.output = _beside(path, job.input), _beside(path, job.output)
        job.reference = [_beside(path, reference) for reference in job.reference]
        try:
            _check_files(job)
        except LoomVideoError as error:
            raise LoomVideoError(f"{where}: {error}") from error
        output = _identity(job.output)
        if output in written:
            shown = redact(job.output)
            raise LoomVideoError(f"{where}: {written[output]} writes {shown} too: choose another output.")
        written[output] = where
        read |= {_identity(file): (where, file) for file in (job.input, *job.reference)}
        jobs.append(job)
    for output, where in written.items():
        if output in read:
            reader, file = read[output]
            raise LoomVideoError(f"{where} writes {redact(file)}, which {reader} reads: choose another output.")
    if not jobs:
        raise LoomVideoError(f"{redact(path)} has no jobs: write one a line, such as {EXAMPLE}.")
    return jobs


def _read_records(path: Path | Address) -> Iterator[tuple[str, Any]]:
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
                if "reference" in record:
                    record["reference"] = _read_list(record["reference"], where)
                yield where, record
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LoomVideoError(f"{path} cannot be read as CSV in UTF-8 ({error}): save it as that.") from error


def _read_list(text: str, where: str) -> Any:
    """Several texts, as a JSON list, or one."""
    if not text.lstrip().startswith("["):
        return [text]
    try:
        return json.loads(text)
    except ValueError as error:
        raise LoomVideoError(f"{where}: reference is not JSON, although it begins like a list.") from error


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


def _beside(jobs: Path | Address, location: Path | Address) -> Path | Address:
    """What a path in a job file means, which is relative to the folder of that file."""
    if isinstance(location, Address):
        return location
    if isinstance(jobs, Address) and not location.is_absolute():
        return Address(f"{jobs.rpartition('/')[0]}/{location.as_posix()}")
    return location if isinstance(jobs, Address) else jobs.parent / location


def _identity(location: Path | Address) -> tuple[int, int] | str:
    return redact(location) if isinstance(location, Address) else identity(location)


def _check_files(job: Job) -> None:
    """Raises a LoomVideoError if a file of a job is not there, or its output cannot be written."""
    for file in (job.input, job.output, *job.reference):
        if isinstance(file, Address) and has_frame_number(file.name):
            raise LoomVideoError(f"{redact(file)} is an image sequence: keep it on a disk of this machine.")
    for file in (job.input, *job.reference):
        if isinstance(file, Address):
            continue
        if file == job.input and is_sequence(file):
            sequence_files(file)
        elif not file.is_file():
            raise LoomVideoError(f"{file} is not there.")
    if isinstance(job.input, Address) or isinstance(job.output, Address):
        # What an input is, a clip or an image, is seen when it is fetched.
        suffixes = (*FOOTAGE_SUFFIXES, *IMAGE_SUFFIXES)
        if job.output.suffix.lower() not in suffixes:
            raise LoomVideoError(f"{redact(job.output)} must end in {' or '.join(suffixes)}.")
    elif not is_sequence(job.input) and is_image(job.input):
        check_output_path(job.output, IMAGE_SUFFIXES, f"{job.input} is an image: ")
    else:
        check_footage_path(job.output, f"{job.input} is no image: ")
