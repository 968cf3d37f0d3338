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
from ..footage.masks import Box
from ..loading import load_pipeline
from ..progress import Stopwatch, message
from .common import (
    add_command,
    add_sampling_options,
    describe,
    finite,
    loading_options,
    plan_together,
    print_report,
    rate,
    settings_of,
    silence_libraries,
    watch_of,
)
from .jobs import add_job_options, check_no_job_options, given_by, run_job_file


if TYPE_CHECKING:
    from ..fleet.jobs import Job
    from ..fleet.work import Files
    from ..footage import EditPlan

OF_MASKS = ("mask", "box", "mask_invert")
# Options that a job file replaces
RESULTS = ("output", "contact_sheet", "preview", "compare", "mask_out")


def box(text: str) -> Box:
    try:
        return Box.parse(text)
    except LoomVideoError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


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
    option(
        "--strength",
        type=finite,
        metavar="S",
        help="from 0, the source, to 1, which starts anew (default: 1)",
    )
    option("--lossless", action="store_true", help="write the very pixels: to a .mkv, or an image sequence of .png")
    option = command.add_argument_group("parts of a video or an image").add_argument
    option("--mask", type=Path, metavar="FILE", help="image or video, white or opaque where something may change")
    option(
        "--box",
        type=box,
        nargs="+",
        action="extend",
        metavar="X,Y,W,H[@SECONDS]",
        help="what may change, in pixels; several with times are a box that moves",
    )
    option("--mask-invert", action="store_true", help="change what is outside of the mask or the box")
    option("--mask-feather", type=int, metavar="PIXELS", help="width of the soft border within the mask (default: 4)")
    option("--mask-out", type=Path, metavar="FILE", help="video or image of the mask over the source, to look at")
    add_job_options(command, "input, prompt, output, and maybe reference, seed, mask, box, mask_invert")
    command.set_defaults(function=run)


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status."""
    if arguments.jobs is not None:
        return run_jobs(arguments)
    result = "preview" if arguments.preview is not None else "output"
    missing = [name for name in ("input", "prompt", result) if getattr(arguments, name) is None]
    if missing:
        raise LoomVideoError(f"the following arguments are required: {', '.join(missing)}")
    check_no_job_options(arguments)
    from .. import LoomVideoEditPipeline

    stopwatch = Stopwatch()
    with stopwatch.stage("read"):
        plan, processes = plan_together(arguments, lambda: make_plan(arguments))
    silence_libraries()
    with stopwatch.stage("load"):
        pipe = load_pipeline(LoomVideoEditPipeline, processes=processes, **loading_options(arguments, plan))
    report = plan.run(pipe, callback_on_step_end=watch_of(arguments))
    if pipe.is_leader:
        print_report(report.files, stopwatch.seconds | report.seconds)
    return 0


def make_plan(arguments: argparse.Namespace) -> "EditPlan":
    """Plans the edit of the command line, and says what there is to know."""
    from ..footage import plan_edit
    from ..footage.resume import choose_seed

    files = [arguments.input, arguments.mask, *arguments.reference, *map(vars(arguments).get, RESULTS)]
    watch_of(arguments, *files)
    settings = {"seed": choose_seed(arguments.output)} | settings_of(arguments)
    options = plan_options(arguments, settings) | {"references": arguments.reference}
    plan = plan_edit(arguments.input, arguments.prompt, arguments.output, **options)
    for note in plan.notes:
        message(f"loomvideo: {note}")
    return replace(plan, comment=describe("edit", arguments, plan.settings, options_of(settings)))


def run_jobs(arguments: argparse.Namespace) -> int:
    """Runs the jobs of a file. Returns the exit status."""
    if any(getattr(arguments, name) is not None for name in ("input", *RESULTS)):
        raise LoomVideoError("with --jobs, inputs, prompts and outputs are in the file: leave them out here.")
    from .. import LoomVideoEditPipeline
    from ..fleet.jobs import EditJob
    from ..footage import EditSettings

    settings = settings_of(arguments)
    # Refuses wrong settings before the model is loaded
    EditSettings("a prompt", **edit_settings(settings))
    return run_job_file(arguments, EditJob, LoomVideoEditPipeline, partial(plan_from, arguments, settings))


def plan_from(arguments: argparse.Namespace, settings: dict[str, Any], job: "Job", files: "Files") -> Any:
    """Plans a job, which says by which command it is made."""
    from ..fleet.work import plan_job

    plan = plan_job(job, files, **plan_options(arguments, settings))
    # What a job leaves out of its mask, the command says.
    of_job = {name: value for name, value in given_by(job).items() if name not in OF_MASKS or value not in (None, [])}
    if {"mask", "box"} & of_job.keys():
        of_job = {"mask": None, "box": None} | of_job
    given = options_of(settings) | {"seed": plan.settings.seed} | of_job
    return replace(plan, comment=describe("edit", arguments, plan.settings, given))


def plan_options(arguments: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `plan_edit`."""
    return {
        "compare": arguments.compare,
        "contact_sheet": arguments.contact_sheet,
        "preview": arguments.preview,
        "num_frames": arguments.frames,
        "rate": arguments.rate,
        "audio": arguments.audio,
        "mask": arguments.mask,
        "boxes": arguments.box or (),
        "mask_invert": arguments.mask_invert,
        "mask_out": arguments.mask_out,
        "lossless": arguments.lossless,
        "model": shlex.join([arguments.model, *arguments.lora]),
        **edit_settings(settings),
    }


def edit_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Of what a model says, an edit takes all but the length."""
    return {name: value for name, value in settings.items() if name != "num_frames"}
