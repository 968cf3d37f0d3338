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
"""Edits of footage: any clip is fitted to the model, edited in windows, and comes back as it was, but for the edit."""

import hashlib
import json
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageChops
import PIL.ImageFilter
import torch
from diffusers import SchedulerMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import LoomVideoError
from ..media.decoding import PIXEL_FORMATS, convert_pixels, is_sequence, sequence_files
from ..media.encoding import plan_output, write_footage
from ..media.files import lock_beside, remove_leftovers, write_whole
from ..pipelines import LoomVideoEditPipeline
from ..pipelines.loomvideo_frames import (
    TRAINED_SIZES_480P,
    fit_all,
    mllm_frame_indices,
    nearest_size,
    to_references,
)
from ..pipelines.loomvideo_guidance import divide_into_windows
from ..pipelines.loomvideo_mllm import PROMPT_PREFIXES
from ..pipelines.loomvideo_sharing import one_call_at_a_time
from ..progress import progress_bar, stage
from .survey import Footage, read_frames, read_model_frames, spread_frames, spread_indices


# A change of color that is no more than this is the VAE's, not the edit's; what surrounds a change may have changed
# too, and the edge of that is soft. In steps of color, and in pixels of the model's frames.
SMALLEST_CHANGE = 24
CHANGE_MARGIN = 9
CHANGE_SOFTNESS = 4


@dataclass(frozen=True)
class Fit:
    """
    How a picture is laid into the model's frame: scaled, in the middle, and where it does not reach its edge repeated.

    Attributes:
        width, height: of the model's frame.
        inner: left, top, right and bottom of the picture in it; what lies beyond the frame is not seen.
    """

    width: int
    height: int
    inner: tuple[int, int, int, int]

    @classmethod
    def of(cls, footage: Footage, width: int, height: int, max_crop: float) -> "Fit":
        """Scales a picture to be as large as can be if no more than a share of it may lie beyond the frame."""
        scales = (width / footage.width, height / footage.height)
        scale = min(max(scales), min(scales) / (1 - max_crop))
        inner_width, inner_height = max(1, round(footage.width * scale)), max(1, round(footage.height * scale))
        left, top = (width - inner_width) // 2, (height - inner_height) // 2
        return cls(width, height, (left, top, left + inner_width, top + inner_height))

    @property
    def visible(self) -> tuple[int, int, int, int]:
        """The part of the model's frame that shows the picture."""
        left, top, right, bottom = self.inner
        return max(left, 0), max(top, 0), min(right, self.width), min(bottom, self.height)

    def lay_in(self, pixels: np.ndarray) -> np.ndarray:
        """Lays a picture into the model's frame, uint8 `[H, W, 3]`."""
        left, top, right, bottom = self.inner
        image = PIL.Image.fromarray(pixels).resize((right - left, bottom - top), PIL.Image.Resampling.BILINEAR)
        seen = (max(-left, 0), max(-top, 0))
        visible = self.visible
        image = image.crop((*seen, seen[0] + visible[2] - visible[0], seen[1] + visible[3] - visible[1]))
        margins = ((visible[1], self.height - visible[3]), (visible[0], self.width - visible[2]), (0, 0))
        return np.pad(np.asarray(image), margins, mode="edge")

    def take_out(self, picture: np.ndarray, background: np.ndarray) -> np.ndarray:
        """
        Scales a picture in the model's frame back, onto one of the size that the footage has.

        Both are `[H, W]` or `[H, W, 3]`, uint8 or uint16.
        """
        left, top, right, bottom = self.inner
        scale = (background.shape[1] / (right - left), background.shape[0] / (bottom - top))
        visible = self.visible
        place = [
            round((edge - start) * ratio)
            for edge, start, ratio in zip(visible, (left, top, left, top), (*scale, *scale))
        ]
        whole = background.copy()
        part = picture[visible[1] : visible[3], visible[0] : visible[2]]
        whole[place[1] : place[3], place[0] : place[2]] = _scale(part, place[2] - place[0], place[3] - place[1])
        return whole


def _scale(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Scales pixels `[H, W]` or `[H, W, 3]` of uint8 or uint16, which Pillow scales one color at a time."""
    if pixels.dtype == np.uint8:
        return np.asarray(PIL.Image.fromarray(pixels).resize((width, height), PIL.Image.Resampling.LANCZOS))
    colors = [PIL.Image.fromarray(pixels[..., index].astype(np.float32)) for index in range(pixels.shape[2])]
    scaled = [np.asarray(color.resize((width, height), PIL.Image.Resampling.LANCZOS)) for color in colors]
    return np.stack(scaled, axis=-1).round().clip(0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)


@dataclass(frozen=True)
class Edit:
    """
    What is to be done with a clip.

    Attributes:
        prompt: the instruction.
        references: images that the prompt calls `@Image 1`, ...
        negative_prompt: what to avoid; None for the published one.
        seed: of the noise.
        height, width: of the model's frame, multiples of 32; None for the trained size of the nearest proportions.
        max_crop: the share of the picture that may be left out at its edges, where it stays as it is; the rest of what
            does not fit the proportions is filled by repeating the edge, and cut off again.
        keep_unchanged: take what the edit did not change from the clip, at its full resolution.
        num_inference_steps, guidance_scale, guidance_scale_visual, window_frames, window_overlap: as in a call.
        lora_scale: weight of the LoRAs.
    """

    prompt: str
    references: tuple[PIL.Image.Image, ...] = ()
    negative_prompt: str | None = None
    seed: int = 0
    height: int | None = None
    width: int | None = None
    max_crop: float = 0.0
    keep_unchanged: bool = False
    num_inference_steps: int = 50
    guidance_scale: float = 2.5
    guidance_scale_visual: float = 1.5
    window_frames: int = 121
    window_overlap: int | None = None
    lora_scale: float = 1.0

    def fit(self, footage: Footage) -> Fit:
        """How the pictures of a clip are laid into the model's frame."""
        if not 0 <= self.max_crop < 1:
            raise LoomVideoError(f"`max_crop` must be at least 0 and below 1, but is {self.max_crop}.")
        width, height = self.width, self.height
        if (height is None) != (width is None):
            raise LoomVideoError("Only one of `height` and `width` was given: give both, or neither.")
        if height is None:
            sizes = TRAINED_SIZES_480P + [(height, width) for width, height in TRAINED_SIZES_480P]
            width, height = nearest_size(footage.width, footage.height, sizes)
        return Fit.of(footage, width, height, self.max_crop)

    def digest(self, footage: Footage, model: str) -> str:
        """A hash of all that the latents depend on."""
        files = sequence_files(footage.path) if is_sequence(footage.path) else [footage.path]
        values = vars(self) | {
            "references": [hashlib.sha256(image.tobytes()).hexdigest() for image in self.references]
        }
        values |= {"model": model, "num_frames": footage.num_model_frames}
        values["source"] = [
            [str(file.absolute()), status.st_size, status.st_mtime_ns] for file in files if (status := file.stat())
        ]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@one_call_at_a_time
@torch.no_grad()
def edit_footage(
    pipe: LoomVideoEditPipeline,
    footage: Footage,
    edit: Edit,
    output: Path,
    compare: Path | None = None,
    comment: str = "",
    model: str = "",
    audio: str = "copy",
    negative_prompt_embeds: torch.Tensor | None = None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """
    Edits a clip of any length, size and rate, and writes it with its own times, colors and sound.

    Memory does not grow with the length, but for the latents. After each step these are kept beside `output`, from
    where the same call goes on if it was broken off.

    Args:
        pipe: the editing pipeline.
        footage: what `survey` returned.
        edit: what is to be done.
        output: the file to write, ending in one of `FOOTAGE_SUFFIXES`, or the pattern of an image sequence.
        compare: a file for the clip and the result side by side.
        comment: what the file says of itself.
        model: what the pipeline was loaded from, LoRAs too: what one model broke off, no other goes on with.
        audio: `copy`, `encode` or `none`, see `plan_output`.
        negative_prompt_embeds: what `encode_negative_prompt` made of the edit's negative prompt, if it is for many.

    Returns:
        A few frames from all over the clip, and what became of them, uint8 `[H, W, 3]`.

    Raises:
        LoomVideoError: if an argument is wrong, or the clip cannot be read.
        OSError: if a file cannot be written. What was denoised stays, and the next call goes on with it.
    """
    output_plan = plan_output(footage, output, audio)
    shown = replace(footage, pixel_format=output_plan.pixel_format)
    compare_plan = None if compare is None else plan_output(shown, compare, audio, 2 * footage.width)
    fit = edit.fit(footage)
    progress = _Progress(output, edit.digest(footage, model), edit.seed)
    with lock_beside(output):
        latents = _denoise(pipe, footage, edit, fit, progress, negative_prompt_embeds)
        with ExitStack() as stack:
            writers = [stack.enter_context(write_footage(output_plan, footage, comment))]
            if compare_plan is not None:
                size = (2 * footage.width, footage.height)
                writers.append(stack.enter_context(write_footage(compare_plan, footage, comment, size)))
            chosen, sheet = set(spread_indices(footage)), ([], [])
            for index, (before, after) in enumerate(_results(pipe, latents, shown, edit, fit)):
                writers[0].write(after)
                for comparison in writers[1:]:
                    comparison.write(convert_pixels(np.hstack([before, after]), compare_plan.pixel_format))
                if index in chosen:
                    for row, pixels in zip(sheet, (before, after)):
                        row.append(convert_pixels(pixels, "rgb24"))
        pipe.maybe_free_model_hooks()
        progress.remove()
    return sheet


def edit_preview(
    pipe: LoomVideoEditPipeline, footage: Footage, edit: Edit, negative_prompt_embeds: torch.Tensor | None = None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Edits a few frames that are spread over a clip, as images. Returns them before and after, uint8 `[H, W, 3]`."""
    fit = edit.fit(footage)
    before = [convert_pixels(pixels, "rgb24") for pixels in spread_frames(footage)]
    if negative_prompt_embeds is not None:
        negative_prompt_embeds = negative_prompt_embeds.expand(len(before), -1, -1, -1)
    pictures = pipe(
        [edit.prompt] * len(before),
        negative_prompt=edit.negative_prompt if negative_prompt_embeds is None else None,
        negative_prompt_embeds=negative_prompt_embeds,
        image=[fit.lay_in(pixels) for pixels in before],
        reference_images=list(edit.references) or None,
        num_inference_steps=edit.num_inference_steps,
        guidance_scale=edit.guidance_scale,
        guidance_scale_visual=edit.guidance_scale_visual,
        attention_kwargs={"scale": edit.lora_scale},
        generator=[torch.Generator().manual_seed(edit.seed) for _ in before],
    ).frames
    pictures = (pictures[:, 0] * 255).round().astype(np.uint8)
    after = [_bring_back(picture, pixels, edit, fit, deque()) for picture, pixels in zip(pictures, before)]
    return before, after


def _denoise(
    pipe: LoomVideoEditPipeline,
    footage: Footage,
    edit: Edit,
    fit: Fit,
    progress: "_Progress",
    negative_prompt_embeds: torch.Tensor | None,
) -> torch.Tensor:
    """The latents of the result."""
    references = fit_all(to_references(list(edit.references) or None, 1), fit.height, fit.width)
    pipe.check_components("vae", "transformer", "scheduler")
    pipe.check_prompts(edit.prompt, edit.negative_prompt)
    pipe.check_size(fit.height, fit.width, footage.num_model_frames, edit.window_frames, edit.window_overlap)
    pipe.check_sampling(edit.num_inference_steps, edit.guidance_scale, edit.guidance_scale_visual)
    pipe.begin_call(edit.guidance_scale, edit.guidance_scale_visual, {"scale": edit.lora_scale})
    noise = pipe.prepare_latents(
        1,
        footage.num_model_frames,
        fit.height,
        fit.width,
        torch.Generator().manual_seed(edit.seed),
        None,
        edit.window_frames,
    )
    latents, num_steps, scheduler_state = progress.read(noise.device)
    if num_steps == edit.num_inference_steps:
        return latents

    # The MLLM sees a few of the frames that the VAE encodes.
    indices = mllm_frame_indices(footage.num_model_frames, edit.window_frames)
    seen = {}

    def frames() -> Iterator[np.ndarray]:
        read = progress_bar(read_model_frames(footage), desc="Reading frames", total=footage.num_model_frames)
        for index, pixels in enumerate(read):
            laid_in = fit.lay_in(pixels)
            if index in indices:
                seen[index] = laid_in
            yield laid_in

    source_latents = pipe.encode_in_chunks(frames())
    shown = [seen[index] for index in indices]
    with stage("Reading the prompt"):
        embeds = pipe.encode_branches(
            prompt_prefix=PROMPT_PREFIXES["edit video", bool(references[0])],
            prompt=edit.prompt,
            negative_prompt=edit.negative_prompt,
            references=references,
            sources=[np.stack(shown * 2 if len(shown) == 1 else shown)],
            do_classifier_free_guidance=pipe.do_classifier_free_guidance,
            negative_prompt_embeds=(negative_prompt_embeds, None),
        )

    def keep(
        pipe: LoomVideoEditPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        progress.write(tensors["latents"], num_steps + step + 1, pipe.scheduler)
        return {}

    reference_latents = pipe.prepare_reference_latents(references, 1)
    with pipe.denoising():
        timesteps = pipe.prepare_timesteps(edit.num_inference_steps)
        vars(pipe.scheduler).update(scheduler_state)
        return pipe.denoise(
            latents=noise if latents is None else latents,
            timesteps=timesteps[num_steps:],
            embeds=embeds,
            source_latents=source_latents,
            reference_latents=reference_latents,
            windows=divide_into_windows(
                footage.num_model_frames, edit.window_frames, edit.window_overlap, pipe.vae_scale_factor_temporal
            ),
            callback_on_step_end=keep,
        )


def _results(
    pipe: LoomVideoEditPipeline, latents: torch.Tensor, footage: Footage, edit: Edit, fit: Fit
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields each frame of a clip before and after, in the `pixel_format` of the footage."""
    is_deep = footage.pixel_format in (PIXEL_FORMATS[True, False], PIXEL_FORMATS[True, True])
    edited = _decode(pipe, latents, np.uint16 if is_deep else np.uint8)
    current, changes = -1, deque(maxlen=pipe.vae_scale_factor_temporal)
    read = progress_bar(read_frames(footage), desc="Writing frames", total=len(footage.times))
    for pixels, model_frame in zip(read, footage.model_frames):
        while current < model_frame:
            picture, current = next(edited), current + 1
        before = convert_pixels(pixels, footage.pixel_format)
        yield before, _bring_back(picture, before, edit, fit, changes)


def _bring_back(
    picture: np.ndarray, pixels: np.ndarray, edit: Edit, fit: Fit, changes: deque[np.ndarray]
) -> np.ndarray:
    """
    The edited picture at the size that the frame has, and with its alpha; `changes` are those of the last frames.

    The picture is `[h, w, 3]`, the frame's pixels `[H, W, 3 or 4]`, both of uint8 or of uint16.
    """
    colors = pixels[..., :3]
    after = fit.take_out(picture, colors)
    if edit.keep_unchanged:
        before = fit.lay_in(convert_pixels(pixels, "rgb24"))
        changes.append(_find_change(before, convert_pixels(picture, "rgb24")))
        change = PIL.Image.fromarray(np.max(changes, axis=0))
        mask = np.asarray(change.filter(PIL.ImageFilter.GaussianBlur(CHANGE_SOFTNESS)))
        share = fit.take_out(mask, np.zeros(colors.shape[:2], np.uint8))[..., None].astype(np.float32) / 255
        after = (colors + share * (after.astype(np.float32) - colors)).round().astype(pixels.dtype)
    return after if pixels.shape[2] == 3 else np.concatenate([after, pixels[..., 3:]], axis=2)


def _decode(pipe: LoomVideoEditPipeline, latents: torch.Tensor, dtype: type = np.uint8) -> Iterator[np.ndarray]:
    """Yields the frames of latents, `[h, w, 3]`."""
    for chunk in pipe.decode_in_chunks(latents):
        for frame in chunk[0].permute(1, 2, 3, 0).float().cpu().numpy():
            yield ((frame / 2 + 0.5) * np.iinfo(dtype).max).round().astype(dtype)


def _find_change(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Where two pictures differ, and around that, as 255 in uint8 `[H, W]`."""
    difference = np.abs(before.astype(np.int16) - after).max(axis=2) > SMALLEST_CHANGE
    # A lone pixel is no change.
    change = PIL.Image.fromarray(difference.astype(np.uint8) * 255).filter(PIL.ImageFilter.MedianFilter(3))
    return np.asarray(change.filter(PIL.ImageFilter.MaxFilter(2 * CHANGE_MARGIN + 1)))


def unfinished_seed(output: Path) -> int | None:
    """The seed of an edit that was to write a file and was broken off, so that the same command can go on with it."""
    try:
        with safe_open(_unfinished_path(output), "pt") as file:
            return int(file.metadata()["seed"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def _unfinished_path(output: Path) -> Path:
    # Of any kind of file, as one that failed may be tried as another.
    return output.with_name(f".unfinished-{output.stem}.safetensors")


class _Progress:
    """The latents after the last step that was done, in a file beside the output; another edit's is left unread."""

    def __init__(self, output: Path, digest: str, seed: int):
        self.path = _unfinished_path(output)
        self.digest = digest
        self.seed = seed

    def read(self, device: torch.device) -> tuple[torch.Tensor | None, int, dict[str, Any]]:
        """Returns the latents, how many steps were done, and the scheduler's attributes."""
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata()
                if metadata["digest"] != self.digest:
                    return None, 0, {}
                tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError):
            return None, 0, {}
        latents, attributes = tensors.pop("latents"), json.loads(metadata["attributes"])
        for name, tensor in tensors.items():
            attribute, _, index = name.partition(" ")
            if index:
                attributes[attribute][int(index)] = tensor
            else:
                attributes[attribute] = tensor
        return latents, int(metadata["num_steps"]), attributes

    def write(self, latents: torch.Tensor, num_steps: int, scheduler: SchedulerMixin) -> None:
        tensors, attributes = {"latents": latents}, {}
        for name, value in vars(scheduler).items():
            # What a scheduler remembers of former steps is as large as the latents; all else it makes anew.
            if isinstance(value, torch.Tensor) and value.shape == latents.shape:
                tensors[name] = value
            elif isinstance(value, list):
                attributes[name] = [None if isinstance(entry, torch.Tensor) else entry for entry in value]
                tensors |= {
                    f"{name} {index}": entry for index, entry in enumerate(value) if isinstance(entry, torch.Tensor)
                }
            elif value is None or isinstance(value, (int, float)):
                attributes[name] = value
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        metadata = {"digest": self.digest, "seed": str(self.seed)}
        metadata |= {"num_steps": str(num_steps), "attributes": json.dumps(attributes)}
        write_whole(self.path, lambda file: save_file(tensors, file, metadata))

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        remove_leftovers(self.path)
