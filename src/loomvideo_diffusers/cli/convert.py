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
"""`loomvideo convert`."""

import argparse
from pathlib import Path
from typing import Any

from ..loading import DTYPES
from ..progress import Stopwatch
from .common import add_command, silence_libraries


def add_parser(commands: Any) -> None:
    command = add_command(commands, "convert", "Convert the published weights into a model folder for diffusers.")
    for name, help_text in (
        ("loomvideo", "file, training folder or repository[@revision] (released: MSALab/LoomVideo)"),
        ("mllm", "Qwen3-VL (released: Qwen/Qwen3-VL-8B-Instruct)"),
        ("wan", "Wan2.2 in diffusers' format (released: Wan-AI/Wan2.2-TI2V-5B-Diffusers)"),
    ):
        command.add_argument(f"--{name}", required=True, metavar="PATH|REPO", help=help_text)
    option = command.add_argument
    option("-o", "--output", type=Path, required=True, metavar="DIR", help="the folder to write")
    option("--dtype", choices=DTYPES, help="default: bfloat16, or float16 for the variant fp16")
    option("--max-shard-size", default="5GB", metavar="SIZE", help="largest size of a weights file (default: 5GB)")
    option("--variant", metavar="NAME", help="part of the weights files' names, such as fp16")
    option("--raw-weights", action="store_true", help="from a training folder, take the weights, not their average")
    option("--license", metavar="ID", help="license for the card if the source names none, such as apache-2.0")
    option("--force", action="store_true", help="replace what is in the folder")
    option("--dry-run", action="store_true", help="print what would be written, and write nothing")
    option("--verify", action="store_true", help="compare the folder with its sources, and write nothing")
    command.set_defaults(function=run)


def run(arguments: argparse.Namespace) -> None:
    import torch

    from .. import conversion

    silence_libraries()
    dtype = arguments.dtype or ("float16" if arguments.variant == "fp16" else "bfloat16")
    stopwatch = Stopwatch()
    with stopwatch.stage("read"):
        sources = conversion.find_sources(
            arguments.loomvideo, arguments.mllm, arguments.wan, use_ema=not arguments.raw_weights
        )
        plan = conversion.plan_conversion(sources, getattr(torch, dtype), arguments.max_shard_size, arguments.variant)
    if plan.left_out:
        names = ", ".join([*plan.left_out[:6], *(["..."] if len(plan.left_out) > 6 else [])])
        print(f"Left out, as the model does not use it: {names}.")
    if arguments.dry_run:
        for name, size in plan.files.items():
            print(f"{size / 1e6:12,.1f} MB  {name}")
        print(f"{plan.num_bytes / 1e6:12,.1f} MB  in all would be written to {arguments.output}.")
    elif arguments.verify:
        conversion.verify(plan, arguments.output)
        print(f"Verified {arguments.output}: every tensor is that of its source.")
    else:
        with stopwatch.stage("write"):
            is_new = conversion.write(plan, arguments.output, arguments.license, arguments.force)
        verb = "Wrote" if is_new else "Verified, as it was there already,"
        times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in stopwatch.seconds.items())
        print(f"{verb} {arguments.output}: {plan.num_bytes / 1e6:,.1f} MB of weights ({times}).")
