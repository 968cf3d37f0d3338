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
"""What programs call: Gradio's API, with a name and a type for each argument."""

import asyncio
from typing import Any

import gradio as gr
from gradio.context import LocalContext

from .options import OPTIONS, read_options
from .requests import in_one_sentence, path_of, paths_of, visit_of
from .runs import Run, State
from .studio import Studio


SECONDS_BETWEEN_LOOKS = 0.02


def add_endpoints(studio: Studio) -> None:
    """Adds the endpoints of a studio to the page that is being built."""

    async def result_of(call: Any, request: gr.Request, *args: Any, **options: Any) -> gr.FileData:
        visit, event = visit_of(studio, request), LocalContext.event_id.get(None) or ""
        options["is_watched"] = False
        run: Run = await asyncio.to_thread(in_one_sentence, studio, call, visit, *args, **options)
        while not run.is_over:
            if event in visit.cancelled:
                studio.runs.cancel(run)
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        visit.cancelled.discard(event)
        if run.state is not State.DONE:
            reason = run.outcome.error if run.outcome is not None else "The run was cancelled."
            raise gr.Error(reason, print_exception=False)
        return gr.FileData(path=str(run.result))

    async def edit(
        clip: gr.FileData,
        prompt: str,
        references: list[gr.FileData] = [],
        is_preview: bool = False,
        seed: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_scale_visual: float | None = None,
        height: int | None = None,
        width: int | None = None,
        keep_unchanged: bool = False,
        negative_prompt: str | None = None,
        model: str | None = None,
        loras: list[str] = [],
        lora_scale: float | None = None,
        strength: float | None = None,
        mask: gr.FileData | None = None,
        boxes: list[str] = [],
        mask_invert: bool | None = None,
        mask_feather: int | None = None,
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> gr.FileData:
        """
        Edits a clip or an image.

        Args:
            clip: a video or an image.
            prompt: the instruction, which calls the references @Image 1, @Image 2, ...
            references: images.
            is_preview: edit six frames only, and return an image of the source above the result.
            seed: of the noise; by default another one each time.
            num_inference_steps, guidance_scale, guidance_scale_visual, height, width, negative_prompt: by default the
                model's own.
            keep_unchanged: keep the clip's own pixels where the edit changed nothing.
            model, loras, lora_scale: of those that are offered.
            strength: from 0, which keeps the source, to 1.
            mask: an image or a video, white or opaque where something may change.
            boxes: in its place X,Y,W,H in pixels, or several X,Y,W,H@SECONDS of a box that moves.
            mask_invert: change what is outside of the mask or the box.
            mask_feather: pixels of the soft border within the mask, by default 4.
        """
        given = {name: value for name, value in locals().items() if name in OPTIONS}
        files = path_of(clip), prompt, paths_of(references)
        own = {"is_preview": is_preview, "mask": path_of(mask)}
        return await result_of(studio.edit, request, *files, **own, **read(given))

    async def generate(
        prompt: str,
        references: list[gr.FileData] = [],
        num_frames: int | None = None,
        seed: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_scale_visual: float | None = None,
        height: int | None = None,
        width: int | None = None,
        negative_prompt: str | None = None,
        model: str | None = None,
        loras: list[str] = [],
        lora_scale: float | None = None,
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> gr.FileData:
        """
        Generates a video, or an image.

        Args:
            prompt: what to show, which calls the references @Image 1, @Image 2, ...
            references: images.
            num_frames: 1, 5, 9, ...; 24 are a second, and 1 makes an image. By default the model's own.
            seed: of the noise; by default another one each time.
            num_inference_steps, guidance_scale, guidance_scale_visual, height, width, negative_prompt: by default the
                model's own.
            model, loras, lora_scale: of those that are offered.
        """
        given = {name: value for name, value in locals().items() if name in OPTIONS}
        return await result_of(studio.generate, request, prompt, paths_of(references), **read(given))

    def read(given: dict[str, Any]) -> dict[str, Any]:
        return in_one_sentence(studio, read_options, given, studio.limits)

    for call in (edit, generate):
        gr.api(call, api_name=call.__name__, concurrency_limit=None)
