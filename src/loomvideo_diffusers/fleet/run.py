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
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..errors import LoomVideoError, one_line
from ..footage.plan import EditPlan, Report, plan_edit
from ..footage.resume import choose_seed
from ..progress import message, progress_bar
from .addresses import Address, deliver, fetch, redact
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
    """Plans the edit of a job whose files are here, with options of `plan_edit`, such as `num_inference_steps`."""
    seed = options.pop("seed", None) if job.seed is None else job.seed
    assert not isinstance(job.output, Address)
    options["seed"] = choose_seed(job.output) if seed is None else seed
    return plan_edit(job.input, job.prompt, job.output, references=job.reference, **options)


@contextmanager
def at_hand(job: Job) -> Iterator[Job]:
    """
    Yields a job with its files on this machine: those at addresses are fetched, and at the end the output delivered.

    Raises:
        LoomVideoError: if a file is not there, or something is wrong with it, which is called by its address.
        OSError: if an address cannot be reached now.
    """
    named = {"input": job.input, "output": job.output}
    named |= {f"reference-{number}": reference for number, reference in enumerate(job.reference)}
    distant = {name: address for name, address in named.items() if isinstance(address, Address)}
    if not distant:
        yield job
        return
    with TemporaryDirectory(prefix="loomvideo-") as folder:
        # Each has a folder of its own, since they may have the same name.
        paths = {name: Path(folder) / name / address.name for name, address in distant.items()}
        for name, address in distant.items():
            if name != "output":
                fetch(address, paths[name].parent)
        local = named | paths
        references = [local[f"reference-{number}"] for number in range(len(job.reference))]
        try:
            yield job.with_files(local["input"], local["output"], references)
        except LoomVideoError as error:
            sentence = str(error)
            for name, path in paths.items():
                sentence = sentence.replace(str(path), redact(distant[name]))
            raise LoomVideoError(sentence) from error
        if "output" in distant:
            deliver(paths["output"], distant["output"])


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
            with at_hand(job) as local:
                planned = plan(local)
                for note in planned.notes:
                    message(f"loomvideo: {note}")
                words = planned.settings.negative_prompt
                if words not in negative_prompts:
                    with torch.no_grad():
                        negative_prompts = {words: pipe.encode_negative_prompt(words)[0]}
                report = planned.run(pipe, negative_prompts[words])
            # What was delivered is called by its address.
            shown = redact(job.output) if isinstance(job.output, Address) else job.output
            files = {shown if path == local.output else path: words for path, words in report.files.items()}
            result = JobResult(job, replace(report, files=files))
        except Exception as error:
            result = JobResult(job, error=error)
            said = one_line(error)
            if said is None:
                traceback.print_exc(file=sys.stderr)
                said = f"{type(error).__name__}, which is a mistake in the code: see the traceback above."
            message(f"loomvideo: job {number} of {len(jobs)}, {redact(job.output)}: {said}")
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
