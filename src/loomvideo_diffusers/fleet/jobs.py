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

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ..errors import LoomVideoError
from ..footage.plan import identity
from ..media import IMAGE_SUFFIXES, check_output_path, is_image
from ..media.encoding import check_footage_path
from ..media.records import read_json_records
from ..media.sequences import is_sequence, sequence_files
from ..pipelines.loomvideo_mllm import check_prompt


EXAMPLE = '{"input": "a.mp4", "prompt": "make it night", "output": "b.mp4"}'


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
        input: the video or image. Paths are relative to the folder of the job file.
        prompt: the instruction.
        output: the file to write.
        reference: images that the prompt calls `@Image 1`, `@Image 2`, ...
        seed: seed of the noise; by default that of the command, or else a random one.
    """

    model_config = ConfigDict(extra="forbid")

    input: FileName
    prompt: Annotated[str, AfterValidator(_check_words)]
    output: FileName
    reference: list[FileName] = []
    seed: int | None = Field(default=None, ge=0, lt=2**63, strict=True)


def read_jobs(path: Path) -> list[Job]:
    """
    Reads a file with a job on each line, or a `.json` with a list of them.

    Raises:
        LoomVideoError: naming the line, if one is not a job, reads a file that does not exist, writes one that cannot
            be written, or writes one that another job reads or writes.
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
        except LoomVideoError as error:
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
    """Raises a LoomVideoError if a file of a job does not exist, or its output cannot be written."""
    for file in (job.input, *job.reference):
        if file == job.input and is_sequence(file):
            sequence_files(file)
        elif not file.is_file():
            raise LoomVideoError(f"{file} is not there.")
    if not is_sequence(job.input) and is_image(job.input):
        check_output_path(job.output, IMAGE_SUFFIXES, f"{job.input} is an image: ")
    else:
        check_footage_path(job.output, f"{job.input} is no image: ")
