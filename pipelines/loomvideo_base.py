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
"""What the two pipelines are alike in: their components, the checks, and the steps from pixels to latents and back."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from numbers import Integral, Real
from typing import Any, Protocol, runtime_checkable

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKLWan, SchedulerMixin, UniPCMultistepScheduler
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.configuration_utils import FrozenDict
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from transformers import Qwen3VLModel, Qwen3VLProcessor

from .loomvideo_errors import LoomVideoInputError
from .loomvideo_guidance import (
    BRANCHES,
    BranchCaches,
    Combine,
    check_sigmas,
    exchange_predictions,
    follow,
    guidance_coefficients,
    guided_steps,
    weigh,
)
from .loomvideo_masks import keep_latents
from .loomvideo_mllm import (
    DEFAULT_NEGATIVE_PROMPT,
    NEGATIVE_PROMPT_PREFIX,
    PromptEmbeds,
    check_prompt,
    keep_vision_only,
    run_mllm,
    tokenize,
)
from .loomvideo_sharing import hold, lock_of
from .loomvideo_vae import decode, decode_in_chunks, encode, encode_in_chunks, speed_up, to_pixel_values


# Latent frames that the VAE decodes at once: those of small pictures take half as long so.
MOST_AT_ONCE = 4
PIXELS_AT_ONCE = 480 * 832

OUTPUT_TYPES = ("np", "pt", "pil", "latent")


@runtime_checkable
class LoomVideoTransformer3DModel(Protocol):
    """What a pipeline uses of the transformer, whose own file lies in another folder of a repository."""

    config: FrozenDict
    dtype: torch.dtype

    def create_kv_cache(self, tokens: Any = None) -> Any: ...

    def cache_context(self, name: str) -> AbstractContextManager: ...

    def prepare_cache(self, num_inference_steps: int) -> None: ...

    def __call__(self, hidden_states: torch.Tensor, timestep: torch.Tensor, **inputs: Any) -> Any: ...


class LoomVideoTinyDecoder(Protocol):
    """What a pipeline uses of a decoder that takes the place of the VAE's."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor: ...

    def decode_in_chunks(self, latents: torch.Tensor, chunk_size: int = 1) -> Iterator[torch.Tensor]: ...


class LoomVideoBase:
    """
    Goes before `DiffusionPipeline` in the bases of a pipeline.

    Components can be None where a call does not need them: prompts can be encoded by a pipeline that has nothing but
    the MLLM, for one that has no MLLM.
    """

    text_encoder: Qwen3VLModel
    processor: Qwen3VLProcessor
    vae: AutoencoderKLWan
    transformer: LoomVideoTransformer3DModel
    scheduler: SchedulerMixin

    # What decodes in place of the VAE, if it is set
    vae_decoder: LoomVideoTinyDecoder | None = None
    # How many latent frames the VAE takes at once in `encode_in_chunks` and `decode_in_chunks`, if that is set
    vae_chunk_size: int | None = None
    # Of several processes that share a call, those with a branch of guidance each, and whether this one is to decode
    branch_group: Any = None
    is_leader = True

    # Of `DiffusionPipeline`
    _execution_device: torch.device
    progress_bar: Callable[..., Any]
    register_modules: Callable[..., None]
    register_to_config: Callable[..., None]

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["text_encoder", "processor", "vae", "transformer", "scheduler"]
    _callback_tensor_inputs = [
        "latents",
        "prompt_embeds",
        "prompt_embeds_mask",
        "visual_prompt_embeds",
        "visual_prompt_embeds_mask",
        "negative_prompt_embeds",
        "negative_prompt_embeds_mask",
    ]

    def __init__(
        self,
        text_encoder: Qwen3VLModel,
        processor: Qwen3VLProcessor,
        vae: AutoencoderKLWan,
        transformer: LoomVideoTransformer3DModel,
        scheduler: UniPCMultistepScheduler,
        default_options: dict | None = None,
        auto_map: dict | None = None,
    ):
        super().__init__()
        self.register_to_config(default_options=default_options)
        self.register_modules(
            text_encoder=text_encoder, processor=processor, vae=vae, transformer=transformer, scheduler=scheduler
        )
        if vae is not None:
            speed_up(vae)
        self.vae_scale_factor_temporal = self.vae.config.scale_factor_temporal if vae is not None else 4
        self.vae_scale_factor_spatial = self.vae.config.scale_factor_spatial if vae is not None else 16
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_scale_factor_spatial)

    @property
    def size_step(self) -> int:
        """What height and width must be multiples of: the VAE's compression times the transformer's patches, 32."""
        transformer = getattr(self, "transformer", None)
        return self.vae_scale_factor_spatial * (transformer.config.patch_size[1] if transformer is not None else 2)

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def guidance_scale_visual(self) -> float:
        return self._guidance_scale_visual

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1 or self._guidance_scale_visual > 1

    @property
    def attention_kwargs(self) -> dict[str, Any] | None:
        return self._attention_kwargs

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def current_timestep(self) -> torch.Tensor | None:
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    @property
    def kv_cache_nbytes(self) -> int:
        """The memory, in bytes, of what the last call kept over its steps, of all branches."""
        return self._kv_cache_nbytes

    def begin_call(
        self, guidance_scale: float, guidance_scale_visual: float, attention_kwargs: dict[str, Any] | None
    ) -> None:
        """Sets what holds during a call, and what callbacks can change."""
        self._guidance_scale = guidance_scale
        self._guidance_scale_visual = guidance_scale_visual
        self._attention_kwargs = attention_kwargs
        self._current_timestep = None
        self._interrupt = False

    def use(self, name: str | None = None, alone: bool = True) -> AbstractContextManager[None]:
        """Waits until this thread may use a component, alone or together with others, see `hold`."""
        models = [getattr(self, model, None) for model in ("transformer", "text_encoder", "vae")]
        return hold(models, None if name is None else getattr(self, name), alone)

    def maybe_free_model_hooks(self) -> None:
        with self.use():
            super().maybe_free_model_hooks()  # type: ignore[misc]  # of `DiffusionPipeline`

    # Checks

    def check_components(self, *names: str) -> None:
        """Raises a LoomVideoInputError if one of the components is None."""
        missing = [name for name in names if getattr(self, name, None) is None]
        if missing:
            raise LoomVideoInputError(
                f"This call needs what the pipeline does not have, `{'` and `'.join(missing)}`: load the "
                "pipeline with it, or pass it to `from_pipe`."
            )

    def check_prompts(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None = None,
        given: dict[str, PromptEmbeds] | None = None,
    ) -> int:
        """Checks prompts, or the embeds with their masks that are given in their place; returns how many there are."""
        given = given or {}
        prompt_embeds, _ = given.get("prompt_embeds", (None, None))
        check_only_one(prompt=prompt, prompt_embeds=prompt_embeds)
        if negative_prompt is not None:
            negative_prompt_embeds, _ = given.get("negative_prompt_embeds", (None, None))
            check_only_one(negative_prompt=negative_prompt, negative_prompt_embeds=negative_prompt_embeds)
        for name, value in (("prompt", prompt), ("negative_prompt", negative_prompt)):
            for words in value if isinstance(value, list) else [] if value is None else [value]:
                if not isinstance(words, str):
                    raise TypeError(f"`{name}` must be a string or a list of strings, but is {value!r}.")
                check_prompt(words, f"`{name}`", may_be_blank=name == "negative_prompt")
        batch_size = count_prompts(prompt, prompt_embeds)
        if isinstance(negative_prompt, list) and len(negative_prompt) != batch_size:
            raise LoomVideoInputError(
                f"`negative_prompt` has {len(negative_prompt)} entries, but there are {batch_size} prompts: pass as "
                "many."
            )
        for name, (embeds, mask) in given.items():
            if embeds is not None:
                self._check_embeds(name, embeds, mask, batch_size)
        return batch_size

    def _check_embeds(self, name: str, embeds: Any, mask: torch.Tensor | None, batch_size: int) -> None:
        if not isinstance(embeds, torch.Tensor):
            raise TypeError(f"`{name}` must be a torch tensor, but is a {type(embeds)}.")
        num_layers, mllm_dim = self.transformer.config.num_layers, self.transformer.config.mllm_dim
        if embeds.ndim != 4 or embeds.shape[1] < num_layers or embeds.shape[::3] != (batch_size, mllm_dim):
            raise LoomVideoInputError(
                f"`{name}` must be [{batch_size}, {num_layers} or more layers, tokens, {mllm_dim}], as "
                f"`encode_prompt` returns it, but has shape {tuple(embeds.shape)}."
            )
        check_finite(name, embeds)
        if mask is not None and mask.shape != (embeds.shape[0], embeds.shape[2]):
            raise LoomVideoInputError(
                f"`{name}_mask` must be [batch, tokens] of `{name}`, but has shape {tuple(mask.shape)}."
            )

    def check_size(
        self,
        height: int | None,
        width: int | None,
        num_frames: int | None,
        window_frames: int = 121,
        window_overlap: int | None = None,
    ) -> None:
        """Checks the size of the result and its division into windows; None is left to be decided."""
        if (height is None) != (width is None):
            raise LoomVideoInputError("Pass both `height` and `width`, or neither.")
        for name, size in (("height", height), ("width", width)):
            if size is not None and (not isinstance(size, Integral) or size <= 0 or size % self.size_step != 0):
                raise LoomVideoInputError(f"`{name}` must be a positive multiple of {self.size_step}, but is {size}.")
        step = self.vae_scale_factor_temporal
        for name, count in (("num_frames", num_frames), ("window_frames", window_frames)):
            if count is not None and (not isinstance(count, Integral) or count < 1 or (count - 1) % step != 0):
                raise LoomVideoInputError(
                    f"`{name}` must be {step}k + 1 (1, {step + 1}, {2 * step + 1}, ...), but is {count}."
                )
        if window_overlap is not None and (
            not isinstance(window_overlap, Integral)
            or window_overlap % step
            or not 0 <= window_overlap < window_frames
        ):
            raise LoomVideoInputError(
                f"`window_overlap` must be a multiple of {step} below the {window_frames} frames of a window, but is "
                f"{window_overlap}."
            )

    def check_sampling(
        self,
        num_inference_steps: int,
        guidance_scale: float,
        guidance_scale_visual: float,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Checks the steps and the guidance of a call, and that the scheduler can follow a flow."""
        check_count("num_inference_steps", num_inference_steps)
        if sigmas is not None:
            check_sigmas(sigmas)
            if "sigmas" not in inspect.signature(self.scheduler.set_timesteps).parameters:
                raise LoomVideoInputError(
                    f"{type(self.scheduler).__name__} takes no `sigmas`: choose another scheduler, such as "
                    "FlowMatchEulerDiscreteScheduler, or only `num_inference_steps`."
                )
        for name, scale in (("guidance_scale", guidance_scale), ("guidance_scale_visual", guidance_scale_visual)):
            if not isinstance(scale, Real) or not math.isfinite(scale):
                raise LoomVideoInputError(f"`{name}` must be a finite number, but is {scale}.")
        is_pair = isinstance(guidance_interval, (tuple, list)) and len(guidance_interval) == 2
        if not is_pair or not 0 <= guidance_interval[0] <= guidance_interval[1] <= 1:
            raise LoomVideoInputError(
                f"`guidance_interval` must be two shares of the steps, such as (0.1, 0.8), but is {guidance_interval}."
            )
        prediction_type = self.scheduler.config.get("prediction_type", "flow_prediction")
        if prediction_type != "flow_prediction":
            raise LoomVideoInputError(
                f"LoomVideo predicts flow velocities, but the scheduler's `prediction_type` is {prediction_type!r}: "
                "use a flow-matching scheduler, or `prediction_type='flow_prediction'` with `use_flow_sigmas=True`."
            )

    def check_outputs(
        self,
        batch_size: int,
        num_videos_per_prompt: int,
        generator: torch.Generator | list[torch.Generator] | None,
        output_type: str,
        callback_on_step_end_tensor_inputs: list[str],
    ) -> None:
        """Checks how many results there are to be, of what noise and of what kind, and what a callback asks for."""
        check_count("num_videos_per_prompt", num_videos_per_prompt)
        num_videos = batch_size * num_videos_per_prompt
        generators = generator if isinstance(generator, list) else [generator] * num_videos
        if len(generators) != num_videos:
            raise LoomVideoInputError(
                f"There are {len(generators)} generators for {num_videos} videos: pass one for each, or one for all."
            )
        for single in generators:
            if single is not None and not isinstance(single, torch.Generator):
                raise TypeError(f"`generator` must be a torch.Generator or a list of them, but holds {single!r}.")
        if output_type not in OUTPUT_TYPES:
            raise LoomVideoInputError(
                f"`output_type` must be one of {', '.join(OUTPUT_TYPES)}, but is {output_type!r}."
            )
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise LoomVideoInputError(
                f"`callback_on_step_end_tensor_inputs` must hold some of {', '.join(self._callback_tensor_inputs)}, "
                f"but holds {', '.join(unknown)}."
            )

    # Prompts

    def encode_branches(
        self,
        prompt_prefix: str,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None,
        references: list[list[PIL.Image.Image]],
        sources: list[PIL.Image.Image | np.ndarray | None],
        do_classifier_free_guidance: bool,
        num_videos_per_prompt: int = 1,
        given: dict[str, PromptEmbeds] | None = None,
        device: torch.device | str | None = None,
    ) -> tuple[torch.Tensor | None, ...]:
        """
        Encodes what is not given for the branches of guidance: the prompt, its vision alone, and the negative prompt.

        Args:
            prompt_prefix: one of `PROMPT_PREFIXES`, which goes before the words.
            prompt, negative_prompt: one for all samples, or one for each; None for the published negative prompt.
            references: the fitted images of each sample.
            sources: for each sample an image, the frames of a video that the MLLM sees, or None.
            do_classifier_free_guidance: whether the visual and the negative branch are needed too.
            num_videos_per_prompt: how often each prompt's embeds are repeated.
            given: embeds and mask that are encoded already, by name, such as `prompt_embeds`.
            device: where the embeds are to be; by default where the pipeline runs.

        Returns:
            Embeds `[B, num_layers, L, mllm_dim]` and mask (bool `[B, L]`, or None where no token is padding) of each
            branch in turn. Those that guidance does not need stay None.
        """
        batch_size, given = len(references), given or {}
        names = [name for name, _ in BRANCHES.values()]
        prompt_embeds, visual_prompt_embeds, negative_prompt_embeds = (given.get(name, (None, None)) for name in names)
        has_vision = bool(references[0]) or sources[0] is not None
        needs_visual = do_classifier_free_guidance and has_vision and visual_prompt_embeds[0] is None
        if prompt_embeds[0] is None or needs_visual:
            # The vision is the same whatever the words, so given embeds need none for the visual branch.
            prompts = prompt if isinstance(prompt, list) else [prompt or ""] * batch_size
            for words in prompts if prompt is not None else []:
                check_prompt(words)
            inputs = self.tokenize([prompt_prefix + words for words in prompts], references, sources)
            vision: dict[str, Any] = {}
            if prompt_embeds[0] is None:
                prompt_embeds = self.get_mllm_hidden_states(inputs, vision)
            if needs_visual:
                with self.use("processor"):
                    inputs = keep_vision_only(self.processor, inputs)
                visual_prompt_embeds = self.get_mllm_hidden_states(inputs, vision)
        if do_classifier_free_guidance and negative_prompt_embeds[0] is None:
            embeds, mask = self.encode_negative_prompt(negative_prompt)
            # One for all has no padding.
            negative_prompt_embeds = (embeds.expand(batch_size, -1, -1, -1), mask)
        return tuple(
            None if tensor is None else tensor.repeat_interleave(num_videos_per_prompt, dim=0).to(device)
            for tensor in (*prompt_embeds, *visual_prompt_embeds, *negative_prompt_embeds)
        )

    def encode_negative_prompt(
        self, negative_prompt: str | list[str] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Encodes negative prompts alone, once for many calls, which take them as `negative_prompt_embeds`.

        Args:
            negative_prompt: what to avoid; None for the published one.

        Returns:
            Embeds `[B, num_layers, L, mllm_dim]`, and their mask, bool `[B, L]` or None where no token is padding; B
            is the length of the list, or 1.
        """
        if negative_prompt is None:
            negative_prompt = DEFAULT_NEGATIVE_PROMPT
        prompts = negative_prompt if isinstance(negative_prompt, list) else [negative_prompt]
        prompts = [NEGATIVE_PROMPT_PREFIX + words for words in prompts]
        return self.get_mllm_hidden_states(self.tokenize(prompts, [[]] * len(prompts), [None] * len(prompts)))

    def tokenize(
        self,
        texts: list[str],
        references: list[list[PIL.Image.Image]],
        sources: list[PIL.Image.Image | np.ndarray | None],
    ) -> dict[str, torch.Tensor]:
        """The inputs of the MLLM, see `loomvideo_mllm.tokenize`."""
        self._check_mllm("processor")
        # Tokenizers keep on themselves how they are to pad.
        with self.use("processor"):
            return tokenize(self.processor, texts, references, sources)

    def get_mllm_hidden_states(
        self, inputs: dict[str, torch.Tensor], vision: dict[str, Any] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Runs the MLLM and returns what its last `num_layers` decoder layers put out, see `run_mllm`."""
        self._check_mllm("text_encoder")
        transformer = getattr(self, "transformer", None)
        num_layers = None if transformer is None else transformer.config.num_layers
        inputs = {
            name: value.to(self._execution_device) for name, value in inputs.items() if isinstance(value, torch.Tensor)
        }
        with self.use("text_encoder"):
            return run_mllm(self.text_encoder, inputs, num_layers, vision)

    def _check_mllm(self, name: str) -> None:
        if getattr(self, name) is None:
            raise LoomVideoInputError(
                "This pipeline has no MLLM: pass `prompt_embeds`, for guidance `negative_prompt_embeds` too, and with "
                "a source or references `visual_prompt_embeds` as well."
            )

    # Latents

    def prepare_latents(
        self,
        batch_size: int,
        num_frames: int,
        height: int,
        width: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        window_frames: int,
    ) -> torch.Tensor:
        """Makes the initial noise, float32 `[B, C, T, h, w]`, or checks the noise that is given."""
        shape = (
            batch_size,
            self.transformer.config.in_channels,
            (num_frames - 1) // self.vae_scale_factor_temporal + 1,
            height // self.vae_scale_factor_spatial,
            width // self.vae_scale_factor_spatial,
        )
        most = self.transformer.config.rope_max_seq_len
        window = (min(window_frames, num_frames) - 1) // self.vae_scale_factor_temporal + 1
        if max(window, height // self.size_step, width // self.size_step) > most:
            most_frames, most_pixels = self.vae_scale_factor_temporal * (most - 1) + 1, most * self.size_step
            raise LoomVideoInputError(
                f"{min(window_frames, num_frames)} frames of {height} x {width} are more than the model has positions "
                f"for: use no more than {most_frames} frames in a window, and {most_pixels} pixels on a side."
            )
        if latents is None:
            return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
        if not isinstance(latents, torch.Tensor):
            raise TypeError(f"`latents` must be a torch tensor, but is a {type(latents)}.")
        if latents.shape != shape:
            raise LoomVideoInputError(
                f"`latents` must have shape {shape} for this call, but has {tuple(latents.shape)}."
            )
        check_finite("latents", latents)
        return latents.to(self._execution_device, torch.float32)

    def encode_pixels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encodes `[B, 3, F, H, W]` in [-1, 1] as the normalized mode of the posterior, float32 `[B, C, T, h, w]`."""
        # The VAE keeps features of the last frames on itself.
        with self.use("vae"):
            return encode(self.vae, pixel_values.to(self._execution_device))

    def prepare_clip_latents(self, clips: list[list[PIL.Image.Image]], num_videos_per_prompt: int) -> torch.Tensor:
        """Encodes one clip for each prompt; what stands for several is encoded once."""
        keys = [tuple(map(id, clip)) for clip in clips]
        encoded = {key: self.encode_pixels(to_pixel_values(clip)) for key, clip in dict(zip(keys, clips)).items()}
        return torch.cat([encoded[key] for key in keys]).repeat_interleave(num_videos_per_prompt, dim=0)

    def prepare_reference_latents(
        self, references: list[list[PIL.Image.Image]], num_videos_per_prompt: int
    ) -> list[torch.Tensor]:
        """Encodes the references of each prompt, as one `[B, C, 1, h, w]` for each place in the lists."""
        return [
            self.prepare_clip_latents([[image] for image in images], num_videos_per_prompt)
            for images in zip(*references)
        ]

    def decode_latents(
        self,
        latents: torch.Tensor,
        output_type: str,
        masks: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
    ) -> np.ndarray | torch.Tensor | list[list[PIL.Image.Image]]:
        """
        Decodes normalized latents.

        Args:
            latents: `[B, C, T, h, w]`.
            output_type: as in a call; for `"latent"` they are returned as they are.
            masks: how much of the result is to be seen of each pixel, `[B, 1, F, H, W]`; None for all.
            pixel_values: what is seen elsewhere, `[B, 3, F, H, W]` in [-1, 1].
        """
        if output_type == "latent":
            return latents
        if self.vae_decoder is not None:
            video = self.vae_decoder.decode(latents)
        else:
            with self.use("vae"):
                video = decode(self.vae, latents)
        if masks is not None:
            assert pixel_values is not None
            video = torch.lerp(pixel_values.to(video.device), video.float(), masks.to(video.device))
        return self.video_processor.postprocess_video(video, output_type=output_type)

    @torch.no_grad()
    def encode_in_chunks(self, frames: Iterable[np.ndarray], chunk_size: int | None = None) -> torch.Tensor:
        """
        Encodes a clip as `prepare_clip_latents` does, but while its frames come in, so that only a few are in memory.
        With the VAE's tiling, whose tiles are of the whole clip, all frames are.

        Args:
            frames: 4k + 1 of uint8, `[H, W, 3]`.
            chunk_size: how many latent frames to encode at once, after the first alone: more take more memory. By
                default the pipeline's `vae_chunk_size`, or 1.

        Returns:
            Normalized latents, float32 `[1, C, T, h, w]`.
        """
        if chunk_size is None:
            chunk_size = self.vae_chunk_size or 1
        check_count("chunk_size", chunk_size)
        if self.vae.use_tiling:
            return self.encode_pixels(to_pixel_values(list(frames)))
        return encode_in_chunks(self.vae, frames, self._execution_device, chunk_size)

    @torch.no_grad()
    def decode_in_chunks(self, latents: torch.Tensor, chunk_size: int | None = None) -> Iterator[torch.Tensor]:
        """
        Decodes latents as `decode_latents` does, but some latent frames at a time, so that memory does not grow with
        the length. With the VAE's tiling, whose tiles are of the whole clip, all frames come at once.

        Args:
            latents: normalized, `[B, C, T, h, w]`.
            chunk_size: as for `encode_in_chunks`; by default `vae_chunk_size`, or as many as take no more memory than
                one at 480p, up to 4.

        Yields:
            The frames of each chunk, `[B, 3, f, H, W]` in [-1, 1]: one of the first latent frame, four of each other.
        """
        if chunk_size is None:
            num_pixels = latents.shape[-2] * latents.shape[-1] * self.vae_scale_factor_spatial**2
            chunk_size = self.vae_chunk_size or max(1, min(MOST_AT_ONCE, PIXELS_AT_ONCE // num_pixels))
        check_count("chunk_size", chunk_size)
        if self.vae_decoder is not None:
            yield from self.vae_decoder.decode_in_chunks(latents, chunk_size)
        elif self.vae.use_tiling:
            with self.use("vae"):
                yield decode(self.vae, latents)
        else:
            yield from decode_in_chunks(self.vae, latents, chunk_size)

    # Denoising

    @contextmanager
    def denoising(self) -> Iterator[None]:
        """
        Waits until this thread may denoise, from `prepare_timesteps` to the end of `denoise`: the scheduler, which
        keeps the state of one call, is its own; the transformer is shared, unless it has hooks or the call scales
        LoRAs, which is written into its layers.
        """
        scales_loras = (self.attention_kwargs or {}).get("scale", 1.0) != 1.0
        with self.use("transformer", alone=scales_loras), self.use("scheduler"):
            yield

    def prepare_timesteps(self, num_inference_steps: int, sigmas: Sequence[float] | None = None) -> torch.Tensor:
        """Sets the scheduler for a call, in a `with pipe.denoising():`, and returns its timesteps."""
        if not lock_of(self.scheduler).is_mine:
            raise RuntimeError("The scheduler may be in another thread's use: call this in `with pipe.denoising():`.")
        device = self._execution_device
        if sigmas is None:
            self.scheduler.set_timesteps(num_inference_steps, device=device)
        else:
            self.scheduler.set_timesteps(sigmas=np.array(sigmas, np.float64), device=device)
        self._num_timesteps = len(self.scheduler.timesteps)
        return self.scheduler.timesteps

    def denoise(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeds: tuple[torch.Tensor | None, ...],
        source_latents: torch.Tensor | None,
        reference_latents: list[torch.Tensor],
        windows: list[tuple[slice, torch.Tensor]],
        generator: torch.Generator | list[torch.Generator] | None = None,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        use_kv_cache: bool = True,
        latent_mask: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        guider: BaseGuidance | None = None,
    ) -> torch.Tensor:
        """
        Runs the denoising loop, in the same `with pipe.denoising():` as `prepare_timesteps`.

        Args:
            latents: `[B, C, T, h, w]`, as noisy as the first of the timesteps says.
            timesteps: of those that `prepare_timesteps` returned, the last ones: all, or those that remain.
            embeds: what `encode_branches` returns.
            source_latents: like `latents`, or None.
            reference_latents: each `[B, C, 1, h, w]`.
            windows: what `divide_into_windows` returns.
            generator, callback_on_step_end, callback_on_step_end_tensor_inputs, guidance_interval, use_kv_cache:
                As in a call. The callback counts the timesteps that remain.
            latent_mask: 1 where something may change, `[B, 1, T, h, w]`; elsewhere are the source and `noise`, like
                `latents`, as noisy as each step leaves the rest.
            guider: says which branches run and what becomes of them, in place of the call's guidance scales.

        Returns:
            The clean latents, float32.

        Raises:
            LoomVideoInputError: if the latents are no longer finite, or a callback asks for what was not encoded.
        """
        self._check_division(windows[0][0], latents, reference_latents)
        dtype = self.transformer.dtype
        conditions = {
            name: self._place_embeds(tensor, mask, latents.device)
            for (name, _), tensor, mask in zip(BRANCHES.values(), embeds[::2], embeds[1::2])
        }
        kept_latents = source_latents
        source_latents = None if source_latents is None else source_latents.to(dtype)
        reference_latents = [reference.to(dtype) for reference in reference_latents]
        has_visual_input = source_latents is not None or bool(reference_latents)
        windows = [(frames, weights.to(latents.device).view(-1, 1, 1)) for frames, weights in windows]
        caches = BranchCaches(self.transformer.create_kv_cache) if use_kv_cache else None
        self.transformer.prepare_cache(len(self.scheduler.timesteps))

        scheduler = self.scheduler
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        step_options = {"generator": generator} if takes_generator else {}
        num_timesteps, order = len(scheduler.timesteps), scheduler.order
        first_step = num_timesteps - len(timesteps)
        scheduler.set_begin_index(first_step)
        guided = guided_steps(num_timesteps, guidance_interval)

        num_steps = math.ceil(num_timesteps / order)
        with self.progress_bar(total=num_steps * len(windows)) as progress_bar:
            progress_bar.update(first_step // order * len(windows))
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                self._current_timestep = t
                step = first_step + i
                ends_step = (step + 1) % order == 0 or step + 1 == num_timesteps

                scales = (self.guidance_scale, self.guidance_scale_visual)
                coefficients = guidance_coefficients(*scales, has_visual_input) if step in guided else {"cond": 1.0}
                branches = list(coefficients)
                combine: Combine = partial(weigh, coefficients=coefficients.values())
                velocity = torch.zeros_like(latents)
                for index, (frames, weights) in enumerate(windows):
                    if len(windows) > 1:
                        progress_bar.set_postfix_str(
                            f"step {step // order + 1}/{num_steps}, window {index + 1}/{len(windows)}"
                        )
                    if guider is not None:
                        guider.set_state(step=step, num_inference_steps=num_timesteps, timestep=t)
                        branches, combine = follow(guider, has_visual_input)
                    predictions = self.predict(
                        latents[:, :, frames].to(dtype),
                        t,
                        conditions,
                        None if source_latents is None else source_latents[:, :, frames],
                        reference_latents,
                        branches,
                        caches,
                        cache_name="" if len(windows) == 1 else f" {index}",
                        guider=guider,
                    )
                    velocity[:, :, frames] += weights * combine(predictions)
                    if caches is not None and len(windows) > 1:
                        caches.leave_window()
                    if ends_step:
                        progress_bar.update()

                latents = scheduler.step(velocity, t, latents, return_dict=False, **step_options)[0]
                if latent_mask is not None:
                    assert kept_latents is not None
                    assert noise is not None
                    sigma = scheduler.sigmas[scheduler.step_index]
                    latents = keep_latents(latents, latent_mask, kept_latents, noise, sigma)
                # At each step, asking would make a GPU wait.
                if i in (0, len(timesteps) - 1) and not latents.isfinite().all():
                    raise LoomVideoInputError(
                        f"The latents of step {step + 1} hold NaN or infinite values: see that the weights and LoRAs "
                        "are intact, and their precision enough, or lower the guidance scales."
                    )

                if callback_on_step_end is not None:
                    tensors: dict[str, torch.Tensor | None] = {"latents": latents}
                    for name, (tensor, mask) in conditions.items():
                        tensors |= {name: tensor, f"{name}_mask": mask}
                    callback_kwargs = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    callback_outputs = callback_on_step_end(self, i, t, callback_kwargs)
                    latents = callback_outputs.pop("latents", latents)
                    conditions = self._replace_embeds(conditions, callback_outputs, latents.device)

        self._current_timestep = None
        self._kv_cache_nbytes = 0 if caches is None else caches.nbytes
        return latents

    def _check_division(self, window: slice, latents: torch.Tensor, references: list[torch.Tensor]) -> None:
        """Raises a LoomVideoInputError if processes that share the tokens of a window cannot have as many each."""
        parallel_config = getattr(self.transformer, "_parallel_config", None)
        context = None if parallel_config is None else parallel_config.context_parallel_config
        if context is None or context.ulysses_anything or context.ring_anything:
            return
        side = self.transformer.config.patch_size[1]
        num_tokens = sum(part[0, 0].numel() for part in [latents[:, :, window], *references]) // side**2
        num_processes = context.ulysses_degree * context.ring_degree
        if num_tokens % num_processes:
            raise LoomVideoInputError(
                f"{num_tokens} tokens cannot be divided evenly over {num_processes} processes: use ulysses_anything "
                "or ring_anything, or another size."
            )

    def predict(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        conditions: dict[str, PromptEmbeds],
        source_latents: torch.Tensor | None,
        reference_latents: list[torch.Tensor],
        branches: list[str],
        caches: BranchCaches | None = None,
        cache_name: str = "",
        guider: BaseGuidance | None = None,
    ) -> list[torch.Tensor]:
        """
        Predicts the velocity of one window at one timestep in each branch (architecture: Guidance, Scale-and-Add).

        Args:
            latents: `[B, C, T, h, w]`, in the transformer's precision, as are source and references.
            timestep: one, in 0..1000.
            conditions: embeds and mask by their names, such as `prompt_embeds`.
            source_latents: like `latents`, or None.
            reference_latents: each `[B, C, 1, h, w]`.
            branches: those to run, of `BRANCHES`.
            caches: what is kept from step to step, or None.
            cache_name: what tells the step cache of this window from those of others.
            guider: what may change the transformer for a branch, or None.

        Returns:
            Velocities in the branches' order, `[B, C, T, h, w]`.
        """
        has_visual_input = source_latents is not None or bool(reference_latents)
        timestep = timestep.expand(latents.shape[0])
        # Scale-and-Add: the source counts as much as there is noise. The published model takes the rounded timestep
        # for that, and scales an empty source where there is none.
        source_scale = timestep / self.scheduler.config.num_train_timesteps
        predictions = []
        for index, branch in enumerate(branches):
            if self.branch_group is not None and index % self.branch_group.size() != self.branch_group.rank():
                predictions.append(torch.empty_like(latents))
                continue
            name, sees_visual_input = BRANCHES[branch]
            encoder_hidden_states, encoder_attention_mask = conditions[name]
            if encoder_hidden_states is None:
                raise LoomVideoInputError(
                    f"Guidance needs `{name}`, which were not encoded because guidance was off when the call began: "
                    "begin with `guidance_scale` or `guidance_scale_visual` above 1."
                )
            kv_cache = None
            if caches is not None:
                kv_cache = caches.of(branch, encoder_hidden_states, has_visual_input and sees_visual_input)
            if guider is not None:
                guider.prepare_models(self.transformer)
            with self.transformer.cache_context(branch + cache_name):
                prediction = self.transformer(
                    hidden_states=latents,
                    timestep=timestep,
                    encoder_hidden_states=encoder_hidden_states,
                    encoder_attention_mask=encoder_attention_mask,
                    source_hidden_states=source_latents if sees_visual_input else None,
                    source_scale=source_scale,
                    reference_hidden_states=reference_latents if sees_visual_input else None,
                    kv_cache=kv_cache,
                    attention_kwargs=self.attention_kwargs,
                    return_dict=False,
                )[0]
            if guider is not None:
                guider.cleanup_models(self.transformer)
            predictions.append(prediction)
        if self.branch_group is not None:
            exchange_predictions(predictions, self.branch_group)
        return predictions

    def _replace_embeds(
        self, conditions: dict[str, PromptEmbeds], replacements: dict[str, Any], device: torch.device
    ) -> dict[str, PromptEmbeds]:
        """The conditions with what a callback returned in their place; what it left alone stays the same object."""
        replaced = {}
        for name, (tensor, mask) in conditions.items():
            new = replacements.get(name, tensor), replacements.get(f"{name}_mask", mask)
            is_same = new[0] is tensor and new[1] is mask
            replaced[name] = (tensor, mask) if is_same else self._place_embeds(*new, device)
        return replaced

    def _place_embeds(
        self, embeds: torch.Tensor | None, mask: torch.Tensor | None, device: torch.device
    ) -> PromptEmbeds:
        """Takes the layers that the transformer reads, in its precision; a mask that masks nothing is dropped."""
        if embeds is None:
            return None, None
        if mask is not None and mask.shape != embeds.shape[::2]:
            raise LoomVideoInputError(
                f"Embeds of {embeds.shape[2]} tokens do not go with a mask of {mask.shape[1]}: a callback that "
                "replaces embeds of a padded batch must return their mask too."
            )
        embeds = embeds[:, -self.transformer.config.num_layers :].to(device, self.transformer.dtype)
        return embeds, None if mask is None or mask.all() else mask.to(device, torch.bool)


def count_prompts(prompt: str | list[str] | None, prompt_embeds: torch.Tensor | None) -> int:
    """How many samples a call has before `num_videos_per_prompt`, by its prompts or their embeds."""
    if isinstance(prompt, str):
        return 1
    if prompt is not None:
        if not prompt:
            raise LoomVideoInputError("`prompt` is an empty list: pass at least one prompt.")
        return len(prompt)
    if not isinstance(prompt_embeds, torch.Tensor):
        raise TypeError(f"`prompt_embeds` must be a torch tensor, but is a {type(prompt_embeds)}.")
    return len(prompt_embeds)


def check_only_one(**arguments: Any) -> None:
    """Raises a LoomVideoInputError if of two arguments both were given, or none."""
    if sum(value is not None for value in arguments.values()) != 1:
        raise LoomVideoInputError(f"Pass either `{'` or `'.join(arguments)}`, and not both.")


def check_count(name: str, count: Any) -> None:
    if not isinstance(count, Integral) or count < 1:
        raise LoomVideoInputError(f"`{name}` must be a positive integer, but is {count}.")


def check_finite(name: str, tensor: torch.Tensor) -> None:
    if not tensor.isfinite().all():
        raise LoomVideoInputError(f"`{name}` holds NaN or infinite values: pass finite ones.")
