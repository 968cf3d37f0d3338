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
"""The nodes: each calls what Python users call."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import torch
from comfy_api.input_impl import VideoFromFile
from comfy_api.latest import io

from loomvideo_diffusers.acceleration import Levers
from loomvideo_diffusers.errors import LoomVideoError
from loomvideo_diffusers.footage import plan_edit, survey
from loomvideo_diffusers.loading import DTYPES
from loomvideo_diffusers.media import write_video
from loomvideo_diffusers.media.decoding import PIXEL_FORMATS
from loomvideo_diffusers.media.encoding import plan_output, write_footage

from . import runtime


CATEGORY = "LoomVideo"
MODEL, EMBEDS = io.Custom("LOOMVIDEO_MODEL"), io.Custom("LOOMVIDEO_EMBEDS")
AS_USUAL = "as usual"
FRAMES_PER_SECOND = 24.0

OFFLOADS = {"nothing": None, "whole models": "model", "the MLLM's blocks": "blocks:mllm", "all blocks": "blocks"}
QUANTIZATIONS = {"none": (), "int8": ("int8",), "nf4": ("nf4",), "float8 (with compile)": ("float8",)}


class LoadModel(io.ComfyNode):
    """Loads a model folder, a repository, or nano."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomVideoLoadModel",
            display_name="LoomVideo: load model",
            category=CATEGORY,
            description="Loads LoomVideo from models/loomvideo, or from the Hub into it.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=runtime.list_models(),
                    tooltip="A folder in models/loomvideo, as `loomvideo convert` writes it; nano is in the package.",
                ),
                io.String.Input(
                    "repository",
                    default="",
                    optional=True,
                    tooltip="OWNER/NAME on the Hub, to be downloaded into models/loomvideo, in place of a folder.",
                ),
                io.Combo.Input(
                    "precision",
                    options=[AS_USUAL, *DTYPES],
                    default=AS_USUAL,
                    tooltip="Of the weights; as usual is bfloat16, or float32 on a CPU.",
                ),
                io.Combo.Input(
                    "offload",
                    options=list(OFFLOADS),
                    default="nothing",
                    tooltip="What waits in the main memory until it runs: less memory of the GPU, and slower.",
                ),
                io.Combo.Input(
                    "quantize",
                    options=list(QUANTIZATIONS),
                    default="none",
                    tooltip="Weights in fewer bits: less memory, a little less exact.",
                ),
                io.Boolean.Input("compile", default=False, tooltip="A slow first step, and faster ones after it."),
                io.Boolean.Input(
                    "keep_loaded",
                    default=True,
                    tooltip="Whether the model stays on the GPU between runs. Off makes room for other models.",
                ),
            ],
            outputs=[MODEL.Output(display_name="model", tooltip="The loaded model.")],
        )

    @classmethod
    def validate_inputs(cls, model: str = "", repository: str = "", **others: Any) -> bool | str:
        try:
            if not repository:
                runtime.find_model(model)
            elif len(Path(repository).parts) != 2 or ".." in repository or Path(repository).is_absolute():
                return f"A repository is called OWNER/NAME, but this one {repository}."
            levers_of(others)
        except LoomVideoError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, model: str = "", repository: str = "", **others: Any) -> Any:
        """Another one when the folder of the model has changed."""
        try:
            index = Path(runtime.find_model(model)) / "model_index.json"
            return repository or index.stat().st_mtime_ns
        except (LoomVideoError, OSError):
            return repository

    @classmethod
    def execute(cls, model: str, repository: str = "", **others: Any) -> io.NodeOutput:
        name = runtime.fetch_model(repository) if repository else model
        dtype = None if others["precision"] == AS_USUAL else others["precision"]
        loaded = runtime.load(runtime.find_model(name), dtype, levers_of(others), others["keep_loaded"])
        return io.NodeOutput(loaded)


def levers_of(values: dict[str, Any]) -> Levers:
    return Levers(
        quantize=QUANTIZATIONS.get(values.get("quantize", "none"), ()),
        compile=bool(values.get("compile")),
        offload=OFFLOADS.get(values.get("offload", "nothing")),
    )


class LoadLora(io.ComfyNode):
    """Adds a LoRA to a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomVideoLoadLora",
            display_name="LoomVideo: add LoRA",
            category=CATEGORY,
            description="Adds a LoRA of LoomVideo or of Wan2.2-TI2V-5B. Several can follow each other.",
            inputs=[
                MODEL.Input("model", tooltip="The model to add it to."),
                io.Combo.Input(
                    "lora", options=folder_paths.get_filename_list("loras"), tooltip="A file in models/loras."
                ),
                io.Float.Input(
                    "weight", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip="How much the LoRA counts."
                ),
            ],
            outputs=[MODEL.Output(display_name="model", tooltip="The model with the LoRA.")],
        )

    @classmethod
    def validate_inputs(cls, lora: str = "", **others: Any) -> bool | str:
        return True if folder_paths.get_full_path("loras", lora) else f"The LoRA {lora} is not in models/loras."

    @classmethod
    def fingerprint_inputs(cls, lora: str = "", **others: Any) -> Any:
        """Another one when the file has changed."""
        path = folder_paths.get_full_path("loras", lora)
        return Path(path).stat().st_mtime_ns if path else None

    @classmethod
    def execute(cls, model: runtime.Model, lora: str, weight: float) -> io.NodeOutput:
        return io.NodeOutput(model.with_lora(folder_paths.get_full_path_or_raise("loras", lora), weight))


def text_inputs(what: str) -> list[Any]:
    return [
        io.String.Input(
            "prompt", multiline=True, dynamic_prompts=True, tooltip=f"{what} Calls references @Image 1, ..."
        ),
        io.String.Input(
            "negative_prompt", multiline=True, default="", tooltip="What to avoid. Empty: the usual words."
        ),
    ]


def sampling_inputs(guidance_scale: float) -> list[Any]:
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="The same seed gives the same result.",
        ),
        io.Int.Input("steps", default=50, min=1, max=1000, tooltip="Denoising steps. nano is best with 20."),
        io.Float.Input(
            "guidance",
            default=guidance_scale,
            min=0.0,
            max=30.0,
            step=0.1,
            tooltip="How much the words count. nano is best with 2.5.",
        ),
        io.Float.Input(
            "visual_guidance",
            default=1.5,
            min=0.0,
            max=30.0,
            step=0.1,
            tooltip="How much source and references count. nano is best with 2.5.",
        ),
    ]


def references_input() -> Any:
    return io.Image.Input(
        "references", optional=True, tooltip="A batch of images that the prompt calls @Image 1, @Image 2, ..."
    )


def embeds_input() -> Any:
    return EMBEDS.Input(
        "embeds",
        optional=True,
        tooltip="What was encoded apart, in place of the prompts. The pictures must be the same.",
    )


def sampling_options(values: dict[str, Any]) -> dict[str, Any]:
    return {
        "num_inference_steps": values["steps"],
        "guidance_scale": values["guidance"],
        "guidance_scale_visual": values["visual_guidance"],
    }


def words(prompt: str, negative_prompt: str, embeds: dict[str, Any] | None) -> dict[str, Any]:
    return embeds or {"prompt": prompt, "negative_prompt": negative_prompt or None}


def check_words(prompt: str | None) -> bool | str:
    """A prompt that comes along a wire is None here."""
    return True if prompt is None or prompt.strip() else "The prompt is blank: say what to show or to change."


class Encode(io.ComfyNode):
    """Encodes prompts apart."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomVideoEncode",
            display_name="LoomVideo: encode prompt",
            category=CATEGORY,
            description="Runs the MLLM once, for several results from the same words and pictures.",
            inputs=[
                MODEL.Input("model", tooltip="The model whose MLLM reads the prompt."),
                *text_inputs("What to show or to change."),
                io.Int.Input("width", default=832, min=16, max=4096, step=16, tooltip="Of a new result in pixels."),
                io.Int.Input("height", default=480, min=16, max=4096, step=16, tooltip="Of a new result in pixels."),
                io.Int.Input(
                    "length", default=81, min=1, max=2001, step=4, tooltip="Frames of a new result; 1 is an image."
                ),
                io.Image.Input(
                    "source", optional=True, tooltip="The frames to edit; without them, something new is made."
                ),
                references_input(),
            ],
            outputs=[EMBEDS.Output(display_name="embeds", tooltip="What the MLLM makes of them.")],
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None = None, length: int | None = None, **others: Any) -> bool | str:
        return check_length(length) or check_words(prompt)

    @classmethod
    def execute(
        cls,
        model: runtime.Model,
        prompt: str,
        negative_prompt: str,
        width: int,
        height: int,
        length: int,
        source: torch.Tensor | None = None,
        references: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        given = words(prompt, negative_prompt, None) | {"reference_images": runtime.to_pictures(references)}
        size = {"width": width, "height": height}
        with runtime.in_use(model) as (pipe, edit, _), torch.no_grad():
            if source is None:
                encoded = pipe.encode_prompt(**given, **size, num_frames=length)
            else:
                encoded = edit.encode_prompt(**given, **frames_input(source))
        return io.NodeOutput(dict(zip(EMBEDS_OF_BRANCHES, encoded)))


EMBEDS_OF_BRANCHES = (
    "prompt_embeds",
    "prompt_embeds_mask",
    "visual_prompt_embeds",
    "visual_prompt_embeds_mask",
    "negative_prompt_embeds",
    "negative_prompt_embeds_mask",
)


def frames_input(images: torch.Tensor) -> dict[str, Any]:
    """An IMAGE as the source of an edit: one picture is an image, several are a clip of 4k + 1 frames."""
    pictures = runtime.to_pictures(images) or []
    if len(pictures) == 1:
        return {"image": pictures[0]}
    return {"video": pictures + pictures[-1:] * (-(len(pictures) - 1) % 4)}


class Generate(io.ComfyNode):
    """Videos and images from words and references."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomVideoGenerate",
            display_name="LoomVideo: generate",
            category=CATEGORY,
            description="Makes a video, or an image with a length of 1, from words, with or without references.",
            inputs=[
                MODEL.Input("model", tooltip="The model to make it with."),
                *text_inputs("What to show."),
                io.Int.Input(
                    "width", default=832, min=16, max=4096, step=16, tooltip="In pixels. nano knows 96 x 96."
                ),
                io.Int.Input("height", default=480, min=16, max=4096, step=16, tooltip="In pixels."),
                io.Int.Input(
                    "length", default=81, min=1, max=2001, step=4, tooltip="Frames, 24 a second: 1, 5, 9, ..."
                ),
                *sampling_inputs(5.0),
                references_input(),
                embeds_input(),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The frames."),
                io.Float.Output(display_name="fps", tooltip="Frames a second."),
            ],
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None = None, length: int = 1, **others: Any) -> bool | str:
        return check_length(length) or check_words(prompt)

    @classmethod
    def execute(
        cls,
        model: runtime.Model,
        prompt: str,
        negative_prompt: str,
        width: int,
        height: int,
        length: int,
        seed: int,
        references: torch.Tensor | None = None,
        embeds: dict[str, Any] | None = None,
        **sampling: Any,
    ) -> io.NodeOutput:
        with runtime.in_use(model) as (pipe, _, watch):
            frames = pipe(
                **words(prompt, negative_prompt, embeds),
                **sampling_options(sampling),
                reference_images=runtime.to_pictures(references),
                width=width,
                height=height,
                num_frames=length,
                generator=torch.Generator().manual_seed(seed % runtime.MOST_SEEDS),
                callback_on_step_end=watch,
            ).frames[0]
        return io.NodeOutput(runtime.to_image(frames), FRAMES_PER_SECOND)


def check_length(length: int | None) -> str | None:
    """What is wrong with a number of frames, if something is."""
    if length is None or length % 4 == 1:
        return None
    return f"A length is 1, 5, 9, ... frames, but this one is {length}."


def mask_inputs() -> list[Any]:
    return [
        io.Mask.Input("mask", optional=True, tooltip="White where something may change; one, or one for each frame."),
        io.Int.Input("mask_feather", default=4, min=0, max=1000, tooltip="Pixels of the soft border within the mask."),
        io.Float.Input(
            "strength", default=1.0, min=0.0, max=1.0, step=0.05, tooltip="Below 1, more of the source stays."
        ),
    ]


class EditFrames(io.ComfyNode):
    """Edits of frames or of an image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomVideoEditFrames",
            display_name="LoomVideo: edit frames",
            category=CATEGORY,
            description="Edits a batch of frames at 24 a second, or one image, by instruction.",
            inputs=[
                MODEL.Input("model", tooltip="The model to edit with."),
                io.Image.Input(
                    "images", tooltip="The frames, or one image. Sides are rounded down to multiples of 32."
                ),
                *text_inputs("What to change."),
                *sampling_inputs(2.5),
                *mask_inputs(),
                references_input(),
                embeds_input(),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="As many frames as came in.")],
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None = None, **others: Any) -> bool | str:
        return check_words(prompt)

    @classmethod
    def execute(
        cls,
        model: runtime.Model,
        images: torch.Tensor,
        prompt: str,
        negative_prompt: str,
        seed: int,
        mask_feather: int,
        strength: float,
        mask: torch.Tensor | None = None,
        references: torch.Tensor | None = None,
        embeds: dict[str, Any] | None = None,
        **sampling: Any,
    ) -> io.NodeOutput:
        source = frames_input(images)
        if mask is not None:
            mask = mask if len(mask) == 1 else torch.cat([mask, mask[-1:].expand(-(len(mask) - 1) % 4, -1, -1)])
            mask = mask[0] if len(mask) == 1 else mask
        with runtime.in_use(model) as (_, edit, watch):
            frames = edit(
                **words(prompt, negative_prompt, embeds),
                **sampling_options(sampling),
                **source,
                reference_images=runtime.to_pictures(references),
                mask=mask,
                mask_feather=mask_feather,
                strength=strength,
                generator=torch.Generator().manual_seed(seed % runtime.MOST_SEEDS),
                callback_on_step_end=watch,
            ).frames[0]
        return io.NodeOutput(runtime.to_image(frames[: len(images)]))


class EditVideo(io.ComfyNode):
    """Edits of videos of any length, size and rate."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomVideoEditVideo",
            display_name="LoomVideo: edit video",
            category=CATEGORY,
            description="Edits a video of any length, size and rate; the result has its times, colours and sound.",
            inputs=[
                MODEL.Input("model", tooltip="The model to edit with."),
                io.Video.Input("video", tooltip="The video to edit."),
                *text_inputs("What to change."),
                io.Int.Input(
                    "width", default=0, min=0, max=4096, step=16, tooltip="At which the model works; 0: a trained one."
                ),
                io.Int.Input("height", default=0, min=0, max=4096, step=16, tooltip="Likewise."),
                *sampling_inputs(2.5),
                *mask_inputs(),
                io.Boolean.Input("lossless", default=False, tooltip="Write a .mkv that holds the very pixels."),
                references_input(),
            ],
            outputs=[io.Video.Output(display_name="video", tooltip="The edited video, with the source's sound.")],
        )

    @classmethod
    def validate_inputs(
        cls, prompt: str | None = None, width: int | None = 0, height: int | None = 0, **others: Any
    ) -> bool | str:
        if bool(width) != bool(height):
            return "Give both the width and the height, or 0 for both."
        return check_words(prompt)

    @classmethod
    def execute(
        cls,
        model: runtime.Model,
        video: Any,
        prompt: str,
        negative_prompt: str,
        width: int,
        height: int,
        seed: int,
        mask_feather: int,
        strength: float,
        lossless: bool,
        mask: torch.Tensor | None = None,
        references: torch.Tensor | None = None,
        **sampling: Any,
    ) -> io.NodeOutput:
        output = runtime.temporary_file("edited.mkv" if lossless else "edited.mp4")
        with runtime.in_use(model) as (_, edit, watch):
            plan = plan_edit(
                runtime.path_of(video),
                prompt,
                output,
                references=runtime.to_pictures(references) or (),
                negative_prompt=negative_prompt or None,
                mask=None if mask is None else mask[0] if len(mask) == 1 else mask,
                mask_feather=mask_feather,
                strength=strength,
                width=width or None,
                height=height or None,
                seed=seed % runtime.MOST_SEEDS,
                lossless=lossless,
                **sampling_options(sampling),
            )
            plan.run(edit, callback_on_step_end=watch)
        return io.NodeOutput(VideoFromFile(str(output)))


class SaveVideo(io.ComfyNode):
    """Saves frames, with the sound and the times of the video that they come from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomVideoSaveVideo",
            display_name="LoomVideo: save video",
            category=CATEGORY,
            description="Saves frames as a video, with the sound and times of the video that they were edited from.",
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The frames."),
                io.String.Input(
                    "filename_prefix", default="video/loomvideo", tooltip="In ComfyUI's folder of outputs."
                ),
                io.Combo.Input("format", options=["mp4", "mov", "mkv", "gif"], default="mp4", tooltip="Of the file."),
                io.Float.Input(
                    "fps", default=24.0, min=0.1, max=240.0, step=0.01, tooltip="Where there is no source."
                ),
                io.Video.Input(
                    "source", optional=True, tooltip="Its sound and times are kept; it has as many frames."
                ),
            ],
            outputs=[],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None, **others: Any) -> bool | str:
        path = Path(filename_prefix or "")
        if path.is_absolute() or ".." in path.parts:
            return f"Outputs stay in ComfyUI's folder of them, but {filename_prefix} leads out of it."
        return True

    @classmethod
    def execute(
        cls, images: torch.Tensor, filename_prefix: str, format: str, fps: float, source: Any = None
    ) -> io.NodeOutput:
        path, subfolder = runtime.output_file(filename_prefix, f".{format}")
        frames = [np.asarray(picture) for picture in runtime.to_pictures(images) or []]
        # Most formats take even sides alone.
        frames = [frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2] for frame in frames]
        if source is not None:
            write_like(path, frames, runtime.path_of(source))
        elif format in ("mp4", "gif"):
            write_video(path, np.stack(frames), fps)
        else:
            raise LoomVideoError(f"Without a source, a file is an mp4 or a gif, but the format is {format}.")
        saved = {"filename": path.name, "subfolder": subfolder, "type": "output"}
        return io.NodeOutput(ui={"images": [saved], "animated": (True,)})


def write_like(path: Path, frames: list[np.ndarray], source: Path) -> None:
    """Writes frames, uint8 `[H, W, 3]`, with the times and the sound of a video that has as many."""
    footage = replace(survey(source), pixel_format=PIXEL_FORMATS[False, False], num_bits=8)
    if len(footage.times) != len(frames):
        raise LoomVideoError(
            f"There are {len(frames)} frames, but the source has {len(footage.times)}: leave it out, or save all."
        )
    planned = plan_output(footage, path, size=frames[0].shape[1::-1])
    with write_footage(planned, footage) as output:
        for frame in frames:
            output.write(frame)


runtime.register_folder()
NODES = [LoadModel, LoadLora, Encode, Generate, EditFrames, EditVideo, SaveVideo]
