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
"""`loomvideo generate`."""

import argparse
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..descriptions import options_of
from ..errors import LoomVideoError
from ..loading import load_pipeline
from ..progress import Stopwatch
from .common import (
    add_command,
    add_sampling_options,
    describe,
    loading_options,
    plan_together,
    print_report,
    settings_of,
    silence_libraries,
    watch_of,
)
from .jobs import add_job_options, check_no_job_options, given_by, run_job_file


if TYPE_CHECKING:
    from ..fleet.jobs import Job, Location
    from ..fleet.work import Files
    from ..footage import GenerationPlan


def add_parser(commands: Any) -> None:
    command = add_command(commands, "generate", "Generate a video or an image from a prompt and reference images.")
    add_sampling_options(
        command, "mp4 or gif for a video; png, jpg or webp for an image", "length at 24 frames a second, 4k + 1"
    )
    command.add_argument("prompt", nargs="?", help="what to show")
    add_job_options(command, "prompt, output, and maybe reference and seed")
    command.set_defaults(function=run)


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status."""
    if arguments.jobs is not None:
        return run_jobs(arguments)
    needed = {"prompt": arguments.prompt, "-o/--output": arguments.output}
    missing = [name for name, value in needed.items() if value is None]
    if missing:
        raise LoomVideoError(f"the following arguments are required: {', '.join(missing)}")
    check_no_job_options(arguments)
    from .. import LoomVideoPipeline

    stopwatch = Stopwatch()
    with stopwatch.stage("read"):
        plan, processes = plan_together(arguments, lambda: make_plan(arguments))
    silence_libraries()
    with stopwatch.stage("load"):
        pipe = load_pipeline(LoomVideoPipeline, processes=processes, **loading_options(arguments, plan))
    report = plan.run(pipe, callback_on_step_end=watch_of(arguments))
    if pipe.is_leader:
        print_report(report.files, stopwatch.seconds | report.seconds)
    return 0


def make_plan(arguments: argparse.Namespace) -> "GenerationPlan":
    """Plans the generation of the command line."""
    from ..footage import plan_generation
    from ..footage.resume import choose_seed

    watch_of(arguments, arguments.output, *arguments.reference)
    settings = {"seed": choose_seed(None)} | settings_of(arguments)
    options = plan_options(arguments, settings, arguments.output) | {"references": arguments.reference}
    plan = plan_generation(arguments.prompt, arguments.output, **options)
    given = options_of(settings) | {"frames": plan.settings.num_frames}
    return replace(plan, comment=describe("generate", arguments, plan.settings, given))


def run_jobs(arguments: argparse.Namespace) -> int:
    """Runs the jobs of a file. Returns the exit status."""
    if arguments.prompt is not None or arguments.output is not None:
        raise LoomVideoError("with --jobs, prompts and outputs are in the file: leave them out here.")
    from .. import LoomVideoPipeline
    from ..fleet.jobs import GenerationJob
    from ..footage import GenerationSettings

    settings = settings_of(arguments)
    # Refuses wrong settings before the model is loaded
    GenerationSettings("a prompt", **settings)
    return run_job_file(arguments, GenerationJob, LoomVideoPipeline, partial(plan_from, arguments, settings))


def plan_from(arguments: argparse.Namespace, settings: dict[str, Any], job: "Job", files: "Files") -> Any:
    """Plans a job, which says by which command it is made."""
    from ..fleet.work import plan_job
    from ..footage import GenerationPlan

    plan = plan_job(job, files, **plan_options(arguments, settings, job.output))
    assert isinstance(plan, GenerationPlan)
    given = options_of(settings) | {"frames": plan.settings.num_frames, "seed": plan.settings.seed} | given_by(job)
    return replace(plan, comment=describe("generate", arguments, plan.settings, given))


def plan_options(arguments: argparse.Namespace, settings: dict[str, Any], output: "Location") -> dict[str, Any]:
    """Arguments of `plan_generation`."""
    from ..media import IMAGE_SUFFIXES

    default = 1 if output.suffix.lower() in IMAGE_SUFFIXES else settings.get("num_frames")
    return settings | {"num_frames": default if arguments.frames is None else arguments.frames}
