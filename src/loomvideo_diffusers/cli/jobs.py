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
"""What `loomvideo edit` and `loomvideo generate` do with a list of jobs."""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LoomVideoError
from ..fleet.addresses import Address, redact, to_location
from ..loading import load_pipeline
from ..progress import message
from .common import gigabytes, loading_options, positive, print_report, silence_libraries


if TYPE_CHECKING:
    from ..fleet.jobs import Job
    from ..fleet.work import Plan

# Where and how jobs are run, which results do not depend on
OF_THE_RUN = ("jobs", "ray", "cpus", "workers", "attempts", "disk", "report", "verify")
OF_THE_MACHINE = ("device", "max_memory", "memory", "offload", "watch", "parallel")


def add_job_options(command: argparse.ArgumentParser, columns: str) -> None:
    option = command.add_argument_group("many jobs").add_argument
    option("--jobs", type=to_location, metavar="FILE", help=f"run a list: JSON lines, CSV or Parquet with {columns}")
    option("--report", type=to_location, metavar="FILE", help="what became of each job (default: JOBS.report.jsonl)")
    option("--verify", action="store_true", help="compare the outputs of jobs that are done with their hashes")
    option(
        "--disk",
        type=gigabytes,
        metavar="GB",
        help="local disk for files on their way (default: half of what is free)",
    )
    option(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="run them on a Ray cluster, or without an address on all GPUs of this machine",
    )
    option("--cpus", type=positive, metavar="N", help="with --ray: CPUs a worker, which then uses no GPU")
    option("--workers", type=positive, metavar="N", help="with --ray: how many to ask for (default: as many as fit)")
    option("--attempts", type=positive, metavar="N", help="with --ray: how often a job is tried (default: 3)")


def check_no_job_options(arguments: argparse.Namespace) -> None:
    """Refuses options of lists where there is no list."""
    given = [name for name in OF_THE_RUN if getattr(arguments, name)]
    if given:
        raise LoomVideoError(f"--{given[0]} is for lists: give one with --jobs, or leave it out.")


def given_by(job: "Job") -> dict[str, Any]:
    """What a result of a job says about its command: files by where they are, and nothing about the run."""
    return dict.fromkeys(OF_THE_RUN) | {name: value for name, value in job.described().items() if name != "seed"}


def run_job_file(
    arguments: argparse.Namespace,
    kind: "type[Job]",
    pipeline_class: type,
    plan: "Plan",
) -> int:
    """Runs the jobs of a file. Returns the exit status: 2 if one failed, 1 if by a mistake in the code."""
    from ..fleet.cluster import run_jobs_on_ray
    from ..fleet.jobs import read_jobs
    from ..fleet.report import open_report
    from ..fleet.run import run_jobs

    for name in ("watch", "parallel"):
        if getattr(arguments, name) is not None:
            raise LoomVideoError(f"--{name} is for one run: leave it out with --jobs.")
    all_jobs = read_jobs(arguments.jobs, kind)
    report_path = arguments.report or report_beside(arguments.jobs)
    with open_report(report_path, recipe_of(arguments)) as report:
        jobs = report.select(all_jobs, arguments.verify)
        if len(jobs) < len(all_jobs):
            message(
                f"loomvideo: {len(all_jobs) - len(jobs)} of {len(all_jobs)} jobs are done: see {redact(report_path)}."
            )
        silence_libraries()
        load = partial(load_pipeline, pipeline_class, **loading_options(arguments))
        if not jobs:
            return 0
        if arguments.ray is None:
            results = run_jobs(jobs, load(), plan, disk=arguments.disk)
        else:
            names = ("cpus", "workers", "attempts", "disk")
            given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
            results = run_jobs_on_ray(jobs, load, plan, address=arguments.ray, **given)
        num_failed, has_mistake = 0, False
        for result in results:
            report.add(result)
            if result.report is None:
                num_failed += 1
                has_mistake |= result.fault == "code"
            else:
                print_report(result.report.files, result.seconds)
    if num_failed:
        message(f"loomvideo: error: {num_failed} of {len(jobs)} jobs failed: the others are done.")
    return 1 if has_mistake else 2 if num_failed else 0


def report_beside(jobs: Path | Address) -> Path:
    """Where the report of a list is by default: beside it, or of one at an address in the current folder."""
    name = f"{Path(jobs.name).stem}.report.jsonl"
    return Path(name) if isinstance(jobs, Address) else jobs.with_name(name)


def recipe_of(arguments: argparse.Namespace) -> str:
    """What the results depend on besides the jobs."""
    left_out = ("function", *OF_THE_RUN, *OF_THE_MACHINE)
    values = {name: value for name, value in vars(arguments).items() if name not in left_out}
    return json.dumps(values, sort_keys=True, default=str)
