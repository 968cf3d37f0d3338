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
"""The commands that run the pipelines: `generate` and `edit`."""

import argparse
import inspect
import json
import os
import re
import secrets
import shlex
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..defaults import read_default_options
from ..errors import LoomVideoError
from ..progress import message, progress_bar, stage
from .common import Stopwatch, find_model, one_line, silence_libraries


OPTIONS_OF_FOOTAGE = ("preview", "compare", "keep_unchanged", "max_crop", "frames", "audio", "rate")
FILES_OF_AN_EDIT = ("output", "contact_sheet", "preview", "compare")

# Of a CPU, in bytes: with less, Python itself fails in places that cannot say why.
SMALLEST_MEMORY = 200_000_000

# torch, diffusers and transformers take seconds to import, so the functions that need them do it.
if TYPE_CHECKING:
    import numpy as np
    import torch
    from diffusers import DiffusionPipeline


def generate(arguments: argparse.Namespace) -> None:
    from ..fleet.jobs import identity
    from ..media.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES, check_output_path, read_image

    if arguments.output is None:
        raise LoomVideoError("the following arguments are required: -o/--output")
    _check_words(arguments)
    for reference in arguments.reference:
        if identity(reference) == identity(arguments.output):
            raise LoomVideoError(f"{reference} is a reference, and would be overwritten: choose another --output.")
    options = _use_defaults(arguments)
    if arguments.frames is None:
        is_image = arguments.output.suffix.lower() in IMAGE_SUFFIXES
        arguments.frames = 1 if is_image else options.get("num_frames", 81)
    check_output_path(arguments.output, IMAGE_SUFFIXES if arguments.frames == 1 else VIDEO_SUFFIXES)
    stopwatch = Stopwatch()
    with stopwatch.stage("read"):
        references = [read_image(path) for path in arguments.reference]
    inputs = {"reference_images": references or None, "num_frames": arguments.frames}
    inputs |= {"window_frames": arguments.window, "window_overlap": arguments.overlap}
    pipe = _load("LoomVideoPipeline", arguments, stopwatch)
    _choose_seed(arguments)
    _write(_run(pipe, inputs, arguments, stopwatch), pipe, arguments, stopwatch)


def edit(arguments: argparse.Namespace) -> None:
    _check_words(arguments)
    _use_defaults(arguments)
    if arguments.jobs is not None:
        _edit_jobs(arguments)
        return
    result = "preview" if arguments.preview is not None else "output"
    missing = [name for name in ("input", "prompt", result) if getattr(arguments, name) is None]
    if missing:
        raise LoomVideoError(f"the following arguments are required: {', '.join(missing)}")
    stopwatch = Stopwatch()
    run = _prepare_edit(arguments, stopwatch)
    run(_load("LoomVideoEditPipeline", arguments, stopwatch))


def _check_words(arguments: argparse.Namespace) -> None:
    """Raises LoomVideoError if a prompt of the command line cannot be one."""
    from ..pipelines.loomvideo_mllm import check_prompt

    if arguments.prompt is not None:
        check_prompt(arguments.prompt)
    if arguments.negative_prompt is not None:
        check_prompt(arguments.negative_prompt, "--negative-prompt", may_be_blank=True)


def _prepare_edit(arguments: argparse.Namespace, stopwatch: Stopwatch) -> Callable[..., None]:
    """Checks all that an edit needs, and returns what does it with a pipeline."""
    from ..fleet.jobs import identity
    from ..media.decoding import is_sequence
    from ..media.video import IMAGE_SUFFIXES, check_output_path, is_image, read_image

    _choose_seed(arguments)
    results = [path for name in FILES_OF_AN_EDIT if (path := getattr(arguments, name)) is not None]
    named = [identity(path) for path in (*results, arguments.input, *arguments.reference)]
    for path in results:
        if named.count(identity(path)) > 1:
            raise LoomVideoError(
                f"{path} is named twice: give the source, references and each result names of their own."
            )
    for sheet in (arguments.contact_sheet, arguments.preview):
        if sheet is not None:
            check_output_path(sheet, IMAGE_SUFFIXES)
    with stopwatch.stage("read"):
        references = [read_image(path) for path in arguments.reference]
    is_photo = not is_sequence(arguments.input) and is_image(arguments.input)
    return (_prepare_image if is_photo else _prepare_footage)(arguments, references, stopwatch)


def _prepare_image(arguments: argparse.Namespace, references: list[Any], stopwatch: Stopwatch) -> Callable[..., None]:
    from ..media.video import IMAGE_SUFFIXES, check_output_path, read_image

    for name in OPTIONS_OF_FOOTAGE:
        if getattr(arguments, name):
            raise LoomVideoError(
                f"{arguments.input} is an image: leave out --{name.replace('_', '-')}, which is for videos."
            )
    check_output_path(arguments.output, IMAGE_SUFFIXES, f"{arguments.input} is an image: ")
    with stopwatch.stage("read"):
        image = read_image(arguments.input)

    def run(pipe: "DiffusionPipeline", negative_prompt_embeds: "torch.Tensor | None" = None) -> None:
        inputs = {"image": image, "reference_images": references or None}
        inputs["negative_prompt_embeds"] = negative_prompt_embeds
        frames = _run(pipe, inputs, arguments, stopwatch)
        _write(frames, pipe, arguments, stopwatch)
        if arguments.contact_sheet is not None:
            _write_contact_sheet([image], frames, arguments.contact_sheet)

    return run


def _prepare_footage(
    arguments: argparse.Namespace, references: list[Any], stopwatch: Stopwatch
) -> Callable[..., None]:
    from ..footage.editing import Edit, edit_footage, edit_preview
    from ..footage.survey import survey
    from ..media.decoding import is_sequence
    from ..media.encoding import check_footage_path, plan_output
    from ..media.files import lock_beside

    audio = arguments.audio or "copy"
    outputs = [path for path in (arguments.output, arguments.compare) if path is not None]
    for path in outputs:
        check_footage_path(path, f"{arguments.input} is no image: ")
        with lock_beside(path):
            pass  # Another run that is writing it is noticed now, not when the model is there.
    if arguments.rate is not None and not is_sequence(arguments.input):
        raise LoomVideoError(
            f"{arguments.input} has a rate of its own: leave out --rate, which is for image sequences."
        )
    with stopwatch.stage("read"):
        footage = survey(arguments.input, arguments.frames, show_progress=True, rate=arguments.rate)
        notes = [*footage.notes]
        for path in outputs if arguments.preview is None else []:
            width = footage.width * (2 if path == arguments.compare else 1)
            notes += [note for note in plan_output(footage, path, audio, width).notes if note not in notes]
    for note in notes:
        message(f"loomvideo: {note}")
    options = {
        "negative_prompt": arguments.negative_prompt,
        "height": arguments.height,
        "width": arguments.width,
        "max_crop": arguments.max_crop,
        "num_inference_steps": arguments.steps,
        "guidance_scale": arguments.guidance_scale,
        "guidance_scale_visual": arguments.guidance_scale_visual,
        "window_frames": arguments.window,
        "window_overlap": arguments.overlap,
        "lora_scale": arguments.lora_scale,
    }
    options = {name: value for name, value in options.items() if value is not None}
    edit = Edit(
        arguments.prompt,
        tuple(references),
        seed=arguments.seed,
        keep_unchanged=arguments.keep_unchanged,
        **options,
    )
    edit.fit(footage)

    def run(pipe: "DiffusionPipeline", negative_prompt_embeds: "torch.Tensor | None" = None) -> None:
        comment = _describe(pipe, arguments)
        if arguments.preview is not None:
            with stage("Reading the prompt"):
                before, after = edit_preview(pipe, footage, edit, negative_prompt_embeds)
            _write_contact_sheet(before, after, arguments.preview, comment)
            return
        model = shlex.join([arguments.model, *arguments.lora])
        with stopwatch.stage("edit"):
            results = (arguments.output, arguments.compare)
            before, after = edit_footage(pipe, footage, edit, *results, comment, model, audio, negative_prompt_embeds)
        print(
            f"Wrote {arguments.output}: {len(footage.times)} frames at {float(footage.rate):.4g} a second, "
            f"{footage.width} x {footage.height}, seed {arguments.seed} ({stopwatch})."
        )
        if arguments.compare is not None:
            print(f"Wrote {arguments.compare}: the source beside the result.")
        if arguments.contact_sheet is not None:
            _write_contact_sheet(before, after, arguments.contact_sheet)

    return run


def _edit_jobs(arguments: argparse.Namespace) -> None:
    """Does one job after the other; those that fail are named, and stop no other."""
    from ..fleet.jobs import read_jobs, share_of_process, wait_for_other_processes

    if any(getattr(arguments, name) is not None for name in ("input", *FILES_OF_AN_EDIT)):
        raise LoomVideoError("with --jobs, inputs, prompts and outputs are in the file: leave them out here.")
    jobs = share_of_process(read_jobs(arguments.jobs))
    pipe = _load("LoomVideoEditPipeline", arguments, Stopwatch())
    num_failed = 0
    encoded = None
    for number, job in enumerate(progress_bar(jobs, desc="Jobs"), start=1):
        values = vars(arguments) | job.model_dump() | {"jobs": None}
        of_job = argparse.Namespace(**values | {"seed": arguments.seed if job.seed is None else job.seed})
        try:
            run = _prepare_edit(of_job, Stopwatch())
            if encoded is None or encoded[0] != of_job.negative_prompt:
                encoded = (of_job.negative_prompt, _encode_negative_prompt(pipe, of_job.negative_prompt))
            run(pipe, encoded[1])
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            num_failed += 1
            message(f"loomvideo: job {number} of {len(jobs)}, {job.output}: {one_line(error)}")
    wait_for_other_processes()
    if num_failed:
        raise LoomVideoError(f"{num_failed} of {len(jobs)} jobs failed: the others are done.")


def _encode_negative_prompt(pipe: "DiffusionPipeline", negative_prompt: str | None) -> "torch.Tensor":
    """What many edits share, encoded once."""
    import torch

    with torch.no_grad():
        return pipe.encode_negative_prompt(negative_prompt)[0]


def _use_defaults(arguments: argparse.Namespace) -> dict[str, Any]:
    """Where nothing is said, sets what the model's folder says. Returns what that is."""
    options = read_default_options(find_model(arguments.model))
    if arguments.height is not None or arguments.width is not None:
        options = {name: value for name, value in options.items() if name not in ("height", "width")}
    for name, of_argument in (
        ("height", "height"),
        ("width", "width"),
        ("num_inference_steps", "steps"),
        ("guidance_scale", "guidance_scale"),
        ("guidance_scale_visual", "guidance_scale_visual"),
        ("window_frames", "window"),
        ("window_overlap", "overlap"),
    ):
        if getattr(arguments, of_argument) is None:
            setattr(arguments, of_argument, options.get(name))
    return options


def _choose_seed(arguments: argparse.Namespace) -> None:
    """Where none is said, takes that of the edit that was broken off there, or a new one."""
    from ..footage.editing import unfinished_seed

    if arguments.seed is None:
        found = None if arguments.output is None else unfinished_seed(arguments.output)
        arguments.seed = secrets.randbelow(2**32) if found is None else found


def _describe(pipe: "DiffusionPipeline", arguments: argparse.Namespace) -> str:
    """What a result says of itself, as JSON: the command that makes it again, and what that comes to."""
    defaults = inspect.signature(pipe.__call__).parameters
    words, options = ["loomvideo", arguments.name], []
    for name, value in vars(arguments).items():
        if name in ("function", "name", "default") or value == arguments.default(name):
            continue
        if name in ("input", "prompt"):
            words.append(str(value))
        else:
            values = value if isinstance(value, list) else [] if value is True else [value]
            options += [f"--{name.replace('_', '-')}", *map(str, values)]
    description = {
        "command": shlex.join(words + options),
        "prompt": arguments.prompt,
        "model": arguments.model,
        "lora": [] if arguments.lora_scale == 0 else arguments.lora,
        "seed": arguments.seed,
    }
    for name, value in (
        ("num_inference_steps", arguments.steps),
        ("guidance_scale", arguments.guidance_scale),
        ("guidance_scale_visual", arguments.guidance_scale_visual),
    ):
        description[name] = defaults[name].default if value is None else value
    return json.dumps(description | {"loomvideo-diffusers": version("loomvideo-diffusers")})


def _load(pipeline_name: str, arguments: argparse.Namespace, stopwatch: Stopwatch) -> "DiffusionPipeline":
    import torch

    from .. import pipelines

    silence_libraries()
    device = arguments.device
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        if device == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise LoomVideoError(f"{device} is no device of this machine: choose cpu, or leave --device out.") from error
    if arguments.max_memory is not None:
        _bound_memory(device, arguments.max_memory)
    dtype = getattr(torch, arguments.dtype or ("float32" if device == "cpu" else "bfloat16"))
    with stopwatch.stage("load"):
        _check_loras(arguments)
        model = find_model(arguments.model)
        # Of a repository, the Hub's bars show how far its download is.
        with stage("Loading the model") if os.path.isdir(model) else nullcontext():
            pipe = getattr(pipelines, pipeline_name).from_pretrained(model, dtype=dtype)
        pipe.progress_bar = partial(progress_bar, desc="Denoising")
        for lora in arguments.lora:
            pipe.load_lora_weights(lora, allow_partial=arguments.lora_partial)
        if len(arguments.lora) > 1:
            pipe.set_adapters([name for names in pipe.get_list_adapters().values() for name in names])
        if arguments.cpu_offload:
            pipe.enable_model_cpu_offload(device=device)
        else:
            pipe.to(device)
    return pipe


def _check_loras(arguments: argparse.Namespace) -> None:
    """Has LoRAs that do not fit fail before the model is loaded, and says what of them is left out."""
    import torch

    from .. import LoomVideoPipeline, LoomVideoTransformer3DModel

    if not arguments.lora:
        return
    config = LoomVideoTransformer3DModel.load_config(find_model(arguments.model), subfolder="transformer")
    with torch.device("meta"):
        transformer = LoomVideoTransformer3DModel.from_config(config)
    for lora in arguments.lora:
        left_out = LoomVideoPipeline.check_lora_weights(lora, transformer, allow_partial=arguments.lora_partial)
        if left_out:
            message(f"loomvideo: {left_out}")


def _bound_memory(device: str, gigabytes: float) -> None:
    """Has what would take more of a device's memory fail: of a CPU's all that this process has, but for files."""
    import torch

    if device.startswith("cuda"):
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * 1e9 / total), device)
    elif device == "cpu" and sys.platform == "linux":
        import resource

        status = Path("/proc/self/status").read_text(encoding="ascii")
        taken = int(re.search(r"VmData:\s+(\d+)", status)[1]) * 1024
        most, least = int(gigabytes * 1e9), taken + SMALLEST_MEMORY
        if most < least:
            raise LoomVideoError(
                f"--max-memory must be {least / 1e9:.1f} or more: the libraries take {taken / 1e9:.1f} GB."
            )
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    else:
        raise LoomVideoError(f"--max-memory works on cuda, and on cpu in Linux, not on {device}: leave it out.")


def _run(
    pipe: "DiffusionPipeline", inputs: dict[str, Any], arguments: argparse.Namespace, stopwatch: Stopwatch
) -> "np.ndarray":
    """Runs a pipeline; returns the video, `[F, H, W, 3]` in [0, 1]."""
    import torch

    options = {
        "prompt": arguments.prompt,
        "negative_prompt": arguments.negative_prompt if inputs.get("negative_prompt_embeds") is None else None,
        "height": arguments.height,
        "width": arguments.width,
        "num_inference_steps": arguments.steps,
        "guidance_scale": arguments.guidance_scale,
        "guidance_scale_visual": arguments.guidance_scale_visual,
        "attention_kwargs": None if arguments.lora_scale is None else {"scale": arguments.lora_scale},
        "generator": torch.Generator("cpu").manual_seed(arguments.seed),
    }
    options = {name: value for name, value in (inputs | options).items() if value is not None}
    with stopwatch.stage("denoise"), stage("Reading the prompt"):
        latents = pipe(**options, output_type="latent").frames
    with stopwatch.stage("decode"), stage("Decoding"), torch.no_grad():
        return pipe.decode_latents(latents, "np")[0]


def _write(
    frames: "np.ndarray", pipe: "DiffusionPipeline", arguments: argparse.Namespace, stopwatch: Stopwatch
) -> None:
    """Writes the result and says what was written and how long each stage took."""
    from ..media.video import FRAMES_PER_SECOND, IMAGE_SUFFIXES, write_image, write_video

    path, comment = arguments.output, _describe(pipe, arguments)
    with stopwatch.stage("write"):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            write_image(path, frames[0], comment)
            length = "1 image"
        else:
            write_video(path, frames, show_progress=True, comment=comment)
            length = f"{len(frames)} frames at {FRAMES_PER_SECOND} a second"
    height, width = frames.shape[1:3]
    print(f"Wrote {path}: {length}, {width} x {height}, seed {arguments.seed} ({stopwatch}).")


def _write_contact_sheet(source: Any, result: Any, path: Path, comment: str = "") -> None:
    from ..media.video import contact_sheet, write_image

    write_image(path, contact_sheet([source, result]), comment)
    print(f"Wrote {path}: the source above the result.")
