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
"""Validation: samples that the pipelines make with the current weights, as videos and contact sheets."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKLWan, SchedulerMixin

from ..media import MAX_FRAMES, contact_sheet, read_video, write_image, write_video
from ..media.images import read_image
from ..pipelines import LoomVideoEditPipeline, LoomVideoPipeline
from ..progress import progress_bar
from .config import ValidationSample, ValidationSettings
from .objective import TransformerWithTextEncoder
from .processes import is_sharded


class _StoppedError(Exception):
    """Leaves a call of a pipeline."""


class Validation:
    """
    Makes samples: `prepare` encodes their prompts, after which `run` needs only the transformer and the VAE.

    Args:
        settings: which samples to make, and when.
        num_layers: how many of the MLLM's last layers the transformer reads.
        process_index, num_processes: each process makes its share.
        options: how the model says it is best called, for what the settings leave open.
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
        self.calls: dict[int, dict[str, Any]] = {}

    def is_due(self, step: int, last_step: int) -> bool:
        return step % self.settings.every == 0 or step == last_step

    def prepare(self, load_pipe: Callable[[], LoomVideoEditPipeline]) -> None:
        """Reads the inputs and encodes the prompts; the pipeline is loaded only if this process has samples."""
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
        """Whether all samples of a step are there, including those of other processes."""
        numbers = range(1, len(self.settings.samples) + 1)
        return all((folder / f"step-{step:06d}-{number}.png").exists() for number in numbers)

    def run(
        self,
        transformer: Any,
        vae: AutoencoderKLWan,
        scheduler: SchedulerMixin,
        folder: Path,
        step: int,
        should_stop: Callable[[], bool],
    ) -> dict[str, PIL.Image.Image]:
        """
        Writes each sample as `step-STEP-NUMBER.mp4`, with a contact sheet, and returns the sheets by name.

        `should_stop` is asked after each denoising step; once it is true, no more samples are made.
        """

        def stop(pipe: LoomVideoPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict:
            if should_stop():
                raise _StoppedError
            return {}

        sheets = {}
        options = self._call_options()
        for index, inputs in self.calls.items():
            source = inputs["video"] if "video" in inputs else [inputs["image"]] if "image" in inputs else None
            pipeline_class = LoomVideoPipeline if source is None else LoomVideoEditPipeline
            pipe = pipeline_class(
                text_encoder=None, processor=None, vae=vae, transformer=transformer, scheduler=scheduler
            )
            pipe.progress_bar = partial(progress_bar, desc=f"Sample {index + 1}", leave=False)
            generator = torch.Generator().manual_seed(self.settings.seed)
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

    def _call_options(self) -> dict[str, Any]:
        """What all samples are called with: the settings, or else what the model says."""
        names = ("num_inference_steps", "guidance_scale", "guidance_scale_visual")
        options = {
            name: self.options[name] for name in (*names, "window_frames", "window_overlap") if name in self.options
        }
        return options | {name: value for name in names if (value := getattr(self.settings, name)) is not None}


def validate(
    accelerator: Accelerator,
    validation: Validation,
    model: torch.nn.Module,
    pipe: LoomVideoEditPipeline | None,
    folder: str,
    samples_dir: Path,
    step: int,
    should_stop: Callable[[], bool],
) -> None:
    """
    Makes the samples of a step in all processes, and logs them.

    Args:
        accelerator: of this process.
        validation: the samples.
        model: what is trained, prepared.
        pipe: a pipeline with the VAE and the MLLM, loaded for the time being from `folder` if None.
        folder: of the model.
        samples_dir: where the samples are written.
        step: names them.
        should_stop: see `Validation.run`.
    """
    model.eval()
    transformer: Any = model if is_sharded(accelerator) else accelerator.unwrap_model(model)
    has_text_encoder = isinstance(transformer, TransformerWithTextEncoder)
    if pipe is None:
        without = {"transformer": None, "text_encoder": None} | ({} if has_text_encoder else {"processor": None})
        pipe = LoomVideoEditPipeline.from_pretrained(folder, **without).to(accelerator.device)
    if has_text_encoder:
        # The MLLM changes from step to step, and with it the prompts' hidden states.
        own = LoomVideoEditPipeline.from_pipe(pipe, text_encoder=transformer.text_encoder)
        validation.prepare(lambda: own)
        transformer = transformer.transformer
    sheets = validation.run(transformer, pipe.vae, pipe.scheduler, samples_dir, step, should_stop)
    model.train()
    images = {f"sample {name.split('-')[-1]}": np.asarray(sheet)[None] for name, sheet in sheets.items()}
    for tracker in accelerator.trackers:
        tracker.log_images(images, step=step, **({"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}))
    accelerator.wait_for_everyone()
