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

import torch.distributed
from pydantic import BaseModel, ConfigDict, Field, ValidationError


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

    input: Path
    prompt: str = Field(min_length=1)
    output: Path
    reference: list[Path] = []
    seed: int | None = Field(default=None, ge=0, lt=2**63)


def read_jobs(path: Path) -> list[Job]:
    """
    Reads all jobs of a file.

    Raises:
        ValueError: naming the line, if one is no job, or two have the same output.
    """
    jobs, outputs = [], {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            job = Job.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"{path}, line {number}: {where + ': ' if where else ''}{first['msg']}.") from error
        job.input, job.output = path.parent / job.input, path.parent / job.output
        job.reference = [path.parent / reference for reference in job.reference]
        if job.output in outputs:
            raise ValueError(f"{path}, line {number}: line {outputs[job.output]} writes {job.output} too.")
        outputs[job.output] = number
        jobs.append(job)
    if not jobs:
        raise ValueError(f"{path} has no jobs: write one a line, such as {EXAMPLE}.")
    return jobs


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
