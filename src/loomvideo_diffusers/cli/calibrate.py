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
"""`loomvideo calibrate`."""

import argparse
from pathlib import Path

from ..errors import LoomVideoError
from ..loading import load_pipeline
from .common import add_command, add_machine_options, loading_options, positive, settings_of, silence_libraries


def add_parser(commands: argparse._SubParsersAction) -> None:
    command = add_command(commands, "calibrate", "Measure a model once for --cache magcache:FILE.")
    option = command.add_argument
    option("-o", "--output", type=Path, required=True, metavar="FILE", help="JSON file to write")
    option("--model", default="nano", metavar="nano|PATH|REPO", help="model folder or repository (default: nano)")
    option("--lora", nargs="+", default=[], metavar="PATH|REPO", help="LoRA file, folder or repository")
    option("--lora-partial", action="store_true", help="skip the layers of a LoRA that the model does not have")
    option("--steps", type=positive, metavar="N", help="denoising steps (default: the model's own, or 50)")
    option("--frames", type=int, metavar="N", help="length of the video that is generated, 4k + 1")
    option("--height", type=int, metavar="PIXELS", help="its height, a multiple of 32")
    option("--width", type=int, metavar="PIXELS", help="its width, a multiple of 32")
    option("prompt", help="what to generate for it")
    add_machine_options(command)
    command.set_defaults(function=run)


def run(arguments: argparse.Namespace) -> None:
    from .. import LoomVideoPipeline
    from ..calibration import measure_ratios, write_ratios
    from ..footage import GenerationSettings
    from ..footage.run import call_arguments
    from ..media import check_output_path

    if arguments.cache is not None or arguments.compile or arguments.offload == "blocks":
        raise LoomVideoError("A model is measured as it is: leave out --cache, --compile and --offload blocks.")
    check_output_path(arguments.output, (".json",))
    settings = settings_of(arguments)
    if arguments.frames is not None:
        settings["num_frames"] = arguments.frames
    checked = GenerationSettings(arguments.prompt, **settings)
    # In one window
    whole = {"num_frames": checked.num_frames, "window_frames": checked.num_frames, "window_overlap": None}
    call = call_arguments(checked) | whole
    silence_libraries()
    pipe = load_pipeline(LoomVideoPipeline, **loading_options(arguments))
    ratios = measure_ratios(pipe, lambda: pipe(**call, output_type="latent"))
    write_ratios(arguments.output, ratios)
    print(f"Wrote {arguments.output}: {len(ratios)} steps, for --cache magcache:{arguments.output}.")
