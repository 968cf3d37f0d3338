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
"""The `loomvideo` command: what it takes, and `main`, which runs it."""

import argparse
import atexit
import gc
import io
import math
import sys
from pathlib import Path

from ..progress import close_bars
from .common import is_out_of_memory, one_line, silence_imports
from .models import convert, info, push, train
from .sampling import edit, generate


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError("the seed must be from 0 to 2^63 - 1")
    return int(text)


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"it must be a number, but is {text}")
    return number


def _rate(text: str) -> float:
    number = _finite(text)
    if not 1 / 3600 <= number <= 1000:
        raise argparse.ArgumentTypeError(f"it must be from 1/3600 to 1000, but is {text}")
    return number


def _gigabytes(text: str) -> float:
    number = _finite(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"it must be more than 0 GB, but is {text}")
    return number


def build_parser() -> argparse.ArgumentParser:
    sampling = argparse.ArgumentParser(add_help=False)
    option = sampling.add_argument
    option(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="mp4 or gif, to edit mov, mkv or frames_%%04d.png too; or png, jpg, webp",
    )
    option(
        "--model",
        default="nano",
        metavar="nano|PATH|REPO",
        help="folder of a converted model, or a repository (default: nano, which knows coloured shapes and is part of "
        "the package)",
    )
    option("--lora", nargs="+", default=[], metavar="PATH|REPO", help="file, folder or repository of a LoRA")
    option("--lora-partial", action="store_true", help="leave out what of a LoRA fits no layer, rather than refuse it")
    option("--lora-scale", type=_finite, metavar="S", help="weight of the LoRAs (default: 1)")
    option("--reference", nargs="+", type=Path, default=[], metavar="IMAGE", help="called @Image 1, ... in the prompt")
    option("--negative-prompt", metavar="TEXT", help="what to avoid (default: the published negative prompt)")
    option("--frames", type=int, metavar="N", help="to generate, 4k + 1; to edit, the first so many of the clip")
    option("--height", type=int, metavar="PIXELS", help="that the model works at, a multiple of 32")
    option("--width", type=int, metavar="PIXELS", help="that the model works at, a multiple of 32")
    option("--window", type=int, metavar="N", help="frames at a time, which bounds the memory; 4k + 1 (default: 121)")
    option("--overlap", type=int, metavar="N", help="frames that windows share, 4k (default: a quarter)")
    option("--steps", type=int, metavar="N", help="denoising steps (default: what the model says, or 50)")
    option(
        "--guidance-scale",
        type=_finite,
        metavar="S",
        help="weight of the words (default: what the model says, or to generate 5, to edit 2.5)",
    )
    option(
        "--guidance-scale-visual",
        type=_finite,
        metavar="S",
        help="weight of source and references (default: what the model says, or 1.5)",
    )
    option("--seed", type=_seed, metavar="N", help="makes the result repeatable")
    option("--device", metavar="DEVICE", help="default: the first that is there of cuda, mps and cpu")
    option("--dtype", choices=["bfloat16", "float16", "float32"], help="default: bfloat16; on cpu float32")
    option("--max-memory", type=_gigabytes, metavar="GB", help="stop rather than take more memory of the device")
    option("--cpu-offload", action="store_true", help="keep only the model that is running on the device")

    parser = argparse.ArgumentParser(prog="loomvideo", description="Generate and edit video with LoomVideo.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    summary = "Generate a video or an image from text, and from reference images."
    command = commands.add_parser("generate", help=summary, description=summary, parents=[sampling])
    command.add_argument("prompt", help="what to show")
    command.set_defaults(function=generate, name="generate", default=command.get_default)

    summary = "Edit a video or an image by instruction, and with reference images."
    command = commands.add_parser("edit", help=summary, description=summary, parents=[sampling])
    command.add_argument("input", type=Path, nargs="?", help="a video, an image, or frames_%%04d.png")
    command.add_argument("prompt", nargs="?", help="the instruction")
    command.add_argument(
        "--jobs",
        type=Path,
        metavar="FILE",
        help="do many edits: JSON lines with input, prompt, output, and maybe reference and seed",
    )
    option = command.add_argument
    option("--contact-sheet", type=Path, metavar="FILE", help="a picture of the source above the result")
    option("--preview", type=Path, metavar="FILE", help="edit only a few frames, and show them in such a picture")
    option("--compare", type=Path, metavar="FILE", help="a video of the source beside the result")
    option(
        "--max-crop",
        type=float,
        metavar="SHARE",
        help="how much of the picture may stay unedited at its edges for the proportions' sake (default: 0)",
    )
    option(
        "--audio", choices=["copy", "encode", "none"], help="of the clip's sound (default: copy what can be copied)"
    )
    option("--rate", type=_rate, metavar="N", help="frames a second of an image sequence (default: 24)")
    option("--keep-unchanged", action="store_true", help="take what the edit leaves as it is from the source's pixels")
    command.set_defaults(function=edit, name="edit", default=command.get_default)

    summary = "Convert the published weights into a model folder for diffusers."
    command = commands.add_parser("convert", help=summary, description=summary)
    for name, help_text in (
        ("loomvideo", "file, training folder or repository[@revision] (released: MSALab/LoomVideo)"),
        ("mllm", "Qwen3-VL (released: Qwen/Qwen3-VL-8B-Instruct)"),
        ("wan", "Wan2.2 in the format of diffusers (released: Wan-AI/Wan2.2-TI2V-5B-Diffusers)"),
    ):
        command.add_argument(f"--{name}", required=True, metavar="PATH|REPO", help=help_text)
    command.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the folder to make")
    option = command.add_argument
    option(
        "--dtype", choices=["bfloat16", "float16", "float32"], help="default: bfloat16, float16 of the variant fp16"
    )
    option("--max-shard-size", default="5GB", metavar="SIZE", help="of a file of weights (default: 5GB)")
    option("--variant", metavar="NAME", help="goes into the names of the files of weights, such as fp16")
    option("--raw-weights", action="store_true", help="of a training folder, not the moving average")
    option("--license", metavar="ID", help="for the card, if the source states none, such as apache-2.0")
    option("--force", action="store_true", help="replace what is in the folder")
    option("--dry-run", action="store_true", help="say what would be written, and write nothing")
    option("--verify", action="store_true", help="compare all of the folder with its sources, and write nothing")
    command.set_defaults(function=convert)

    summary = "Upload a model folder, or a LoRA, to the Hub, and check what has arrived."
    command = commands.add_parser("push", help=summary, description=summary)
    command.add_argument("folder", type=Path, metavar="DIR", help="what `convert` or `train` wrote")
    command.add_argument("repository", metavar="REPO", help="OWNER/NAME, made if it is not there")
    option = command.add_argument
    option("--private", action="store_true", help="only for yourself, if the repository is new")
    option("--revision", metavar="BRANCH", help="made if it is not there (default: main)")
    option("--create-pr", action="store_true", help="open a pull request instead")
    option("--license", metavar="ID", help="for a card that states none, such as apache-2.0")
    command.set_defaults(function=push)

    summary = "Train a LoRA, or the whole transformer, on clips of your own."
    command = commands.add_parser("train", help=summary, description=summary)
    command.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file of settings")
    command.add_argument("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
    command.add_argument("--strict", action="store_true", help="stop at a corrupt clip instead of skipping it")
    command.add_argument("--precompute-only", action="store_true", help="compute the features, and do not train")
    command.add_argument("--push-to-hub", action="store_true", help="upload the result to the `hub_model_id`")
    command.set_defaults(function=train)

    summary = "Show what a model holds, how a result was made, or without either the versions that are installed."
    command = commands.add_parser("info", help=summary, description=summary)
    command.add_argument("path", nargs="?", metavar="nano|PATH", help="a model folder, or a video or image made here")
    command.set_defaults(function=info)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command line. Returns 0, or after one line on stderr 2 if the input was wrong, 130 if interrupted."""
    # The imports make half a million objects that stay; searching them for garbage takes seconds.
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may hold what it cannot show
    silence_imports()
    arguments = build_parser().parse_args(argv)
    from safetensors import SafetensorError

    try:
        try:
            arguments.function(arguments)
        finally:
            close_bars()
    except (ValueError, TypeError, OSError, SafetensorError) as error:
        print(f"loomvideo: error: {one_line(error)}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        advice = "choose a smaller --window, --height and --width, or --cpu-offload"
        print(f"loomvideo: error: the memory is not enough: {advice}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("loomvideo: interrupted", file=sys.stderr)
        return 130
    return 0
