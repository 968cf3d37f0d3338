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
"""Samples on the way: what the pipelines make with the weights of the moment, as videos and contact sheets."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from diffusers import AutoencoderKLWan, SchedulerMixin

from ..media.video import MAX_FRAMES, contact_sheet, read_image, read_video, write_image, write_video
from ..pipelines import LoomVideoEditPipeline, LoomVideoPipeline
from ..progress import progress_bar
from .config import ValidationSample, ValidationSettings


class _StoppedError(Exception):
    """Ends a call of a pipeline."""


class Validation:
    """
    Makes samples, in steps: once their prompts are encoded, only transformer and VAE are needed.

    Args:
        settings: what to make.
        num_layers: how many of the MLLM's last layers the transformer reads.
        process_index, num_processes: every process makes its share.
        options: what the model says of how it is best called, for what the settings leave open.
    """

    def __init__(
        self,
        settings: ValidationSettings,
        num_layers: int,
        process_index: int,
        num_processes: int,
        options: dict[str, Any],
    ):
        self.settings = settings
        self.num_layers = num_layers
        self.options = options
        self.indices = range(process_index, len(settings.samples), num_processes)
        self.calls = {}

    def prepare(self, load_pipe: Callable[[], LoomVideoEditPipeline]) -> None:
        """Reads the inputs and encodes the prompts with a pipeline, loaded only if there is something to encode."""
        for index in self.indices:
            self.calls[index] = self._prepare(self.settings.samples[index], load_pipe())

    def _prepare(self, sample: ValidationSample, pipe: LoomVideoEditPipeline) -> dict[str, Any]:
        """The arguments of a sample's call: pixels, size, and embeds in place of the prompt."""
        inputs = {name: getattr(sample, name) for name in ("height", "width", "num_frames")}
        if sample.height is None:
            inputs |= {name: self.options.get(name) for name in ("height", "width")}
        if sample.num_frames is None and sample.image is None:
            inputs["num_frames"] = self.options.get("num_frames")
        inputs = {name: value for name, value in inputs.items() if value is not None}
        if sample.video is not None:
            inputs["video"] = read_video(sample.video, max_frames=inputs.get("num_frames", MAX_FRAMES))
            inputs["num_frames"] = len(inputs["video"])
        if sample.image is not None:
            inputs["image"] = read_image(sample.image)
        if sample.reference_images:
            inputs["reference_images"] = [read_image(path) for path in sample.reference_images]
        if not {"video", "image"} & set(inputs):
            pipe = LoomVideoPipeline(**pipe.components)
        with torch.no_grad():
            embeds = pipe.encode_prompt(sample.prompt, **inputs)
        for name, tensor in zip(("prompt_embeds", "visual_prompt_embeds", "negative_prompt_embeds"), embeds[::2]):
            if tensor is not None:
                inputs[name] = tensor[:, -self.num_layers :].cpu()
        return inputs

    def is_complete(self, folder: Path, step: int) -> bool:
        """Whether all samples of a step are there, those of the other processes too."""
        numbers = range(1, len(self.settings.samples) + 1)
        return all((folder / f"step-{step:06d}-{number}.png").exists() for number in numbers)

    def run(
        self,
        transformer: torch.nn.Module,
        vae: AutoencoderKLWan,
        scheduler: SchedulerMixin,
        folder: Path,
        step: int,
        should_stop: Callable[[], bool],
    ) -> dict[str, PIL.Image.Image]:
        """
        Writes each sample as `step-STEP-NUMBER.mp4`, with a contact sheet; returns the sheets by name.

        As soon as `should_stop` says so, which it is asked after each step, it makes no more of them.
        """

        def stop(pipe: LoomVideoPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict:
            if should_stop():
                raise _StoppedError
            return {}

        sheets = {}
        settings = self.settings
        options = {}
        for name in ("num_inference_steps", "guidance_scale", "guidance_scale_visual"):
            value = self.options.get(name) if getattr(settings, name) is None else getattr(settings, name)
            if value is not None:
                options[name] = value
        options |= {name: self.options[name] for name in ("window_frames", "window_overlap") if name in self.options}
        for index, inputs in self.calls.items():
            source = inputs["video"] if "video" in inputs else [inputs["image"]] if "image" in inputs else None
            pipeline_class = LoomVideoPipeline if source is None else LoomVideoEditPipeline
            pipe = pipeline_class(
                text_encoder=None, processor=None, vae=vae, transformer=transformer, scheduler=scheduler
            )
            pipe.progress_bar = partial(progress_bar, desc=f"Sample {index + 1}", leave=False)
            generator = torch.Generator().manual_seed(settings.seed)
            try:
                frames = pipe(**inputs, **options, generator=generator, callback_on_step_end=stop).frames[0]
            except _StoppedError:
                break
            name = f"step-{step:06d}-{index + 1}"
            if len(frames) > 1:
                write_video(folder / f"{name}.mp4", frames)
            sheets[name] = contact_sheet([frames] if source is None else [source[: len(frames)], frames])
            write_image(folder / f"{name}.png", sheets[name])
        return sheets
