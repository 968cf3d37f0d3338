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
"""`loomvideo edit`."""

import argparse
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..descriptions import options_of
from ..errors import LoomVideoError
from ..fleet.addresses import to_location
from ..loading import load_pipeline
from ..progress import Stopwatch, message
from .common import (
    add_command,
    add_sampling_options,
    describe,
    finite,
    loading_options,
    print_report,
    rate,
    settings_of,
    silence_libraries,
)


if TYPE_CHECKING:
    from ..fleet.jobs import Job
    from ..footage import EditPlan

# Options that a job file replaces
RESULTS = ("output", "contact_sheet", "preview", "compare")


def add_parser(commands: Any) -> None:
    command = add_command(commands, "edit", "Edit a video or an image by instruction and reference images.")
    add_sampling_options(
        command,
        "mp4, mov, mkv, gif or frames_%%04d.png of a video; png, jpg or webp of an image",
        "edit only the first N frames of the clip",
    )
    option = command.add_argument
    option("input", type=Path, nargs="?", help="a video, an image, or frames_%%04d.png")
    option("prompt", nargs="?", help="the instruction")
    option(
        "--jobs",
        type=to_location,
        metavar="FILE",
        help="run many edits: JSON lines, CSV or Parquet with input, prompt, output, and maybe reference and seed",
    )
    option("--contact-sheet", type=Path, metavar="FILE", help="image of the source above the result")
    option("--preview", type=Path, metavar="FILE", help="edit six frames only, and write such an image of them")
    option("--compare", type=Path, metavar="FILE", help="video of the source beside the result")
    option(
        "--max-crop",
        type=finite,
        metavar="SHARE",
        help="share of the picture that may stay unedited at its edges to fit the model's proportions (default: 0)",
    )
    option("--audio", choices=["copy", "encode", "none"], help="the clip's sound (default: copy where possible)")
    option("--rate", type=rate, metavar="N", help="frames a second of an image sequence (default: 24)")
    option("--keep-unchanged", action="store_true", help="keep the source's own pixels where the edit changed nothing")
    command.set_defaults(function=run)


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status."""
    if arguments.jobs is not None:
        return run_job_file(arguments)
    result = "preview" if arguments.preview is not None else "output"
    missing = [name for name in ("input", "prompt", result) if getattr(arguments, name) is None]
    if missing:
        raise LoomVideoError(f"the following arguments are required: {', '.join(missing)}")
    from .. import LoomVideoEditPipeline
    from ..fleet.jobs import Job

    settings, stopwatch = settings_of(arguments), Stopwatch()
    job = Job.model_construct(
        input=arguments.input, prompt=arguments.prompt, output=arguments.output, reference=arguments.reference
    )
    with stopwatch.stage("read"):
        plan = plan_from(arguments, settings, job)
    for note in plan.notes:
        message(f"loomvideo: {note}")
    silence_libraries()
    with stopwatch.stage("load"):
        pipe = load_pipeline(LoomVideoEditPipeline, **loading_options(arguments))
    report = plan.run(pipe)
    print_report(report.files, stopwatch.seconds | report.seconds)
    return 0


def run_job_file(arguments: argparse.Namespace) -> int:
    """Runs the jobs of a file. Returns the exit status: 2 if one failed, 1 if by a mistake in the code."""
    if any(getattr(arguments, name) is not None for name in ("input", *RESULTS)):
        raise LoomVideoError("with --jobs, inputs, prompts and outputs are in the file: leave them out here.")
    from .. import LoomVideoEditPipeline
    from ..fleet.jobs import read_jobs
    from ..fleet.run import run_jobs, share_of_process, wait_for_other_processes
    from ..footage import EditSettings

    settings = settings_of(arguments)
    all_jobs = read_jobs(arguments.jobs)
    # Refuses wrong settings before the model is loaded
    EditSettings(all_jobs[0].prompt, **edit_settings(settings))
    jobs = share_of_process(all_jobs)
    silence_libraries()
    pipe = load_pipeline(LoomVideoEditPipeline, **loading_options(arguments))
    failed = []
    for result in run_jobs(jobs, pipe, partial(plan_from, arguments, settings)):
        if result.report is None:
            failed.append(result)
        else:
            print_report(result.report.files, result.report.seconds)
    wait_for_other_processes()
    if failed:
        message(f"loomvideo: error: {len(failed)} of {len(jobs)} jobs failed: the others are done.")
    return 1 if any(result.is_mistake for result in failed) else 2 if failed else 0


def plan_from(arguments: argparse.Namespace, settings: dict[str, Any], job: "Job") -> "EditPlan":
    """Plans an edit, which says by which command it is made."""
    from ..fleet.run import plan_job

    plan = plan_job(
        job,
        compare=arguments.compare,
        contact_sheet=arguments.contact_sheet,
        preview=arguments.preview,
        num_frames=arguments.frames,
        rate=arguments.rate,
        audio=arguments.audio,
        model=shlex.join([arguments.model, *arguments.lora]),
        **edit_settings(settings),
    )
    given = options_of(settings) | job.described() | {"jobs": None, "seed": plan.settings.seed}
    return replace(plan, comment=describe("edit", arguments, plan.settings, given))


def edit_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Of what a model says, an edit takes all but the length."""
    return {name: value for name, value in settings.items() if name != "num_frames"}
