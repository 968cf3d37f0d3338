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
"""The plan of a video or an image that is generated from a prompt, and from references."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL.Image

from ..media import FRAMES_PER_SECOND, VIDEO_SUFFIXES, write_image, write_video
from ..media.files import check_output_path
from ..media.images import IMAGE_SUFFIXES
from .plan import Report, check_distinct, paths_among, read_references
from .settings import GenerationSettings


if TYPE_CHECKING:
    import torch

    from ..pipelines import LoomVideoPipeline


@dataclass(frozen=True)
class GenerationPlan:
    """
    A checked generation, made by `plan_generation`.

    Attributes:
        settings: what to generate.
        output: the file to write.
        comment: what the file says about itself.
        notes: what a person should know before the generation runs, a sentence each.
    """

    settings: GenerationSettings
    output: Path
    comment: str = ""
    notes: tuple[str, ...] = ()

    @property
    def duration(self) -> float:
        """The length of the video in seconds; 0 of an image."""
        return 0.0 if self.settings.num_frames == 1 else self.settings.num_frames / FRAMES_PER_SECOND

    def run(
        self,
        pipe: "LoomVideoPipeline",
        negative_prompt_embeds: "torch.Tensor | None" = None,
        callback_on_step_end: Callable | None = None,
    ) -> Report:
        """
        Generates and writes.

        Args:
            pipe: the pipeline.
            negative_prompt_embeds: as for `EditPlan.run`.
            callback_on_step_end: called after each step, as in a pipeline's call, with the `latents`.

        Raises:
            LoomVideoInputError: if a setting does not fit the pipeline.
            OSError: if the file cannot be written.
        """
        from ..progress import Stopwatch
        from .run import call_pipeline, given_negative_prompt

        stopwatch, settings = Stopwatch(), self.settings
        inputs = {"num_frames": settings.num_frames, "callback_on_step_end": callback_on_step_end}
        inputs |= given_negative_prompt(negative_prompt_embeds)
        frames = call_pipeline(pipe, settings, stopwatch, **inputs)
        if not pipe.is_leader:
            return Report({})
        with stopwatch.stage("write"):
            if settings.num_frames == 1:
                write_image(self.output, frames[0], self.comment)
            else:
                write_video(self.output, frames, show_progress=True, comment=self.comment)
        is_image = settings.num_frames == 1
        length = "1 image" if is_image else f"{len(frames)} frames at {FRAMES_PER_SECOND} a second"
        height, width = frames.shape[1:3]
        return Report({self.output: f"{length}, {width} x {height}, seed {settings.seed}"}, stopwatch.seconds)


def plan_generation(
    prompt: str,
    output: str | os.PathLike,
    *,
    references: Sequence[str | os.PathLike | PIL.Image.Image] = (),
    num_frames: int | None = None,
    comment: str = "",
    **settings: Any,
) -> GenerationPlan:
    """
    Plans a video or an image.

    Args:
        prompt: what to show.
        output: the file to write, ending in one of `VIDEO_SUFFIXES`, or for one frame in one of `IMAGE_SUFFIXES`.
        references: images, or their files, that the prompt calls `@Image 1`, `@Image 2`, ...
        num_frames: length of the video at 24 frames a second, 4k + 1; by default 1 for an image file, or else 81.
        comment: what the file is to say about itself.
        **settings: the other fields of `GenerationSettings`.

    Raises:
        LoomVideoError: if a setting is out of range, a reference cannot be read, or the file could not be written.
        LoomVideoInputError: if a prompt is blank, or is no text.
    """
    path = Path(output)
    if num_frames is None:
        num_frames = 1 if path.suffix.lower() in IMAGE_SUFFIXES else GenerationSettings.num_frames
    checked = GenerationSettings(prompt, num_frames=num_frames, **settings)
    check_distinct([path], paths_among(references))
    check_output_path(path, IMAGE_SUFFIXES if num_frames == 1 else VIDEO_SUFFIXES)
    return GenerationPlan(replace(checked, references=read_references(references)), path, comment)
