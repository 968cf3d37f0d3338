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
"""Runs jobs on this machine, one after the other; processes that start together divide them."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..errors import one_line
from ..footage.plan import EditPlan, Report, plan_edit
from ..footage.resume import choose_seed
from ..progress import message, progress_bar
from .jobs import Job


if TYPE_CHECKING:
    from ..pipelines import LoomVideoEditPipeline


@dataclass(frozen=True)
class JobResult:
    """
    What became of a job.

    Attributes:
        job: the job.
        report: what it wrote, or None if it failed.
        error: why it failed, or None.
        is_mistake: whether the error is a mistake in the code, and not one that the user can fix.
    """

    job: Job
    report: Report | None = None
    error: Exception | None = None

    @property
    def is_mistake(self) -> bool:
        return self.error is not None and one_line(self.error) is None


def plan_job(job: Job, **options: Any) -> EditPlan:
    """Plans the edit of a job; the options are those of `plan_edit`, such as `num_inference_steps`."""
    seed = options.pop("seed", None) if job.seed is None else job.seed
    options["seed"] = choose_seed(job.output) if seed is None else seed
    return plan_edit(job.input, job.prompt, job.output, references=job.reference, **options)


def run_jobs(
    jobs: Sequence[Job], pipe: "LoomVideoEditPipeline", plan: Callable[[Job], EditPlan] = plan_job
) -> Iterator[JobResult]:
    """
    Plans and runs each job in turn. One that fails is reported on stderr and stops no other.

    Args:
        jobs: what `read_jobs` returned, or a part of it.
        pipe: the editing pipeline.
        plan: plans a job, such as `functools.partial(plan_job, num_inference_steps=20)`.

    Yields:
        The result of each job as soon as it is done. The next one starts when the next result is asked for.
    """
    import torch

    negative_prompts: dict[str | None, torch.Tensor | None] = {}
    for number, job in enumerate(progress_bar(jobs, desc="Jobs"), start=1):
        try:
            planned = plan(job)
            for note in planned.notes:
                message(f"loomvideo: {note}")
            words = planned.settings.negative_prompt
            if words not in negative_prompts:
                with torch.no_grad():
                    negative_prompts = {words: pipe.encode_negative_prompt(words)[0]}
            result = JobResult(job, planned.run(pipe, negative_prompts[words]))
        except Exception as error:
            result = JobResult(job, error=error)
            said = one_line(error)
            if said is None:
                traceback.print_exc(file=sys.stderr)
                said = f"{type(error).__name__}, which is a mistake in the code: see the traceback above."
            message(f"loomvideo: job {number} of {len(jobs)}, {job.output}: {said}")
        yield result


def share_of_process(jobs: Sequence[Job]) -> Sequence[Job]:
    """All jobs, or if `accelerate launch` started several processes, those of this one."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    return jobs[rank::world_size]


def wait_for_other_processes() -> None:
    """Waits until all processes are done: when one ends with an error, its launcher ends the others."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        import torch.distributed

        torch.distributed.init_process_group("gloo", timeout=timedelta(days=30))
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
