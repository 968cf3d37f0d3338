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
from typing import Any

from ..descriptions import options_of
from ..errors import LoomVideoError
from ..loading import load_pipeline
from ..progress import Stopwatch
from .common import (
    add_command,
    add_sampling_options,
    describe,
    loading_options,
    print_report,
    settings_of,
    silence_libraries,
)


def add_parser(commands: Any) -> None:
    command = add_command(commands, "generate", "Generate a video or an image from a prompt and reference images.")
    add_sampling_options(
        command, "mp4 or gif for a video; png, jpg or webp for an image", "length at 24 frames a second, 4k + 1"
    )
    command.add_argument("prompt", help="what to show")
    command.set_defaults(function=run)


def run(arguments: argparse.Namespace) -> None:
    if arguments.output is None:
        raise LoomVideoError("the following arguments are required: -o/--output")
    from .. import LoomVideoPipeline
    from ..footage import plan_generation
    from ..footage.resume import choose_seed
    from ..media.images import IMAGE_SUFFIXES

    settings = {"seed": choose_seed(None)} | settings_of(arguments)
    is_image = arguments.output.suffix.lower() in IMAGE_SUFFIXES
    default = 1 if is_image else settings.get("num_frames")
    settings["num_frames"] = default if arguments.frames is None else arguments.frames
    stopwatch = Stopwatch()
    with stopwatch.stage("read"):
        plan = plan_generation(arguments.prompt, arguments.output, references=arguments.reference, **settings)
        given = options_of(settings) | {"frames": plan.settings.num_frames}
        plan = replace(plan, comment=describe("generate", arguments, plan.settings, given))
    silence_libraries()
    with stopwatch.stage("load"):
        pipe = load_pipeline(LoomVideoPipeline, **loading_options(arguments))
    report = plan.run(pipe)
    print_report(report.files, stopwatch.seconds | report.seconds)
