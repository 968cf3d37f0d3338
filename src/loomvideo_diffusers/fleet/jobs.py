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
"""Many edits from one file: each line of it is a job, and processes that start together divide them."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import torch.distributed
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ..errors import LoomVideoError
from ..media.decoding import is_sequence, sequence_files
from ..media.encoding import check_footage_path
from ..media.records import read_json_records
from ..media.video import IMAGE_SUFFIXES, check_output_path, is_image
from ..pipelines.loomvideo_mllm import check_prompt


def _check_words(words: str) -> str:
    check_prompt(words, "it")
    return words


def _check_name(path: Path) -> Path:
    if not path.name or "\0" in str(path):
        raise LoomVideoError("it must be the name of a file")
    return path


FileName = Annotated[Path, AfterValidator(_check_name)]


class Job(BaseModel):
    """
    An edit.

    Attributes:
        input: the video or image; paths begin at the folder of the file of jobs.
        prompt: the instruction.
        output: the file to write.
        reference: images that the prompt calls `@Image 1`, ...
        seed: makes the result repeatable; by default that of the command.
    """

    model_config = ConfigDict(extra="forbid")

    input: FileName
    prompt: Annotated[str, AfterValidator(_check_words)]
    output: FileName
    reference: list[FileName] = []
    seed: int | None = Field(default=None, ge=0, lt=2**63, strict=True)


def read_jobs(path: Path) -> list[Job]:
    """
    Reads all jobs of a file.

    Raises:
        LoomVideoError: naming the line, if one is no job, or reads what is not there,
            or writes what cannot be written, or what another one reads or writes.
    """
    jobs, written, read = [], {}, {}
    for where, record in read_json_records(path):
        try:
            job = Job.model_validate(record)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            message = first["msg"].removeprefix("Value error, ").removesuffix(".")
            raise LoomVideoError(f"{where}: {key + ': ' if key else ''}{message}.") from error
        job.input, job.output = path.parent / job.input, path.parent / job.output
        job.reference = [path.parent / reference for reference in job.reference]
        try:
            _check_files(job)
        except ValueError as error:
            raise LoomVideoError(f"{where}: {error}") from error
        output = identity(job.output)
        if output in written:
            raise LoomVideoError(f"{where}: {written[output]} writes {job.output} too: choose another output.")
        written[output] = where
        read |= {identity(file): (where, file) for file in (job.input, *job.reference)}
        jobs.append(job)
    for output, where in written.items():
        if output in read:
            reader, file = read[output]
            raise LoomVideoError(f"{where} writes {file}, which {reader} reads: choose another output.")
    if not jobs:
        raise LoomVideoError(f"{path} has no jobs: write one a line, such as {EXAMPLE}.")
    return jobs


def _check_files(job: Job) -> None:
    """Raises a LoomVideoError if a job could not begin."""
    for file in (job.input, *job.reference):
        if file == job.input and is_sequence(file):
            sequence_files(file)
        elif not file.is_file():
            raise LoomVideoError(f"{file} is not there.")
    if not is_sequence(job.input) and is_image(job.input):
        check_output_path(job.output, IMAGE_SUFFIXES, f"{job.input} is an image: ")
    else:
        check_footage_path(job.output, f"{job.input} is no image: ")


def identity(path: Path) -> tuple[int, int] | str:
    """What two paths have in common if they are those of one file, by whatever names, there or still to be made."""
    try:
        status = path.stat()
    except OSError:
        return os.path.normcase(path.resolve())
    return status.st_dev, status.st_ino


EXAMPLE = '{"input": "a.mp4", "prompt": "make it night", "output": "b.mp4"}'


def share_of_process(jobs: list[Job]) -> list[Job]:
    """Those that this process is to do: all, or if `accelerate launch` started several, each so many-th."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    return jobs[rank::world_size]


def wait_for_other_processes() -> None:
    """Returns when all processes are here: what started them ends them all when one ends with an error."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=30))
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
