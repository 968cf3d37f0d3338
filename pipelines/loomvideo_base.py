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
"""Latents: encoding pixels, making noise, the guided denoising loop, and decoding."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, patchify, unpatchify
from diffusers.utils.torch_utils import randn_tensor


OUTPUT_TYPES = ("np", "pt", "pil", "latent")


def guidance_coefficients(
    guidance_scale: float, guidance_scale_visual: float, has_visual_input: bool
) -> dict[str, float]:
    """
    What each branch's velocity is multiplied by; branches that do not count are left out (paper: cascaded guidance).

    With visual input, `u + s_v (v - u) + s_t (c - v)` for the unconditional, visual and full branch; without,
    `u + s_t (c - u)`.
    """
    if guidance_scale <= 1 and guidance_scale_visual <= 1:
        return {"cond": 1.0}
    if has_visual_input:
        coefficients = {
            "cond": guidance_scale,
            "visual": guidance_scale_visual - guidance_scale,
            "uncond": 1 - guidance_scale_visual,
        }
    else:
        coefficients = {"cond": guidance_scale, "uncond": 1 - guidance_scale}
    return {branch: coefficient for branch, coefficient in coefficients.items() if coefficient != 0}


def divide_into_windows(num_frames: int, window: int, overlap: int) -> list[tuple[slice, torch.Tensor]]:
    """
    Divides frames evenly into windows that overlap their neighbours by so many at least.

    Returns:
        For each window its frames, and their weights `[window]`: they fall towards its ends, where a neighbour takes
        over, and those of a frame sum to 1 over the windows.
    """
    count = math.ceil(max(num_frames - window, 0) / (window - overlap)) + 1
    window = min(window, num_frames)
    starts = [round(index * (num_frames - window) / max(count - 1, 1)) for index in range(count)]
    places = torch.arange(1, window + 1)
    ramp = torch.minimum(places, places.flip(0)).clamp(max=overlap + 1).float()
    total = torch.zeros(num_frames)
    for start in starts:
        total[start : start + window] += ramp
    frames = [slice(start, start + window) for start in starts]
    return [(part, ramp / total[part]) for part in frames]


def make_feature_cache(coder: torch.nn.Module) -> list[torch.Tensor | None]:
    """An empty cache for what the VAE's encoder or decoder keeps of one chunk of frames for the next."""
    return [None] * sum(isinstance(layer, WanCausalConv3d) for layer in coder.modules())


class LoomVideoDenoisingMixin:
    """The steps of both pipelines that work on latents, and the properties that describe a running call."""

    _callback_tensor_inputs = [
        "latents",
        "prompt_embeds",
        "prompt_embeds_mask",
        "visual_prompt_embeds",
        "visual_prompt_embeds_mask",
        "negative_prompt_embeds",
        "negative_prompt_embeds_mask",
    ]

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

    def check_components(self, *names: str) -> None:
        """Raises a ValueError if one of the components is None."""
        missing = [name for name in names if getattr(self, name, None) is None]
        if missing:
            raise ValueError(
                f"This call needs what the pipeline does not have, `{'` and `'.join(missing)}`: load the "
                "pipeline with it, or pass it to `from_pipe`."
            )

    def check_common_inputs(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None,
        height: int | None,
        width: int | None,
        num_frames: int | None,
        num_inference_steps: int,
        guidance_scale: float,
        guidance_scale_visual: float,
        num_videos_per_prompt: int,
        generator: torch.Generator | list[torch.Generator] | None,
        embeds: dict[str, tuple[torch.Tensor | None, torch.Tensor | None]],
        output_type: str,
        callback_on_step_end_tensor_inputs: list[str],
        guidance_interval: tuple[float, float],
        window_frames: int,
        window_overlap: int | None,
    ) -> int:
        """Checks what both pipelines take, and returns the number of prompts. `embeds` has embeds and mask by name."""
        self.check_components("transformer", "scheduler", *([] if output_type == "latent" else ["vae"]))
        prompt_embeds = embeds["prompt_embeds"][0]
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("Pass either `prompt` or `prompt_embeds`, and not both.")
        if negative_prompt is not None and embeds["negative_prompt_embeds"][0] is not None:
            raise ValueError("Pass either `negative_prompt` or `negative_prompt_embeds`, and not both.")
        for name, value in (("prompt", prompt), ("negative_prompt", negative_prompt)):
            words = value if isinstance(value, list) else [value]
            if value is not None and not all(isinstance(word, str) for word in words):
                raise TypeError(f"`{name}` must be a string or a list of strings, but is {value!r}.")
            for word in words if value is not None else []:
                self.check_prompt(word, f"`{name}`", may_be_blank=name == "negative_prompt")
        if prompt == []:
            raise ValueError("`prompt` is an empty list: pass at least one prompt.")
        if prompt is None and not isinstance(prompt_embeds, torch.Tensor):
            raise TypeError(f"`prompt_embeds` must be a torch tensor, but is a {type(prompt_embeds)}.")
        batch_size = len(prompt_embeds) if prompt is None else len(prompt) if isinstance(prompt, list) else 1
        if isinstance(negative_prompt, list) and len(negative_prompt) != batch_size:
            raise ValueError(
                f"There are {len(negative_prompt)} negative prompts for {batch_size} prompts: pass as many."
            )

        for name, (tensor, mask) in embeds.items():
            if tensor is None:
                continue
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(f"`{name}` must be a torch tensor, but is a {type(tensor)}.")
            num_layers, mllm_dim = self.transformer.config.num_layers, self.transformer.config.mllm_dim
            if tensor.ndim != 4 or tensor.shape[1] < num_layers or tensor.shape[::3] != (batch_size, mllm_dim):
                raise ValueError(
                    f"`{name}` must be [{batch_size}, {num_layers} or more layers, tokens, {mllm_dim}], as "
                    f"`encode_prompt` returns it, but has shape {tuple(tensor.shape)}."
                )
            if not tensor.isfinite().all():
                raise ValueError(f"`{name}` holds NaN or infinite values: encode the prompt again.")
            if mask is not None and mask.shape != (tensor.shape[0], tensor.shape[2]):
                raise ValueError(
                    f"`{name}_mask` must be [batch, tokens] of `{name}`, but has shape {tuple(mask.shape)}."
                )

        if (height is None) != (width is None):
            raise ValueError("Pass both `height` and `width`, or neither.")
        for name, size in (("height", height), ("width", width)):
            if size is not None and (not isinstance(size, Integral) or size <= 0 or size % self.size_step != 0):
                raise ValueError(f"`{name}` must be a positive multiple of {self.size_step}, but is {size}.")
        step = self.vae_scale_factor_temporal
        if num_frames is not None and (
            not isinstance(num_frames, Integral) or num_frames < 1 or (num_frames - 1) % step != 0
        ):
            raise ValueError(
                f"`num_frames` must be {step}k + 1 (1, {step + 1}, {2 * step + 1}, ...), but is {num_frames}."
            )
        if not isinstance(window_frames, Integral) or window_frames < 1 or (window_frames - 1) % step != 0:
            raise ValueError(f"`window_frames` must be {step}k + 1, such as 121, but is {window_frames}.")
        if window_overlap is not None and (
            not isinstance(window_overlap, Integral)
            or window_overlap % step
            or not 0 <= window_overlap < window_frames
        ):
            raise ValueError(
                f"`window_overlap` must be a multiple of {step} below the {window_frames} frames of a window, but is "
                f"{window_overlap}."
            )
        for name, count in (
            ("num_inference_steps", num_inference_steps),
            ("num_videos_per_prompt", num_videos_per_prompt),
        ):
            if not isinstance(count, Integral) or count < 1:
                raise ValueError(f"`{name}` must be a positive integer, but is {count}.")
        for name, scale in (("guidance_scale", guidance_scale), ("guidance_scale_visual", guidance_scale_visual)):
            if not isinstance(scale, Real) or not math.isfinite(scale):
                raise ValueError(f"`{name}` must be a finite number, but is {scale}.")
        is_pair = isinstance(guidance_interval, (tuple, list)) and len(guidance_interval) == 2
        if not is_pair or not 0 <= guidance_interval[0] <= guidance_interval[1] <= 1:
            raise ValueError(
                f"`guidance_interval` must be two shares of the steps, such as (0.1, 0.8), but is {guidance_interval}."
            )
        if isinstance(generator, list) and len(generator) != batch_size * num_videos_per_prompt:
            raise ValueError(
                f"There are {len(generator)} generators for {batch_size * num_videos_per_prompt} videos: pass one for "
                "each, or one for all."
            )
        for single in generator if isinstance(generator, list) else [generator]:
            if single is not None and not isinstance(single, torch.Generator):
                raise TypeError(f"`generator` must be a torch.Generator or a list of them, but holds {single!r}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {', '.join(OUTPUT_TYPES)}, but is {output_type!r}.")
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must hold some of {', '.join(self._callback_tensor_inputs)}, "
                f"but holds {', '.join(unknown)}."
            )
        prediction_type = self.scheduler.config.get("prediction_type", "flow_prediction")
        if prediction_type != "flow_prediction":
            raise ValueError(
                f"LoomVideo predicts flow velocities, but the scheduler's `prediction_type` is {prediction_type!r}: "
                "use a flow-matching scheduler, or `prediction_type='flow_prediction'` with `use_flow_sigmas=True`."
            )
        return batch_size

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
            raise ValueError(
                f"{min(window_frames, num_frames)} frames of {height} x {width} are more than the model has positions "
                f"for: use no more than {most_frames} frames in a window, and {most_pixels} pixels on a side."
            )
        if latents is None:
            return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
        if not isinstance(latents, torch.Tensor):
            raise TypeError(f"`latents` must be a torch tensor, but is a {type(latents)}.")
        if latents.shape != shape:
            raise ValueError(f"`latents` must have shape {shape} for this call, but has {tuple(latents.shape)}.")
        if not latents.isfinite().all():
            raise ValueError("`latents` holds NaN or infinite values: pass noise, or leave it out.")
        return latents.to(self._execution_device, torch.float32)

    def encode_pixels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encodes `[B, 3, F, H, W]` in [-1, 1] as the normalized mode of the posterior, float32 `[B, C, T, h, w]`."""
        pixel_values = pixel_values.to(self._execution_device, self.vae.dtype)
        # It keeps features of the last frames on itself.
        with self.use("vae"):
            latents = self.vae.encode(pixel_values).latent_dist.mode().float()
        mean, std = self._latents_mean_and_std(latents.device)
        return (latents - mean) / std

    def prepare_clip_latents(self, clips: list[list[PIL.Image.Image]], num_videos_per_prompt: int) -> torch.Tensor:
        """Encodes one clip for each prompt; what stands for several is encoded once."""
        encoded = {}
        keys = [tuple(map(id, clip)) for clip in clips]
        for key, clip in zip(keys, clips):
            if key not in encoded:
                pixels = torch.from_numpy(np.stack(clip)).permute(3, 0, 1, 2)[None]
                encoded[key] = self.encode_pixels(pixels.float() / 127.5 - 1)
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
        self, latents: torch.Tensor, output_type: str
    ) -> np.ndarray | torch.Tensor | list[list[PIL.Image.Image]]:
        """Decodes normalized latents `[B, C, T, h, w]`, or returns them as they are for `output_type="latent"`."""
        if output_type == "latent":
            return latents
        mean, std = self._latents_mean_and_std(latents.device)
        with self.use("vae"):
            video = self.vae.decode((latents * std + mean).to(self.vae.dtype), return_dict=False)[0]
        return self.video_processor.postprocess_video(video, output_type=output_type)

    @torch.no_grad()
    def encode_in_chunks(self, frames: Iterable[np.ndarray]) -> torch.Tensor:
        """
        Encodes a clip as `prepare_clip_latents` does, but for tiling, while its frames come in.

        Args:
            frames: 4k + 1 of uint8, `[H, W, 3]`.

        Returns:
            Normalized latents, float32 `[1, C, T, h, w]`.
        """
        vae, latents, chunk = self.vae, [], []
        feature_cache = make_feature_cache(vae.encoder)
        for frame in frames:
            chunk.append(frame)
            if len(chunk) < (self.vae_scale_factor_temporal if latents else 1):
                continue
            pixels = torch.from_numpy(np.stack(chunk)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
            pixels = pixels.to(self._execution_device, vae.dtype)
            if vae.config.patch_size is not None:
                pixels = patchify(pixels, patch_size=vae.config.patch_size)
            with self.use("vae"):
                self._onload_vae()
                encoded = vae.encoder(pixels, feat_cache=feature_cache, feat_idx=[0])
                mode = vae.quant_conv(encoded).chunk(2, dim=1)[0].float()
            mean, std = self._latents_mean_and_std(mode.device)
            latents.append((mode - mean) / std)
            chunk = []
        return torch.cat(latents, dim=2)

    @torch.no_grad()
    def decode_in_chunks(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """
        Decodes latents as `decode_latents` does, but for tiling, a latent frame at a time, so that memory does not
        grow with the length.

        Args:
            latents: normalized, `[B, C, T, h, w]`.

        Yields:
            The frames of each latent frame, `[B, 3, f, H, W]` in [-1, 1], one of the first and then four each.
        """
        vae = self.vae
        mean, std = self._latents_mean_and_std(latents.device)
        feature_cache = make_feature_cache(vae.decoder)
        for index in range(latents.shape[2]):
            latent_frame = (latents[:, :, index : index + 1] * std + mean).to(vae.dtype)
            with self.use("vae"):
                self._onload_vae()
                frames = vae.decoder(
                    vae.post_quant_conv(latent_frame),
                    feat_cache=feature_cache,
                    feat_idx=[0],
                    first_chunk=index == 0,
                )
            if vae.config.patch_size is not None:
                frames = unpatchify(frames, patch_size=vae.config.patch_size)
            yield frames.clamp(-1, 1)

    def _onload_vae(self) -> None:
        """Brings the VAE to its device, as its `encode` and `decode` do."""
        if hasattr(self.vae, "_hf_hook"):
            self.vae._hf_hook.pre_forward(self.vae)

    def _latents_mean_and_std(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        statistics = (self.vae.config.latents_mean, self.vae.config.latents_std)
        mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1, 1) for values in statistics)
        return mean, std

    def _place_embeds(
        self, embeds: torch.Tensor | None, mask: torch.Tensor | None, device: torch.device
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Takes the layers that the transformer reads, in its precision; a mask that masks nothing is dropped."""
        if embeds is None:
            return None, None
        if mask is not None and mask.shape != embeds.shape[::2]:
            raise ValueError(
                f"Embeds of {embeds.shape[2]} tokens do not go with a mask of {mask.shape[1]}: a callback that "
                "replaces embeds of a padded batch must return their mask too."
            )
        embeds = embeds[:, -self.transformer.config.num_layers :].to(device, self.transformer.dtype)
        return embeds, None if mask is None or mask.all() else mask.to(device, torch.bool)

    def denoise(
        self,
        latents: torch.Tensor,
        num_inference_steps: int,
        embeds: tuple[torch.Tensor | None, ...],
        source_latents: torch.Tensor | None,
        reference_latents: list[torch.Tensor],
        generator: torch.Generator | list[torch.Generator] | None,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None,
        callback_on_step_end_tensor_inputs: list[str],
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        use_kv_cache: bool = True,
        window_frames: int = 121,
        window_overlap: int | None = None,
        first_step: int = 0,
        scheduler_state: dict[str, Any] | None = None,
    ) -> torch.Tensor:
        """
        Runs the denoising loop from noise to clean latents.

        `embeds` is what `encode_prompt` returns. The callback can change them, the latents, `pipe._guidance_scale` and
        `pipe._guidance_scale_visual`. Outside of `guidance_interval` only the branch of the words runs. What is longer
        than a window is denoised in several: at each step, predictions are blended where windows overlap.

        What was broken off goes on at `first_step`, with the latents and the attributes of the scheduler as they were.
        """
        device, dtype = latents.device, self.transformer.dtype
        names = ("prompt_embeds", "visual_prompt_embeds", "negative_prompt_embeds")
        conditions = {
            name: self._place_embeds(tensor, mask, device)
            for name, tensor, mask in zip(names, embeds[::2], embeds[1::2])
        }
        source_latents = None if source_latents is None else source_latents.to(dtype)
        reference_latents = [reference.to(dtype) for reference in reference_latents]
        # The name of each branch's hidden states, and whether it sees the source and the references.
        branches = {
            "cond": ("prompt_embeds", True),
            "visual": ("visual_prompt_embeds", True),
            "uncond": ("negative_prompt_embeds", False),
        }
        has_source = source_latents is not None
        has_visual_input = has_source or bool(reference_latents)

        self.scheduler.set_timesteps(num_inference_steps, device=device)
        self.scheduler.set_begin_index(0)
        vars(self.scheduler).update(scheduler_state or {})
        timesteps = self.scheduler.timesteps
        num_warmup_steps = len(timesteps) - num_inference_steps * self.scheduler.order
        self._num_timesteps = len(timesteps)
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        step_options = {"generator": generator} if takes_generator else {}
        guided_steps = range(*(round(share * len(timesteps)) for share in guidance_interval))
        window = (window_frames - 1) // self.vae_scale_factor_temporal + 1
        overlap = window // 4 if window_overlap is None else window_overlap // self.vae_scale_factor_temporal
        windows = [
            (frames, weights.to(device).view(-1, 1, 1))
            for frames, weights in divide_into_windows(latents.shape[2], window, overlap)
        ]
        # What a call that was broken off has left there
        self.transformer._reset_stateful_cache()
        # Of each branch, the embeds that its cache was filled with; and what branches that see the same share
        kv_caches, token_caches = {}, {}
        self._kv_cache_nbytes = 0

        with self.progress_bar(total=num_inference_steps * len(windows)) as progress_bar:
            progress_bar.update(first_step // self.scheduler.order * len(windows))
            for i, t in enumerate(timesteps):
                if self.interrupt or i < first_step:
                    continue
                self._current_timestep = t

                latent_model_input = latents.to(dtype)
                timestep = t.expand(latents.shape[0])
                # Scale-and-Add: the source counts as much as there is noise. The published model takes the rounded
                # timestep for that, and scales an empty source where there is none.
                source_scale = timestep / self.scheduler.config.num_train_timesteps

                velocity = torch.zeros_like(latents)
                coefficients = {"cond": 1.0}
                if i in guided_steps:
                    coefficients = guidance_coefficients(
                        self.guidance_scale, self.guidance_scale_visual, has_visual_input
                    )
                missing = [name for branch in coefficients if conditions[name := branches[branch][0]][0] is None]
                if missing:
                    raise ValueError(
                        f"Guidance needs `{missing[0]}`, which were not encoded because guidance was off when the "
                        "call began: begin with `guidance_scale` or `guidance_scale_visual` above 1."
                    )
                ends_step = i + 1 > num_warmup_steps and (i + 1) % self.scheduler.order == 0
                for index, (frames, weights) in enumerate(windows):
                    if len(windows) > 1:
                        step = min(i // self.scheduler.order + 1, num_inference_steps)
                        progress_bar.set_postfix_str(
                            f"step {step}/{num_inference_steps}, window {index + 1}/{len(windows)}"
                        )
                        for token_cache in token_caches.values():
                            token_cache.source = None  # all that differs from window to window
                    for branch, coefficient in coefficients.items():
                        name, sees_visual_input = branches[branch]
                        encoder_hidden_states, encoder_attention_mask = conditions[name]
                        if use_kv_cache and kv_caches.get(branch, (None,))[0] is not encoder_hidden_states:
                            seen = has_visual_input and sees_visual_input
                            cache = self.transformer.create_kv_cache(token_caches.get(seen))
                            token_caches[seen], kv_caches[branch] = cache.tokens, (encoder_hidden_states, cache)
                        kv_cache = kv_caches[branch][1] if use_kv_cache else None
                        source = source_latents[:, :, frames] if has_source and sees_visual_input else None
                        with self.transformer.cache_context(branch if len(windows) == 1 else f"{branch} {index}"):
                            prediction = self.transformer(
                                hidden_states=latent_model_input[:, :, frames],
                                timestep=timestep,
                                encoder_hidden_states=encoder_hidden_states,
                                encoder_attention_mask=encoder_attention_mask,
                                source_hidden_states=source,
                                source_scale=source_scale,
                                reference_hidden_states=reference_latents if sees_visual_input else None,
                                kv_cache=kv_cache,
                                attention_kwargs=self.attention_kwargs,
                                return_dict=False,
                            )[0]
                        velocity[:, :, frames] += weights * (coefficient * prediction.float())
                    if ends_step or i + 1 == len(timesteps):
                        progress_bar.update()

                latents = self.scheduler.step(velocity, t, latents, return_dict=False, **step_options)[0]
                # At each step, asking would make a GPU wait.
                if i in (first_step, len(timesteps) - 1) and not latents.isfinite().all():
                    raise ValueError(
                        f"The latents of step {i + 1} hold NaN or infinite values: see that the weights and LoRAs are "
                        "intact, and their precision enough, or lower the guidance scales."
                    )

                if callback_on_step_end is not None:
                    tensors = {"latents": latents}
                    for name, (tensor, mask) in conditions.items():
                        tensors |= {name: tensor, f"{name}_mask": mask}
                    callback_kwargs = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    callback_outputs = callback_on_step_end(self, i, t, callback_kwargs)
                    latents = callback_outputs.pop("latents", latents)
                    for name, (tensor, mask) in conditions.items():
                        new_tensor = callback_outputs.pop(name, tensor)
                        new_mask = callback_outputs.pop(f"{name}_mask", mask)
                        if new_tensor is not tensor or new_mask is not mask:
                            conditions[name] = self._place_embeds(new_tensor, new_mask, device)

        self._current_timestep = None
        caches = [*token_caches.values(), *(kv_cache for _, kv_cache in kv_caches.values())]
        self._kv_cache_nbytes = sum(cache.nbytes for cache in caches)
        return latents
