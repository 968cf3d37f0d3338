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
"""LoomVideo: videos and images edited by instruction, with or without reference images."""

from .loomvideo_versions import check_diffusers  # isort: skip  # noqa: F401, before what may fail

import importlib
import math
import os
import re
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL.Image
import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import replace_example_docstring


if __name__.startswith("diffusers_modules.") and ".loomvideo_code_" not in __name__:
    # Diffusers lays the code of all folders into one, and runs it anew at each load. It runs once instead, as a
    # package named by its content: no folder changes what another runs, and other processes can unpickle its classes.
    _path = Path(__file__)
    _names = {_path.stem, *re.findall(r"^\s*from \.(\w+) import", _path.read_text(encoding="utf-8"), re.MULTILINE)}
    _code = {f"{name}.py": _path.with_name(f"{name}.py").read_bytes() for name in sorted(_names)}
    _package = _path.with_name(f"loomvideo_code_{sha256(repr(_code).encode()).hexdigest()[:16]}")
    _package.mkdir(exist_ok=True)
    for _name, _content in _code.items():
        _part = _package / f"{_name}.{os.getpid()}"
        _part.write_bytes(_content)
        _part.replace(_package / _name)
    importlib.invalidate_caches()
    _module = importlib.import_module(f"{__package__}.{_package.name}.{_path.stem}")
    del sys.modules[__name__]
    __name__, __package__, __spec__ = _module.__name__, _module.__package__, _module.__spec__  # type: ignore[assignment]

from .loomvideo_base import LoomVideoBase, check_only_one, count_prompts
from .loomvideo_errors import LoomVideoInputError
from .loomvideo_frames import (
    Image,
    Video,
    cut_frames,
    fit_all,
    mllm_frames,
    to_clips,
    to_references,
    to_single_frame_clips,
)
from .loomvideo_guidance import divide_into_windows
from .loomvideo_lora import LoomVideoLoraLoaderMixin
from .loomvideo_masks import Mask, feather, to_latent_mask, to_masks
from .loomvideo_mllm import PROMPT_PREFIXES, PromptEmbeds
from .loomvideo_output import LoomVideoPipelineOutput
from .loomvideo_repository import LoomVideoHubMixin
from .loomvideo_sharing import one_call_at_a_time


# Diffusers fetches what this file names, and of the transformer the entry file alone: its siblings are named, not run.
from .loomvideo_lora_files import read_lora_file  # noqa: F401 isort: skip
from .loomvideo_lora_weights import prepare_lora  # noqa: F401 isort: skip
from .loomvideo_vae import to_pixel_values


from .loomvideo_vae_layers import use_fast_layers  # noqa: F401 isort: skip

if TYPE_CHECKING:
    from .transformer.transformer_loomvideo_kv_cache import LoomVideoKVCache  # type: ignore[import-not-found]  # noqa: F401
    from .transformer.transformer_loomvideo_single_file import LoomVideoSingleFileMixin  # type: ignore[import-not-found]  # noqa: F401
    from .transformer.transformer_loomvideo_step_caches import LoomVideoCacheMixin  # type: ignore[import-not-found]  # noqa: F401


EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch
        >>> from loomvideo_diffusers import LoomVideoEditPipeline
        >>> from loomvideo_diffusers.media import read_video, write_video

        >>> pipe = LoomVideoEditPipeline.from_pretrained("path-or-repo", dtype=torch.bfloat16).to("cuda")
        >>> video = read_video("fox.mp4")
        >>> frames = pipe("turn the snow into autumn leaves", video=video).frames[0]
        >>> write_video("leaves.mp4", frames)
        ```
"""


class LoomVideoEditPipeline(
    LoomVideoHubMixin,
    LoomVideoBase,
    LoomVideoLoraLoaderMixin,
    DiffusionPipeline,
):
    r"""
    Edits videos and images with LoomVideo (arXiv 2606.06042) by instruction, with or without reference images.

    Args:
        text_encoder (`Qwen3VLModel`):
            The multimodal LLM whose decoder layers condition the transformer's blocks.
        processor (`Qwen3VLProcessor`):
            Its processor.
        vae (`AutoencoderKLWan`):
            The Wan2.2 VAE.
        transformer (`LoomVideoTransformer3DModel`):
            The diffusion transformer.
        scheduler (`UniPCMultistepScheduler`):
            UniPC, or any other flow-matching scheduler.
        default_options (`dict`, *optional*):
            What the model is best called with where that is not what the signature says: `height`, `width`,
            `num_frames`, `num_inference_steps`, `guidance_scale`, ... It is saved with the pipeline, and the command
            line and training go by it; a call in Python does not.
        auto_map (`dict`, *optional*):
            Where Modular Diffusers finds the class of the transformer, in a folder with its code. Not used here.
    """

    def check_inputs(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None,
        video: Video | list[Video] | None,
        image: Image | list[Image] | None,
        height: int | None,
        width: int | None,
        num_frames: int | None,
        num_inference_steps: int,
        sigmas: list[float] | None,
        guidance_scale: float,
        guidance_scale_visual: float,
        num_videos_per_prompt: int,
        generator: torch.Generator | list[torch.Generator] | None,
        given: dict[str, PromptEmbeds],
        output_type: str,
        callback_on_step_end_tensor_inputs: list[str],
        guidance_interval: tuple[float, float],
        window_frames: int,
        window_overlap: int | None,
    ) -> int:
        """Checks the arguments of a call, and returns how many prompts it has. `given` are embeds with their masks."""
        check_only_one(video=video, image=image)
        if image is not None and num_frames not in (None, 1):
            raise LoomVideoInputError(f"`num_frames` is {num_frames}, but an image has one frame: pass a `video`.")
        self.check_components("vae", "transformer", "scheduler")
        batch_size = self.check_prompts(prompt, negative_prompt, given)
        self.check_size(height, width, num_frames, window_frames, window_overlap)
        self.check_sampling(num_inference_steps, guidance_scale, guidance_scale_visual, guidance_interval, sigmas)
        self.check_outputs(
            batch_size, num_videos_per_prompt, generator, output_type, callback_on_step_end_tensor_inputs
        )
        return batch_size

    def prepare_sources(
        self,
        video: Video | list[Video] | None,
        image: Image | list[Image] | None,
        reference_images: Image | list[Image] | list[list[Image]] | None,
        batch_size: int,
        height: int | None,
        width: int | None,
        num_frames: int | None,
    ) -> tuple[list[list[PIL.Image.Image]], list[list[PIL.Image.Image]], int, int, list[tuple[int, int]]]:
        """
        Reads the source clips and the references of all samples, cuts the clips to length, and fits everything to the
        size of the result, by default the source's own, rounded down to what the latents can have.

        Returns:
            The clips, the references, height and width, and the width and height that each clip had.
        """
        if video is not None:
            clips = to_clips(video, batch_size)
        else:
            assert image is not None
            clips = to_single_frame_clips(image, batch_size)
        clips = cut_frames(clips, num_frames, self.vae_scale_factor_temporal)
        references = to_references(reference_images, batch_size)
        if height is None or width is None:
            step = self.size_step
            sizes = {(clip[0].height // step * step, clip[0].width // step * step) for clip in clips}
            if len(sizes) > 1:
                raise LoomVideoInputError(
                    f"`video` or `image` holds sources of {sorted(sizes)} pixels: pass a common `height` and `width`."
                )
            height, width = sizes.pop()
            if 0 in (height, width):
                raise LoomVideoInputError(
                    f"A `video` or `image` smaller than {step} x {step} needs a `height` and `width`: pass them."
                )
        sizes_before = [clip[0].size for clip in clips]
        return fit_all(clips, height, width), fit_all(references, height, width), height, width, sizes_before

    def begin_with_source(
        self, noise: torch.Tensor, source_latents: torch.Tensor, timesteps: torch.Tensor, strength: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Noises the source to where a share of the steps remain.

        Returns:
            The noised latents, and the timesteps that remain.
        """
        if strength == 1:
            return noise, timesteps
        order = self.scheduler.order
        num_steps = math.ceil(len(timesteps) / order)
        first = (num_steps - min(num_steps, round(num_steps * strength))) * order
        first = min(first, len(timesteps))
        sigma = self.scheduler.sigmas[first]
        return (1 - sigma) * source_latents + sigma * noise, timesteps[first:]

    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        video: Video | list[Video] | None = None,
        image: Image | list[Image] | None = None,
        reference_images: Image | list[Image] | list[list[Image]] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        window_frames: int = 121,
        do_classifier_free_guidance: bool = True,
        num_videos_per_prompt: int = 1,
        prompt_embeds: torch.Tensor | None = None,
        prompt_embeds_mask: torch.Tensor | None = None,
        visual_prompt_embeds: torch.Tensor | None = None,
        visual_prompt_embeds_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds_mask: torch.Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> tuple[Any, ...]:
        r"""
        Encodes instructions with the MLLM. What it returns can be passed to a call in place of the prompts.

        Args:
            prompt, negative_prompt, video, image, reference_images, height, width, num_frames, window_frames:
                As in a call, with the same defaults.
            do_classifier_free_guidance (`bool`, defaults to `True`):
                Whether to encode the visual and the negative branch too.
            num_videos_per_prompt (`int`, defaults to 1):
                How often to repeat each prompt's embeds.
            prompt_embeds, visual_prompt_embeds, negative_prompt_embeds (`torch.Tensor`, *optional*):
                Hidden states `[B, num_layers, L, mllm_dim]` that are encoded already, and their masks, bool `[B, L]`,
                False where a token is padding, or None where none is.
            device (`torch.device` or `str`, *optional*):
                Where the embeds are to be; by default where the pipeline runs.

        Returns:
            `tuple`: what a call takes in place of what was given here. First `prompt_embeds`, `prompt_embeds_mask`,
            `visual_prompt_embeds`, `visual_prompt_embeds_mask`, `negative_prompt_embeds` and
            `negative_prompt_embeds_mask`; None where guidance needs no such branch. Of a pipeline without a
            transformer, the embeds hold all layers of the MLLM; a call takes the ones it needs. Then as given:
            `video`, `image`, `reference_images`, `height`, `width`, `num_frames` and `window_frames`.
        """
        check_only_one(video=video, image=image)
        check_only_one(prompt=prompt, prompt_embeds=prompt_embeds)
        batch_size = count_prompts(prompt, prompt_embeds)
        clips, references, _, _, _ = self.prepare_sources(
            video, image, reference_images, batch_size, height, width, num_frames
        )
        embeds = self.encode_branches(
            prompt_prefix=PROMPT_PREFIXES["edit image" if video is None else "edit video", bool(references[0])],
            prompt=prompt,
            negative_prompt=negative_prompt,
            references=references,
            sources=[clip[0] if video is None else mllm_frames(clip, window_frames) for clip in clips],
            do_classifier_free_guidance=do_classifier_free_guidance,
            num_videos_per_prompt=num_videos_per_prompt,
            given={
                "prompt_embeds": (prompt_embeds, prompt_embeds_mask),
                "visual_prompt_embeds": (visual_prompt_embeds, visual_prompt_embeds_mask),
                "negative_prompt_embeds": (negative_prompt_embeds, negative_prompt_embeds_mask),
            },
            device=device,
        )
        prompt_embeds, prompt_embeds_mask, visual_prompt_embeds, visual_prompt_embeds_mask = embeds[:4]
        negative_prompt_embeds, negative_prompt_embeds_mask = embeds[4:]
        return (
            prompt_embeds,
            prompt_embeds_mask,
            visual_prompt_embeds,
            visual_prompt_embeds_mask,
            negative_prompt_embeds,
            negative_prompt_embeds_mask,
            video,
            image,
            reference_images,
            height,
            width,
            num_frames,
            window_frames,
        )

    @one_call_at_a_time
    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        video: Video | list[Video] | None = None,
        image: Image | list[Image] | None = None,
        reference_images: Image | list[Image] | list[list[Image]] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int = 50,
        sigmas: list[float] | None = None,
        guidance_scale: float = 2.5,
        guidance_scale_visual: float = 1.5,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_embeds_mask: torch.Tensor | None = None,
        visual_prompt_embeds: torch.Tensor | None = None,
        visual_prompt_embeds_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds_mask: torch.Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        use_kv_cache: bool = True,
        window_frames: int = 121,
        window_overlap: int | None = None,
        mask: Mask | None = None,
        mask_feather: int = 4,
        strength: float = 1.0,
    ) -> LoomVideoPipelineOutput | tuple:
        r"""
        Edits videos or images.

        Args:
            prompt (`str` or `list[str]`, *optional*):
                The instruction. It can call references `@Image 1`, `@Image 2`, ...
            negative_prompt (`str` or `list[str]`, *optional*):
                What to avoid; by default the published negative prompt. Not used when guidance is off.
            video (clip or `list` of clips, *optional*):
                The source, at 24 frames a second: a list of frames (PIL images, or arrays as for `image`), or an array
                `[F, H, W, 3]` or `[F, 3, H, W]` of uint8 or of floats in [0, 1]. One clip is for all prompts; a list
                of clips, or an array of 5 dimensions, has one for each. Either `video` or `image` must be given.
            image (image or `list` of images, *optional*):
                The source: a PIL image, or an array `[H, W, 3]` or `[3, H, W]`; likewise one for all or one for each.
            reference_images (image, `list` or `list[list]`, *optional*):
                Images of what the edit is to bring in, like `image`. A list is for all prompts, a list of lists has
                one list for each prompt.
            height, width (`int`, *optional*):
                Size in pixels, multiples of 32; by default the source's, rounded down. Sources and references are
                scaled until they cover it and cropped.
            num_frames (`int`, *optional*):
                How many frames to edit, 4k + 1; by default as many as the source has.
            num_inference_steps (`int`, defaults to 50):
                Denoising steps.
            sigmas (`list[float]`, *optional*):
                Noise levels of the steps, falling, above 0 and at most 1, in place of `num_inference_steps`, for
                schedulers whose `set_timesteps` takes them. The scheduler's shift is applied to them.
            guidance_scale (`float`, defaults to 2.5):
                How much the words count, `s_t` of the paper's cascaded guidance. Guidance is off when neither scale is
                above 1.
            guidance_scale_visual (`float`, defaults to 1.5):
                How much the source and the references count, `s_v`. At 1, or at the value of `guidance_scale`, one of
                the three branches drops out and a step takes a third less.
            num_videos_per_prompt (`int`, defaults to 1):
                Videos for each prompt.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                Source of the noise; a list has one for each video, which makes a batch equal its single calls.
            latents (`torch.Tensor`, *optional*):
                The initial noise, `[B, C, T, h, w]`, in place of one drawn from `generator`.
            prompt_embeds, visual_prompt_embeds, negative_prompt_embeds (`torch.Tensor`, *optional*):
                What `encode_prompt` returned, in place of `prompt` and `negative_prompt`, and their masks. Those not
                given are encoded.
            output_type (`str`, defaults to `"np"`):
                `"np"`, `"pt"`, `"pil"` or `"latent"`, see [`LoomVideoPipelineOutput`].
            return_dict (`bool`, defaults to `True`):
                Whether to return a [`LoomVideoPipelineOutput`] or a tuple.
            attention_kwargs (`dict`, *optional*):
                `scale` is the weight of the active LoRA adapters.
            callback_on_step_end (`Callable`, *optional*):
                Called after each step as `callback(pipe, step, timestep, callback_kwargs)`. It returns a dict with
                which it can replace tensors it was given, can change `pipe._guidance_scale` and
                `pipe._guidance_scale_visual`, and end the loop by `pipe._interrupt = True`.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to `["latents"]`):
                Which of `latents`, `prompt_embeds`, `visual_prompt_embeds`, `negative_prompt_embeds` and their masks
                (`prompt_embeds_mask`, ...) it gets.
            guidance_interval (`tuple[float, float]`, defaults to `(0.0, 1.0)`):
                The part of the steps that is guided, as shares of them. In the others the words' branch runs alone,
                which is faster and an approximation.
            use_kv_cache (`bool`, defaults to `True`):
                Whether to keep what is the same in all steps, see `LoomVideoKVCache`; `pipe.kv_cache_nbytes` is what
                that took.
            window_frames (`int`, defaults to 121):
                The longest video, 4k + 1 frames, that the transformer sees at once. A longer one is denoised in
                windows, whose predictions are blended at each step where they overlap.
            window_overlap (`int`, *optional*):
                Frames that neighbouring windows share at least, a multiple of 4; by default a quarter of a window.
            mask (image, clip or `list`, *optional*):
                What may change: white, 1 or True in a PIL image, or in an array `[H, W]` of floats in [0, 1], bool or
                uint8; for all frames, or one for each as a list or an array `[F, H, W]`. A list of clips, or an array
                of 4 dimensions, has one for each prompt; of images, a list has. Masks are stretched to the source's
                size. What is outside stays the source's, pixel for pixel.
            mask_feather (`int`, defaults to 4):
                Over how many pixels, within the mask, the result rises from its border.
            strength (`float`, defaults to 1.0):
                With less than 1, denoising begins with the noised source, that share of the steps before the end; at 0
                the source comes back.

        Returns:
            [`LoomVideoPipelineOutput`], or a tuple with the frames.

        Raises:
            TypeError, LoomVideoInputError: if an argument is wrong; before any model runs.

        Examples:
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs

        # 1. Check the arguments
        given: dict[str, PromptEmbeds] = {
            "prompt_embeds": (prompt_embeds, prompt_embeds_mask),
            "visual_prompt_embeds": (visual_prompt_embeds, visual_prompt_embeds_mask),
            "negative_prompt_embeds": (negative_prompt_embeds, negative_prompt_embeds_mask),
        }
        batch_size = self.check_inputs(
            prompt=prompt,
            negative_prompt=negative_prompt,
            video=video,
            image=image,
            height=height,
            width=width,
            num_frames=num_frames,
            num_inference_steps=num_inference_steps,
            sigmas=sigmas,
            guidance_scale=guidance_scale,
            guidance_scale_visual=guidance_scale_visual,
            num_videos_per_prompt=num_videos_per_prompt,
            generator=generator,
            given=given,
            output_type=output_type,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            guidance_interval=guidance_interval,
            window_frames=window_frames,
            window_overlap=window_overlap,
        )
        if not isinstance(mask_feather, int) or mask_feather < 0:
            raise LoomVideoInputError(f"`mask_feather` must be a whole number from 0, but is {mask_feather}.")
        if not isinstance(strength, (int, float)) or not 0 <= strength <= 1:
            raise LoomVideoInputError(f"`strength` must be from 0 to 1, but is {strength}.")
        self.begin_call(guidance_scale, guidance_scale_visual, attention_kwargs)

        # 2. Read the sources and references and fit them to the size of the result, and make the noise
        clips, references, height, width, sizes = self.prepare_sources(
            video, image, reference_images, batch_size, height, width, num_frames
        )
        num_frames, step = len(clips[0]), self.vae_scale_factor_temporal
        masks = latent_mask = pixel_values = None
        if mask is not None:
            masks = to_masks(mask, sizes, num_frames, height, width).repeat_interleave(num_videos_per_prompt, dim=0)
            latent_mask = to_latent_mask(masks, self.vae_scale_factor_spatial, step).to(self._execution_device)
            masks = feather(masks, mask_feather)
            pixel_values = torch.cat([to_pixel_values(clip) for clip in clips])
            pixel_values = pixel_values.repeat_interleave(num_videos_per_prompt, dim=0)
        latents = self.prepare_latents(
            batch_size * num_videos_per_prompt, num_frames, height, width, generator, latents, window_frames
        )

        # 3. Encode the prompts
        embeds = self.encode_branches(
            prompt_prefix=PROMPT_PREFIXES["edit image" if video is None else "edit video", bool(references[0])],
            prompt=prompt,
            negative_prompt=negative_prompt,
            references=references,
            sources=[clip[0] if video is None else mllm_frames(clip, window_frames) for clip in clips],
            do_classifier_free_guidance=self.do_classifier_free_guidance,
            num_videos_per_prompt=num_videos_per_prompt,
            given=given,
        )

        # 4. Encode the sources and the references
        source_latents = self.prepare_clip_latents(clips, num_videos_per_prompt)
        reference_latents = self.prepare_reference_latents(references, num_videos_per_prompt)

        # 5. Denoise
        with self.denoising():
            timesteps = self.prepare_timesteps(num_inference_steps, sigmas)
            noise = latents
            latents, timesteps = self.begin_with_source(noise, source_latents, timesteps, strength)
            latents = self.denoise(
                latents=latents,
                timesteps=timesteps,
                embeds=embeds,
                source_latents=source_latents,
                reference_latents=reference_latents,
                windows=divide_into_windows(num_frames, window_frames, window_overlap, step),
                generator=generator,
                callback_on_step_end=callback_on_step_end,
                callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
                guidance_interval=guidance_interval,
                use_kv_cache=use_kv_cache,
                latent_mask=latent_mask,
                noise=noise,
            )

        # 6. Decode
        frames = self.decode_latents(latents, output_type, masks, pixel_values)
        self.maybe_free_model_hooks()

        if not return_dict:
            return (frames,)
        return LoomVideoPipelineOutput(frames=frames)


if "_module" in globals():
    # The classes are those of the package.
    globals().update(vars(_module))
