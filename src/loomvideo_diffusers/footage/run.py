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
"""Runs the plan of an edit with a pipeline's steps: read, encode, denoise, decode and write, as streams."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from ..media import contact_sheet
from ..media.decoding import PIXEL_FORMATS, convert_pixels
from ..media.encoding import OutputPlan, write_footage
from ..media.files import lock_beside
from ..media.images import write_image
from ..pipelines import LoomVideoEditPipeline, LoomVideoPipeline
from ..pipelines.loomvideo_frames import Image, fit_all, mllm_frame_indices
from ..pipelines.loomvideo_guidance import divide_into_windows
from ..pipelines.loomvideo_mllm import PROMPT_PREFIXES
from ..pipelines.loomvideo_sharing import one_call_at_a_time
from ..progress import Stopwatch, progress_bar, stage
from .geometry import Placement
from .masks import latent_mask_of, overlay
from .overlap import beside, read_ahead
from .plan import EditPlan, Report
from .resume import ResumeFile
from .settings import EditSettings, SamplingSettings
from .surveying import Footage, read_frames, read_model_frames, spread_frames, spread_indices
from .unchanged import ChangeMask


# Frames before and after the edit, uint8 [H, W, 3]
Sheet = tuple[list[Image], list[Image]]


def run_edit(
    pipe: LoomVideoEditPipeline,
    plan: EditPlan,
    negative_prompt_embeds: torch.Tensor | None = None,
    callback_on_step_end: Callable | None = None,
) -> Report:
    """See `EditPlan.run`."""
    if plan.mask_out is None or not pipe.is_leader:
        return _run(pipe, plan, negative_prompt_embeds, callback_on_step_end)
    write_mask(plan)
    report = _run(pipe, plan, negative_prompt_embeds, callback_on_step_end)
    path = plan.mask_out if isinstance(plan.mask_out, Path) else plan.mask_out.path
    return replace(report, files={**report.files, path: "what may change, over the source"})


def _run(
    pipe: LoomVideoEditPipeline,
    plan: EditPlan,
    negative_prompt_embeds: torch.Tensor | None,
    callback_on_step_end: Callable | None,
) -> Report:
    if isinstance(plan.source, PIL.Image.Image):
        return _edit_image(pipe, plan, negative_prompt_embeds, callback_on_step_end)
    if plan.preview is not None:
        with stage("Reading the prompt"):
            sheet = edit_preview(pipe, plan, negative_prompt_embeds, callback_on_step_end)
        if not pipe.is_leader:
            return Report({})
        write_image(plan.preview, contact_sheet(list(sheet)), plan.comment)
        return Report({plan.preview: "the source above the result"})
    stopwatch = Stopwatch()
    with stopwatch.stage("edit"):
        sheet = _edit_clip(pipe, plan, negative_prompt_embeds, callback_on_step_end)
    if sheet is None:
        return Report({})
    footage = plan.source
    assert isinstance(plan.output, OutputPlan)
    files: dict[Path | str, str] = {
        plan.output.path: f"{len(footage.times)} frames at {float(footage.rate):.4g} a second, "
        f"{footage.width} x {footage.height}, seed {plan.settings.seed}"
    }
    if plan.compare is not None:
        files[plan.compare.path] = "the source beside the result"
    if plan.contact_sheet is not None:
        write_image(plan.contact_sheet, contact_sheet(list(sheet)))
        files[plan.contact_sheet] = "the source above the result"
    return Report(files, stopwatch.seconds)


def write_mask(plan: EditPlan) -> None:
    """Writes the mask over the source, to be looked at."""
    assert plan.mask is not None
    if isinstance(plan.source, PIL.Image.Image):
        assert isinstance(plan.mask_out, Path)
        write_image(plan.mask_out, overlay(np.asarray(plan.source), plan.mask[0]))
        return
    if isinstance(plan.mask_out, Path):
        pairs = zip(spread_frames(plan.source), spread_indices(plan.source))
        shown = [overlay(convert_pixels(pixels, "rgb24"), plan.mask[index]) for pixels, index in pairs]
        write_image(plan.mask_out, contact_sheet([shown]))
        return
    assert plan.mask_out is not None
    with write_footage(plan.mask_out, plan.source, plan.comment) as output:
        frames = progress_bar(read_frames(plan.source), desc="Writing the mask", total=len(plan.source.times))
        for index, pixels in enumerate(frames):
            output.write(overlay(convert_pixels(pixels, "rgb24"), plan.mask[index]))


def call_pipeline(
    pipe: LoomVideoPipeline | LoomVideoEditPipeline, settings: SamplingSettings, stopwatch: Stopwatch, **inputs: Any
) -> np.ndarray:
    """Calls a pipeline with settings and other inputs. Returns the frames of the video, `[F, H, W, 3]` in [0, 1]."""
    options = call_arguments(settings) | {"generator": torch.Generator().manual_seed(settings.seed)} | inputs
    with stopwatch.stage("denoise"), stage("Reading the prompt"):
        latents = pipe(**options, output_type="latent").frames
    with stopwatch.stage("decode"), stage("Decoding"), torch.no_grad():
        chunks = [pipe.video_processor.postprocess_video(chunk)[0] for chunk in pipe.decode_in_chunks(latents)]
        pipe.maybe_free_model_hooks()
    return np.concatenate(chunks)


def call_arguments(settings: SamplingSettings) -> dict[str, Any]:
    """The arguments of a pipeline's call that settings name."""
    return {
        "prompt": settings.prompt,
        "negative_prompt": settings.negative_prompt,
        "reference_images": list(settings.references) or None,
        "height": settings.height,
        "width": settings.width,
        "num_inference_steps": settings.num_inference_steps,
        "sigmas": settings.sigmas,
        "guidance_scale": settings.guidance_scale,
        "guidance_scale_visual": settings.guidance_scale_visual,
        "window_frames": settings.window_frames,
        "window_overlap": settings.window_overlap,
        "attention_kwargs": {"scale": settings.lora_scale},
    } | ({"strength": settings.strength} if isinstance(settings, EditSettings) else {})


def given_negative_prompt(negative_prompt_embeds: torch.Tensor | None) -> dict[str, Any]:
    """Replaces the negative prompt of a call by its embeds, if they are there."""
    if negative_prompt_embeds is None:
        return {}
    return {"negative_prompt": None, "negative_prompt_embeds": negative_prompt_embeds}


def _edit_image(
    pipe: LoomVideoEditPipeline,
    plan: EditPlan,
    negative_prompt_embeds: torch.Tensor | None,
    callback_on_step_end: Callable | None,
) -> Report:
    assert isinstance(plan.source, PIL.Image.Image)
    assert isinstance(plan.output, Path)
    stopwatch, settings = Stopwatch(), plan.settings
    inputs = {"image": plan.source, "callback_on_step_end": callback_on_step_end} | given_negative_prompt(
        negative_prompt_embeds
    )
    pixels = np.asarray(plan.source)
    if plan.mask is not None:
        # The frame of the model is smaller than the image: around it and outside of the mask, the image stays.
        placement = _place_image(pipe, plan.source, settings)
        inputs |= {"image": placement.place(pixels), "mask": placement.place(plan.mask[0]), "mask_feather": 0}
        inputs |= {"height": placement.height, "width": placement.width}
    picture = (call_pipeline(pipe, settings, stopwatch, **inputs)[0] * 255).round().astype(np.uint8)
    if not pipe.is_leader:
        return Report({})
    if plan.mask is not None:
        picture = _bring_back(picture, pixels, replace(plan, placement=placement), ChangeMask(), 0)
    with stopwatch.stage("write"):
        write_image(plan.output, picture, plan.comment)
    height, width = picture.shape[:2]
    files: dict[Path | str, str] = {plan.output: f"1 image, {width} x {height}, seed {settings.seed}"}
    if plan.contact_sheet is not None:
        write_image(plan.contact_sheet, contact_sheet([[plan.source], [picture]]))
        files[plan.contact_sheet] = "the source above the result"
    return Report(files, stopwatch.seconds)


def _place_image(pipe: LoomVideoEditPipeline, image: PIL.Image.Image, settings: SamplingSettings) -> Placement:
    """Places an image in a frame of the size asked for, or of its own, rounded down to what the model takes."""
    step = pipe.size_step
    width = settings.width or max(step, image.width // step * step)
    height = settings.height or max(step, image.height // step * step)
    return Placement.of(image.size, width, height)


def edit_preview(
    pipe: LoomVideoEditPipeline,
    plan: EditPlan,
    negative_prompt_embeds: torch.Tensor | None = None,
    callback_on_step_end: Callable | None = None,
) -> Sheet:
    """Edits a few frames from all over a clip as images. Returns them before and after, uint8 `[H, W, 3]`."""
    assert isinstance(plan.source, Footage)
    assert plan.placement is not None
    before = [convert_pixels(pixels, "rgb24") for pixels in spread_frames(plan.source)]
    if negative_prompt_embeds is not None:
        negative_prompt_embeds = negative_prompt_embeds.expand(len(before), -1, -1, -1)
    options = call_arguments(plan.settings) | {
        "prompt": [plan.settings.prompt] * len(before),
        "image": [plan.placement.place(pixels) for pixels in before],
        "height": plan.placement.height,
        "width": plan.placement.width,
        "generator": [torch.Generator().manual_seed(plan.settings.seed) for _ in before],
        "callback_on_step_end": callback_on_step_end,
    }
    indices = spread_indices(plan.source)
    if plan.mask is not None:
        options |= {"mask": [plan.placement.place(plan.mask[index]) for index in indices], "mask_feather": 0}
    pictures = pipe(**options | given_negative_prompt(negative_prompt_embeds)).frames
    pictures = (pictures[:, 0] * 255).round().astype(np.uint8)
    after = [
        _bring_back(picture, pixels, plan, ChangeMask(), index)
        for picture, pixels, index in zip(pictures, before, indices)
    ]
    return [*before], [*after]


@one_call_at_a_time
@torch.no_grad()
def _edit_clip(
    pipe: LoomVideoEditPipeline,
    plan: EditPlan,
    negative_prompt_embeds: torch.Tensor | None,
    callback_on_step_end: Callable | None,
) -> Sheet | None:
    """Edits and writes a clip. Returns the frames of the contact sheet; None in a process that does not lead."""
    assert isinstance(plan.output, OutputPlan)
    resume = ResumeFile(plan.output.path, plan.digest(), plan.settings.seed)
    if not pipe.is_leader:
        latents = _denoise(pipe, plan, resume, negative_prompt_embeds, callback_on_step_end)
        for _ in pipe.decode_in_chunks(latents):
            pass  # It is the leader's to write.
        return None
    with lock_beside(plan.output.path):
        latents = _denoise(pipe, plan, resume, negative_prompt_embeds, callback_on_step_end)
        sheet = _write_clip(pipe, plan, latents)
        pipe.maybe_free_model_hooks()
        resume.remove()
    return sheet


def _denoise(
    pipe: LoomVideoEditPipeline,
    plan: EditPlan,
    resume: ResumeFile,
    negative_prompt_embeds: torch.Tensor | None,
    callback_on_step_end: Callable | None,
) -> torch.Tensor:
    """Returns the latents of the result."""
    assert isinstance(plan.source, Footage)
    assert plan.placement is not None
    settings, placement, num_frames = plan.settings, plan.placement, plan.source.num_model_frames
    height, width, num_steps = placement.height, placement.width, settings.num_inference_steps
    pipe.check_components("text_encoder", "processor", "vae", "transformer", "scheduler")
    pipe.check_size(height, width, num_frames, settings.window_frames, settings.window_overlap)
    pipe.check_sampling(num_steps, settings.guidance_scale, settings.guidance_scale_visual, sigmas=settings.sigmas)
    pipe.begin_call(settings.guidance_scale, settings.guidance_scale_visual, {"scale": settings.lora_scale})
    generator = torch.Generator().manual_seed(settings.seed)
    noise = pipe.prepare_latents(1, num_frames, height, width, generator, None, settings.window_frames)
    state = resume.read(noise.device)
    if state is not None and state.num_done == state.num_timesteps:
        return state.latents

    source_latents, seen = _encode_clip(pipe, plan)
    references = fit_all([list(settings.references)], height, width)
    with stage("Reading the prompt"):
        embeds = pipe.encode_branches(
            PROMPT_PREFIXES["edit video", bool(settings.references)],
            settings.prompt,
            settings.negative_prompt,
            references,
            [seen],
            pipe.do_classifier_free_guidance,
            given={"negative_prompt_embeds": (negative_prompt_embeds, None)},
        )
    reference_latents = pipe.prepare_reference_latents(references, 1)
    latent_mask = None
    if plan.mask is not None:
        factors = (pipe.vae_scale_factor_spatial, pipe.vae_scale_factor_temporal)
        latent_mask = latent_mask_of(plan.mask, plan.source, placement, *factors).to(noise.device)

    with pipe.denoising():
        timesteps = pipe.prepare_timesteps(num_steps, settings.sigmas)
        latents, remaining = pipe.begin_with_source(noise, source_latents, timesteps, settings.strength)
        num_done = len(timesteps) - len(remaining)
        if state is not None:
            latents, num_done = state.latents, state.num_done
            vars(pipe.scheduler).update(state.scheduler_attributes)

        def save(
            pipe: LoomVideoEditPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, Any]
        ) -> dict[str, Any]:
            replaced = {} if callback_on_step_end is None else callback_on_step_end(pipe, step, timestep, tensors)
            if pipe.is_leader:
                resume.write((tensors | replaced)["latents"], num_done + step + 1, pipe.scheduler)
            return replaced

        return pipe.denoise(
            latents,
            timesteps[num_done:],
            embeds,
            source_latents,
            reference_latents,
            divide_into_windows(
                num_frames, settings.window_frames, settings.window_overlap, pipe.vae_scale_factor_temporal
            ),
            callback_on_step_end=save,
            latent_mask=latent_mask,
            noise=noise,
        )


def _encode_clip(pipe: LoomVideoEditPipeline, plan: EditPlan) -> tuple[torch.Tensor, np.ndarray]:
    """Encodes a clip while it is read. Returns its latents, and the frames for the MLLM, uint8 `[F, h, w, 3]`."""
    footage, placement = plan.source, plan.placement
    assert isinstance(footage, Footage)
    assert placement is not None
    num_frames = footage.num_model_frames
    indices = mllm_frame_indices(num_frames, plan.settings.window_frames)
    seen = {}

    def frames() -> Iterator[np.ndarray]:
        read = read_ahead(map(placement.place, read_model_frames(footage)))
        for index, placed in enumerate(progress_bar(read, desc="Reading frames", total=num_frames)):
            if index in indices:
                seen[index] = placed
            yield placed

    latents = pipe.encode_in_chunks(frames())
    shown = [seen[index] for index in indices]
    # A patch of the MLLM spans two frames.
    return latents, np.stack(shown * 2 if len(shown) == 1 else shown)


def _write_clip(pipe: LoomVideoEditPipeline, plan: EditPlan, latents: torch.Tensor) -> Sheet:
    """Decodes the result and writes it, frame by frame. Returns the frames of the contact sheet."""
    footage = plan.source
    assert isinstance(footage, Footage)
    assert isinstance(plan.output, OutputPlan)
    sheet: Sheet = ([], [])
    chosen = set(spread_indices(footage)) if plan.contact_sheet is not None else set()
    with ExitStack() as stack:
        output = stack.enter_context(write_footage(plan.output, footage, plan.comment))
        if plan.compare is not None:
            compare = stack.enter_context(write_footage(plan.compare, footage, plan.comment))
        later = stack.enter_context(beside())
        for index, (before, after) in enumerate(_results(pipe, plan, latents)):
            later(output.write, after)
            if plan.compare is not None:
                later(compare.write, convert_pixels(np.hstack([before, after]), plan.compare.pixel_format))
            if index in chosen:
                for row, pixels in zip(sheet, (before, after)):
                    row.append(convert_pixels(pixels, "rgb24"))
    return sheet


def _results(
    pipe: LoomVideoEditPipeline, plan: EditPlan, latents: torch.Tensor
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """
    Yields each frame of a clip before and after the edit, in the output's pixel format.

    Where the result covers all of the source, and nothing of it is wanted, the clip is not decoded: before is black.
    """
    assert isinstance(plan.source, Footage)
    assert isinstance(plan.output, OutputPlan)
    footage, pixel_format = plan.source, plan.output.pixel_format
    frames: Iterator[np.ndarray]
    dtype = np.uint16 if pixel_format in (PIXEL_FORMATS[True, False], PIXEL_FORMATS[True, True]) else np.uint8
    if plan.needs_source_pixels:
        frames = read_ahead(convert_pixels(pixels, pixel_format) for pixels in read_frames(footage))
    else:
        frames = iter([np.zeros((footage.height, footage.width, 3), dtype)] * len(footage.times))
    edited = _decode(pipe, latents, dtype)
    current, changes = -1, ChangeMask(pipe.vae_scale_factor_temporal)
    frames = progress_bar(frames, desc="Writing frames", total=len(footage.times))
    for index, (before, model_frame) in enumerate(zip(frames, footage.model_frames)):
        while current < model_frame:
            picture, current = next(edited), current + 1
        yield before, _bring_back(picture, before, plan, changes, index)


def _bring_back(
    picture: np.ndarray, pixels: np.ndarray, plan: EditPlan, changes: ChangeMask, index: int
) -> np.ndarray:
    """
    Lays an edited picture over the pixels of a frame, whose size and alpha it gets, where it may change them.

    Both are uint8 or uint16. `index` is that of the frame.
    """
    assert plan.placement is not None
    colors = pixels[..., :3]
    after = plan.placement.restore(picture, colors)
    share: np.ndarray | float = 1.0
    if plan.mask is not None:
        share = plan.mask.feathered(index, plan.settings.mask_feather)
    if plan.settings.keep_unchanged:
        before = plan.placement.place(convert_pixels(pixels, "rgb24"))
        changed = changes.add(before, convert_pixels(picture, "rgb24"))
        changed = plan.placement.restore(changed, np.zeros(colors.shape[:2], np.uint8))
        share = share * changed[..., None].astype(np.float32) / 255
    if not isinstance(share, float):
        after = (colors + share * (after.astype(np.float32) - colors)).round().astype(pixels.dtype)
    return after if pixels.shape[2] == 3 else np.concatenate([after, pixels[..., 3:]], axis=2)


def _decode(pipe: LoomVideoEditPipeline, latents: torch.Tensor, dtype: type = np.uint8) -> Iterator[np.ndarray]:
    """Yields the frames of latents, `[h, w, 3]`."""
    for chunk in pipe.decode_in_chunks(latents):
        for frame in chunk[0].permute(1, 2, 3, 0).float().cpu().numpy():
            yield ((frame / 2 + 0.5) * np.iinfo(dtype).max).round().astype(dtype)
