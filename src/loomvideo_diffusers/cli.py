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
"""The `loomvideo` command."""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import nano


# torch, diffusers and transformers take seconds to import, so the functions that need them do it.
if TYPE_CHECKING:
    import numpy as np
    from diffusers import DiffusionPipeline
    from torch import nn


class Stopwatch:
    """Remembers how long each stage of a command took."""

    def __init__(self):
        self.seconds = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())


def generate(arguments: argparse.Namespace) -> None:
    from .video import IMAGE_SUFFIXES, VIDEO_SUFFIXES, check_output_path, read_image

    _use_nano(arguments)
    if arguments.output is None:
        raise ValueError("the following arguments are required: -o/--output")
    num_frames = arguments.frames
    if num_frames is None:
        num_frames = 1 if arguments.output.suffix.lower() in IMAGE_SUFFIXES else arguments.longest or 81
    check_output_path(arguments.output, IMAGE_SUFFIXES if num_frames == 1 else VIDEO_SUFFIXES)
    stopwatch = Stopwatch()
    with stopwatch.stage("read"):
        references = [read_image(path) for path in arguments.reference]
    inputs = {"reference_images": references or None, "num_frames": num_frames}
    pipe = _load("LoomVideoPipeline", arguments, stopwatch)
    _write(_run(pipe, inputs, arguments, stopwatch), arguments.output, stopwatch)


def edit(arguments: argparse.Namespace) -> None:
    _use_nano(arguments)
    if arguments.jobs is not None:
        _edit_jobs(arguments)
        return
    missing = [name for name in ("input", "prompt", "output") if getattr(arguments, name) is None]
    if missing:
        raise ValueError(f"the following arguments are required: {', '.join(missing)}")
    stopwatch = Stopwatch()
    inputs = _read_inputs(arguments, stopwatch)
    _edit_one(_load("LoomVideoEditPipeline", arguments, stopwatch), inputs, arguments, stopwatch)


def _read_inputs(arguments: argparse.Namespace, stopwatch: Stopwatch) -> dict[str, Any]:
    """Checks the files of an edit and reads them, as arguments of the pipeline."""
    from .video import IMAGE_SUFFIXES, VIDEO_SUFFIXES, check_output_path, read_image, read_video

    is_image = arguments.input.suffix.lower() in IMAGE_SUFFIXES
    check_output_path(arguments.output, IMAGE_SUFFIXES if is_image else VIDEO_SUFFIXES)
    if arguments.contact_sheet is not None:
        check_output_path(arguments.contact_sheet, IMAGE_SUFFIXES)
    with stopwatch.stage("read"):
        references = [read_image(path) for path in arguments.reference]
        source = read_image(arguments.input) if is_image else read_video(arguments.input, show_progress=True)
        if not is_image and arguments.frames is None:
            source = source[: arguments.longest]
    kind = "image" if is_image else "video"
    return {kind: source, "num_frames": arguments.frames, "reference_images": references or None}


def _edit_one(
    pipe: "DiffusionPipeline", inputs: dict[str, Any], arguments: argparse.Namespace, stopwatch: Stopwatch
) -> None:
    frames = _run(pipe, inputs, arguments, stopwatch)
    _write(frames, arguments.output, stopwatch)
    if arguments.contact_sheet is not None:
        source = [inputs["image"]] if "image" in inputs else inputs["video"][: len(frames)]
        _write_contact_sheet(source, frames, arguments.contact_sheet)


def _edit_jobs(arguments: argparse.Namespace) -> None:
    """Does one job after the other; those that fail are named, and stop no other."""
    from .jobs import read_jobs, share_of_process

    if arguments.input is not None or arguments.output is not None or arguments.contact_sheet is not None:
        raise ValueError("with --jobs, inputs, prompts and outputs are in the file: leave them out here.")
    jobs = share_of_process(read_jobs(arguments.jobs))
    pipe = _load("LoomVideoEditPipeline", arguments, Stopwatch())
    num_failed = 0
    for number, job in enumerate(jobs, start=1):
        values = vars(arguments) | job.model_dump() | {"seed": arguments.seed if job.seed is None else job.seed}
        of_job = argparse.Namespace(**values)
        stopwatch = Stopwatch()
        try:
            _edit_one(pipe, _read_inputs(of_job, stopwatch), of_job, stopwatch)
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            num_failed += 1
            print(f"loomvideo: job {number} of {len(jobs)}, {job.output}: {_one_line(error)}", file=sys.stderr)
    if num_failed:
        raise ValueError(f"{num_failed} of {len(jobs)} jobs failed: the others are done.")


def _use_nano(arguments: argparse.Namespace) -> None:
    """Where nothing is said, sets what the model of the package was trained on."""
    arguments.longest = None
    if arguments.model == "nano":
        arguments.longest = nano.NUM_FRAMES
        if arguments.height is None and arguments.width is None:
            arguments.height = arguments.width = nano.SIDE
        if arguments.steps is None:
            arguments.steps = nano.NUM_INFERENCE_STEPS
        if arguments.guidance_scale is None:
            arguments.guidance_scale = nano.GUIDANCE_SCALE


def _prompt(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("the prompt is empty: say what to show or to change")
    return text


def _seed(text: str) -> int:
    seed = int(text)
    if not 0 <= seed < 2**63:
        raise argparse.ArgumentTypeError("the seed must be from 0 to 2^63 - 1")
    return seed


def _load(pipeline_name: str, arguments: argparse.Namespace, stopwatch: Stopwatch) -> "DiffusionPipeline":
    import torch

    from . import pipelines

    _silence_libraries()
    device = arguments.device
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        if device == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"{device} is no device of this machine: choose cpu, or leave --device out.") from error
    dtype = getattr(torch, arguments.dtype or ("float32" if device == "cpu" else "bfloat16"))
    with stopwatch.stage("load"):
        pipe = getattr(pipelines, pipeline_name).from_pretrained(_find_model(arguments.model), dtype=dtype)
        for lora in arguments.lora:
            pipe.load_lora_weights(lora)
        if len(arguments.lora) > 1:
            pipe.set_adapters([name for names in pipe.get_list_adapters().values() for name in names])
        if arguments.cpu_offload:
            pipe.enable_model_cpu_offload(device=device)
        else:
            pipe.to(device)
    return pipe


def _run(
    pipe: "DiffusionPipeline", inputs: dict[str, Any], arguments: argparse.Namespace, stopwatch: Stopwatch
) -> "np.ndarray":
    """Runs a pipeline; returns the video, `[F, H, W, 3]` in [0, 1]."""
    import torch

    options = {
        "prompt": arguments.prompt,
        "negative_prompt": arguments.negative_prompt,
        "height": arguments.height,
        "width": arguments.width,
        "num_inference_steps": arguments.steps,
        "guidance_scale": arguments.guidance_scale,
        "guidance_scale_visual": arguments.guidance_scale_visual,
        "attention_kwargs": None if arguments.lora_scale is None else {"scale": arguments.lora_scale},
        "generator": None if arguments.seed is None else torch.Generator("cpu").manual_seed(arguments.seed),
    }
    options = {name: value for name, value in (inputs | options).items() if value is not None}
    with (
        stopwatch.stage("denoise"),
        _progress_bar("Reading the prompt", pipe.text_encoder.language_model.layers),
        _progress_bar("Encoding pixels", [pipe.vae.encoder]),
    ):
        latents = pipe(**options, output_type="latent").frames
    with stopwatch.stage("decode"), _progress_bar("Decoding", [pipe.vae.decoder], latents.shape[2]), torch.no_grad():
        return pipe.decode_latents(latents, "np")[0]


def _silence_libraries() -> None:
    import diffusers
    import transformers

    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()


@contextmanager
def _progress_bar(description: str, modules: Iterable["nn.Module"], total: int | None = None) -> Iterator[None]:
    """Shows a bar that moves whenever one of the modules has run, from the first time on."""
    from tqdm import tqdm

    bars = []

    def move(*_) -> None:
        if not bars:
            bars.append(tqdm(desc=description, total=total))
        bars[0].update()

    hooks = [module.register_forward_hook(move) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for bar in bars:
            bar.close()


def _find_model(model: str) -> str:
    if model == "nano":
        model = str(nano.MODEL)
    folder = Path(model)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise ValueError(f"{model} has no model_index.json: make a model folder with `loomvideo convert`.")
    if not folder.exists() and (len(folder.parts) != 2 or folder.is_absolute()):
        raise ValueError(f"{model} is neither a folder here nor the name of a repository (OWNER/NAME).")
    return model


def _write(frames: "np.ndarray", path: Path, stopwatch: Stopwatch) -> None:
    """Writes the result and says what was written and how long each stage took."""
    from .video import FRAMES_PER_SECOND, IMAGE_SUFFIXES, write_image, write_video

    with stopwatch.stage("write"):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            write_image(path, frames[0])
            length = "1 image"
        else:
            write_video(path, frames, show_progress=True)
            length = f"{len(frames)} frames at {FRAMES_PER_SECOND} a second"
    height, width = frames.shape[1:3]
    print(f"Wrote {path}: {length}, {width} x {height} ({stopwatch}).")


def _write_contact_sheet(source: Any, result: "np.ndarray", path: Path) -> None:
    from .video import contact_sheet, write_image

    write_image(path, contact_sheet([source, result]))
    print(f"Wrote {path}: the source above the result.")


def convert(arguments: argparse.Namespace) -> None:
    import torch

    from . import conversion

    _silence_libraries()
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
        print(f"{verb} {arguments.output}: {plan.num_bytes / 1e6:,.1f} MB of weights ({stopwatch}).")


def push(arguments: argparse.Namespace) -> None:
    from . import conversion

    _silence_libraries()
    url = conversion.push(
        arguments.folder,
        arguments.repository,
        private=arguments.private or None,
        revision=arguments.revision,
        create_pr=arguments.create_pr,
        license=arguments.license,
    )
    print(f"Pushed: {url}")


def train(arguments: argparse.Namespace) -> None:
    try:
        from . import training
    except ImportError as error:
        raise ValueError(
            f"Training needs {error.name}: install it with `pip install loomvideo-diffusers[train]`."
        ) from error

    config = training.load_config(arguments.config)
    config.model = _find_model(config.model)
    _silence_libraries()
    result = training.train(
        config,
        resume=arguments.resume,
        strict=arguments.strict,
        push=arguments.push_to_hub,
        precompute_only=arguments.precompute_only,
    )
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"Wrote {result}." if result else f"The features are in {config.data.features}.")


def info(arguments: argparse.Namespace) -> None:
    import torch

    from .conversion.cards import RECORD_FILE, measure_part

    if arguments.model is None:
        for package in ("loomvideo-diffusers", "diffusers", "transformers", "torch", "av"):
            print(f"{package:20} {version(package)}")
        devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        print(f"{'device':20} {', '.join(devices) or ('mps' if torch.backends.mps.is_available() else 'cpu')}")
        return

    folder = Path(nano.MODEL if arguments.model == "nano" else arguments.model)
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} has no model_index.json: make a model folder with `loomvideo convert`.")
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    for name, value in sorted(index.items()):
        if name.startswith("_"):
            continue
        part = measure_part(folder, name)
        weights = f"{part['parameters']:14,} parameters, {part['precision']}, {part['size']}"
        print(f"{name:14} {value[1] or 'none':28} {weights if part['parameters'] else ''}".rstrip())
    if (folder / RECORD_FILE).is_file():
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        for name, source in record["sources"].items():
            print(f"{'made from':14} {name:28} {' '.join(value for value in source.values() if value)}")
        for package, number in record["versions"].items():
            print(f"{'made with':14} {package:28} {number}")


def build_parser() -> argparse.ArgumentParser:
    sampling = argparse.ArgumentParser(add_help=False)
    option = sampling.add_argument
    option("-o", "--output", type=Path, metavar="FILE", help="mp4 or gif; for an image png, jpg or webp")
    option(
        "--model",
        default="nano",
        metavar="nano|PATH|REPO",
        help="folder of a converted model, or a repository (default: nano, which knows coloured shapes and is part of "
        "the package)",
    )
    option("--lora", nargs="+", default=[], metavar="PATH|REPO", help="file, folder or repository of a LoRA")
    option("--lora-scale", type=float, metavar="S", help="weight of the LoRAs (default: 1)")
    option("--reference", nargs="+", type=Path, default=[], metavar="IMAGE", help="called @Image 1, ... in the prompt")
    option("--negative-prompt", metavar="TEXT", help="what to avoid (default: the published negative prompt)")
    option("--frames", type=int, metavar="N", help="number of frames, 4k + 1")
    option("--height", type=int, metavar="PIXELS", help="a multiple of 32")
    option("--width", type=int, metavar="PIXELS", help="a multiple of 32")
    option("--steps", type=int, metavar="N", help="denoising steps (default: 50, of nano 20)")
    option(
        "--guidance-scale",
        type=float,
        metavar="S",
        help="weight of the words (default: to generate 5, to edit and of nano 2.5)",
    )
    option("--guidance-scale-visual", type=float, metavar="S", help="weight of source and references (default: 1.5)")
    option("--seed", type=_seed, metavar="N", help="makes the result repeatable")
    option("--device", metavar="DEVICE", help="default: the first that is there of cuda, mps and cpu")
    option("--dtype", choices=["bfloat16", "float16", "float32"], help="default: bfloat16; on cpu float32")
    option("--cpu-offload", action="store_true", help="keep only the model that is running on the device")

    parser = argparse.ArgumentParser(prog="loomvideo", description="Generate and edit video with LoomVideo.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    summary = "Generate a video or an image from text, and from reference images."
    command = commands.add_parser("generate", help=summary, description=summary, parents=[sampling])
    command.add_argument("prompt", type=_prompt, help="what to show")
    command.set_defaults(function=generate)

    summary = "Edit a video or an image by instruction, and with reference images."
    command = commands.add_parser("edit", help=summary, description=summary, parents=[sampling])
    command.add_argument("input", type=Path, nargs="?", help="a video, or a png, jpg or webp")
    command.add_argument("prompt", type=_prompt, nargs="?", help="the instruction")
    command.add_argument(
        "--jobs",
        type=Path,
        metavar="FILE",
        help="do many edits: JSON lines with input, prompt, output, and maybe reference and seed",
    )
    command.add_argument("--contact-sheet", type=Path, metavar="FILE", help="a picture of the source above the result")
    command.set_defaults(function=edit)

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

    summary = "Show what a model folder holds, or without one, the versions that are installed."
    command = commands.add_parser("info", help=summary, description=summary)
    command.add_argument("model", nargs="?", metavar="nano|PATH", help="folder of a converted model")
    command.set_defaults(function=info)
    return parser


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def main(argv: list[str] | None = None) -> int:
    """Runs the command line. Returns 0, or after one line on stderr 2 if the input was wrong, 130 if interrupted."""
    arguments = build_parser().parse_args(argv)
    from safetensors import SafetensorError

    try:
        arguments.function(arguments)
    except (ValueError, TypeError, OSError, SafetensorError) as error:
        print(f"loomvideo: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("loomvideo: interrupted", file=sys.stderr)
        return 130
    return 0
