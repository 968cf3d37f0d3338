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
"""The settings of an edit and of a generation, checked when they are made."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import PIL.Image

from ..errors import LoomVideoError


# The VAE compresses this many frames into one.
FRAME_STEP = 4


@dataclass(frozen=True)
class SamplingSettings:
    """
    What both kinds of calls take.

    Attributes:
        prompt: what to show, or the instruction.
        references: images that the prompt calls `@Image 1`, `@Image 2`, ...
        negative_prompt: what to avoid; None for the published negative prompt.
        seed: seed of the noise, from 0 to 2^63 - 1.
        height, width: size of the model's frame in pixels, both or neither.
        num_inference_steps: denoising steps.
        sigmas: noise levels of the steps, falling, in (0, 1], in place of their number.
        guidance_scale: weight of the prompt.
        guidance_scale_visual: weight of the source and the references.
        window_frames: the most frames that are denoised at once, 4k + 1.
        window_overlap: frames that neighbouring windows share, a multiple of 4; None for a quarter of a window.
        lora_scale: weight of the LoRAs.

    Raises:
        LoomVideoError: if one of them is out of range.
        LoomVideoInputError: if a prompt is blank, or is no text.
    """

    prompt: str
    references: tuple[PIL.Image.Image, ...] = ()
    negative_prompt: str | None = None
    seed: int = 0
    height: int | None = None
    width: int | None = None
    num_inference_steps: int = 50
    sigmas: Sequence[float] | None = None
    guidance_scale: float = 5.0
    guidance_scale_visual: float = 1.5
    window_frames: int = 121
    window_overlap: int | None = None
    lora_scale: float = 1.0

    def __post_init__(self) -> None:
        from ..pipelines.loomvideo_guidance import check_sigmas
        from ..pipelines.loomvideo_mllm import check_prompt

        if self.sigmas is not None:
            check_sigmas(self.sigmas)
        check_prompt(self.prompt)
        if self.negative_prompt is not None:
            check_prompt(self.negative_prompt, "The negative prompt", may_be_blank=True)
        if (self.height is None) != (self.width is None):
            raise LoomVideoError("Only one of `height` and `width` was given: give both, or neither.")
        for name in ("height", "width", "num_inference_steps", "window_frames"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Integral) or value < 1):
                raise LoomVideoError(f"`{name}` must be a positive integer, but is {value}.")
        for name in ("guidance_scale", "guidance_scale_visual", "lora_scale"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not math.isfinite(value):
                raise LoomVideoError(f"`{name}` must be a finite number, but is {value}.")
        if not isinstance(self.seed, Integral) or not 0 <= self.seed < 2**63:
            raise LoomVideoError(f"`seed` must be from 0 to 2^63 - 1, but is {self.seed}.")
        if self.window_frames % FRAME_STEP != 1:
            raise LoomVideoError(f"`window_frames` must be 4k + 1, such as 121, but is {self.window_frames}.")
        overlap = self.window_overlap
        if overlap is not None and (overlap % FRAME_STEP or not 0 <= overlap < self.window_frames):
            raise LoomVideoError(
                f"`window_overlap` must be a multiple of 4 below the {self.window_frames} frames of a window, but is "
                f"{overlap}."
            )


@dataclass(frozen=True)
class EditSettings(SamplingSettings):
    """
    What an edit takes besides: see `SamplingSettings`.

    Attributes:
        height, width: by default the trained size whose proportions are nearest to the clip's; of an image, its own.
        max_crop: the share of each picture that may be cropped at its edges so that it fills the model's frame; what
            is cropped stays unedited. The rest of the frame is filled by repeating the picture's edge.
        keep_unchanged: whether to take what the edit left unchanged from the clip, at its full resolution.
        mask_feather: over how many pixels of the clip, within its mask, the result rises from the mask's border.
        strength: with less than 1, denoising begins with the noised source, that share of the steps before the end.
    """

    guidance_scale: float = 2.5
    max_crop: float = 0.0
    keep_unchanged: bool = False
    mask_feather: int = 4
    strength: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.mask_feather, Integral) or self.mask_feather < 0:
            raise LoomVideoError(f"`mask_feather` must be a whole number from 0, but is {self.mask_feather}.")
        if not isinstance(self.strength, Real) or not 0 <= self.strength <= 1:
            raise LoomVideoError(f"`strength` must be from 0 to 1, but is {self.strength}.")
        if not 0 <= self.max_crop < 1:
            raise LoomVideoError(f"`max_crop` must be at least 0 and below 1, but is {self.max_crop}.")


@dataclass(frozen=True)
class GenerationSettings(SamplingSettings):
    """
    What a generation takes besides: see `SamplingSettings`.

    Attributes:
        height, width: by default 480 x 832, or with references the trained size nearest to the first one's shape.
        num_frames: length of the video at 24 frames a second, 4k + 1; 1 makes an image.
    """

    num_frames: int = 81

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.num_frames, Integral) or self.num_frames < 1 or self.num_frames % FRAME_STEP != 1:
            raise LoomVideoError(f"`num_frames` must be 4k + 1 (1, 5, 9, ...), but is {self.num_frames}.")
