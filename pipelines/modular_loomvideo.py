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
"""LoomVideo for Modular Diffusers: the steps of the two pipelines as blocks, each of which can be exchanged."""

from .loomvideo_versions import check_diffusers  # isort: skip  # noqa: F401, before what may fail

import importlib
import os
import re
import sys
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKLWan, AutoModel, UniPCMultistepScheduler
from diffusers.configuration_utils import FrozenDict
from diffusers.modular_pipelines import AutoPipelineBlocks, ModularPipelineBlocks, SequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam
from transformers import Qwen3VLModel, Qwen3VLProcessor


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

from .loomvideo_guidance import divide_into_windows
from .loomvideo_guider import LoomVideoGuidance
from .loomvideo_masks import feather, to_latent_mask, to_masks
from .loomvideo_vae import to_pixel_values
from .pipeline_loomvideo import LoomVideoPipeline
from .pipeline_loomvideo_edit import LoomVideoEditPipeline


# Diffusers fetches what this file names.
if TYPE_CHECKING:
    from .loomvideo_base import LoomVideoBase  # noqa: F401
    from .loomvideo_errors import LoomVideoInputError  # noqa: F401
    from .loomvideo_frames import fit  # noqa: F401
    from .loomvideo_lora import LoomVideoLoraLoaderMixin  # noqa: F401
    from .loomvideo_lora_files import read_lora_file  # noqa: F401
    from .loomvideo_lora_weights import prepare_lora  # noqa: F401
    from .loomvideo_mllm import tokenize  # noqa: F401
    from .loomvideo_output import LoomVideoPipelineOutput  # noqa: F401
    from .loomvideo_repository import LoomVideoHubMixin  # noqa: F401
    from .loomvideo_sharing import hold  # noqa: F401
    from .loomvideo_vae_layers import use_fast_layers  # noqa: F401


# What the MLLM puts out for each branch of guidance, and the masks of its padding
EMBEDS = (
    "prompt_embeds",
    "prompt_embeds_mask",
    "visual_prompt_embeds",
    "visual_prompt_embeds_mask",
    "negative_prompt_embeds",
    "negative_prompt_embeds_mask",
)

COMPONENTS: dict[str, type] = {
    "text_encoder": Qwen3VLModel,
    "processor": Qwen3VLProcessor,
    "vae": AutoencoderKLWan,
    "transformer": AutoModel,
    "scheduler": UniPCMultistepScheduler,
}

INPUTS: dict[str, dict[str, Any]] = {
    "prompt": {"type_hint": str, "required": True, "description": "What to show or to change; one, or a list."},
    "negative_prompt": {"type_hint": str, "description": "What to avoid; by default the published negative prompt."},
    "video": {"description": "The source, a clip at 24 frames a second; or a list with one for each prompt."},
    "image": {"description": "The source, if it is an image; or a list with one for each prompt."},
    "reference_images": {"description": "Images that prompts call `@Image 1`, ...; or a list of lists."},
    "height": {"type_hint": int, "description": "Of the result in pixels."},
    "width": {"type_hint": int, "description": "Of the result in pixels."},
    "num_frames": {"type_hint": int, "description": "Of the result, 4k + 1."},
    "batch_size": {"type_hint": int, "required": True, "description": "How many prompts there are."},
    "mask": {"description": "White, 1 or True where something may change, as for `LoomVideoEditPipeline`."},
    "mask_feather": {"type_hint": int, "default": 4, "description": "Pixels of the soft border within the mask."},
    "strength": {"type_hint": float, "default": 1.0, "description": "The share of the steps that are run."},
    "num_videos_per_prompt": {"type_hint": int, "default": 1, "description": "Results for each prompt."},
    "num_inference_steps": {"type_hint": int, "default": 50, "description": "Denoising steps."},
    "sigmas": {"type_hint": list[float], "description": "Noise levels, in place of `num_inference_steps`."},
    "timesteps": {"type_hint": torch.Tensor, "required": True, "description": "Those that are run."},
    "generator": {"description": "A generator of the noise, or one for each result."},
    "latents": {"type_hint": torch.Tensor, "description": "Noise, [B, C, T, h, w]; by default it is drawn."},
    "source_latents": {"type_hint": torch.Tensor, "description": "The encoded source, [B, C, T, h, w]."},
    "reference_latents": {"description": "The encoded references, a list of [B, C, 1, h, w]."},
    "latent_mask": {"type_hint": torch.Tensor, "description": "1 where latents may change, [B, 1, T, h, w]."},
    "noise": {"type_hint": torch.Tensor, "description": "What noises the source where it stays, like `latents`."},
    "masks": {"type_hint": torch.Tensor, "description": "The result's share of each pixel, [B, 1, F, H, W]."},
    "pixel_values": {"type_hint": torch.Tensor, "description": "The source's, [B, 3, F, H, W] in [-1, 1]."},
    "window_frames": {"type_hint": int, "default": 121, "description": "Frames denoised at once at most, 4k + 1."},
    "window_overlap": {"type_hint": int, "description": "Frames that windows share, 4k; by default a quarter."},
    "use_kv_cache": {"type_hint": bool, "default": True, "description": "Whether to keep what all steps share."},
    "attention_kwargs": {"type_hint": dict, "description": "`scale` is the weight of the active LoRA adapters."},
    "output_type": {"type_hint": str, "default": "np", "description": "`np`, `pt`, `pil` or `latent`."},
    "videos": {"description": "The result, as `output_type` says."},
}


class LoomVideoSteps(LoomVideoEditPipeline):
    """The steps of both pipelines, with the components of a modular one: the denoising loop is the same."""

    prepare_references = LoomVideoPipeline.prepare_references

    def __init__(self, components: Any):
        super().__init__(**{name: getattr(components, name, None) for name in COMPONENTS})  # type: ignore[arg-type]
        self.components_device = components._execution_device
        self.guider = getattr(components, "guider", None)

    @property
    def _execution_device(self) -> torch.device:  # type: ignore[override]
        return self.components_device


class LoomVideoComponents:
    """Goes before the base class of blocks that can be made a pipeline."""

    def init_pipeline(self, *args: Any, **kwargs: Any) -> Any:
        """Makes a pipeline of the blocks, see `ModularPipelineBlocks.init_pipeline`."""
        pipeline = super().init_pipeline(*args, **kwargs)  # type: ignore[misc]
        spec = pipeline._component_specs.get("transformer")
        if spec is not None:
            # Without it, a folder's index has a transformer loaded by the folder's own code.
            spec.type_hint = COMPONENTS["transformer"]
        return pipeline


class LoomVideoBlock(LoomVideoComponents, ModularPipelineBlocks):
    """
    A block that says by names what it needs, takes and gives, and how.

    Attributes:
        needs: components, of `COMPONENTS`.
        takes, gives: of `INPUTS` and `EMBEDS`.
        defaults: of what it takes, where they are not those of `INPUTS`.
    """

    model_name = "loomvideo"
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()
    defaults: dict[str, Any] = {}

    @property
    def description(self) -> str:
        return type(self).__doc__ or ""

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec(name, COMPONENTS[name], subfolder=name) for name in self.needs]

    @property
    def inputs(self) -> list[InputParam]:
        return [_input(name, self.defaults) for name in self.takes]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [_output(name) for name in self.gives]

    def run(self, steps: LoomVideoSteps, values: Any) -> None:
        """Does the block's work: reads and sets attributes of `values`, by their names."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        values = self.get_block_state(state)
        self.run(LoomVideoSteps(components), values)
        self.set_block_state(state, values)
        return components, state


def _input(name: str, defaults: dict[str, Any]) -> InputParam:
    if name not in EMBEDS:
        return InputParam(name, **INPUTS[name] | ({"default": defaults[name]} if name in defaults else {}))
    return InputParam(
        name, type_hint=torch.Tensor, required=name == EMBEDS[0], kwargs_type="denoiser_input_fields",
        description="Of a branch of guidance, as the text encoder gives it.",
    )  # fmt: skip


def _output(name: str) -> OutputParam:
    if name not in EMBEDS:
        return OutputParam(name, type_hint=INPUTS[name].get("type_hint"), description=INPUTS[name]["description"])
    return OutputParam(
        name, type_hint=torch.Tensor, kwargs_type="denoiser_input_fields",
        description="Of a branch of guidance: embeds [B, layers, L, width], or which are no padding, [B, L].",
    )  # fmt: skip


def _count(prompt: Any) -> int:
    return len(prompt) if isinstance(prompt, list) else 1


# Of a new video


class LoomVideoSizeStep(LoomVideoBlock):
    """Decides the size of a new video: that which is given, or the trained one nearest to the first reference."""

    needs = ("vae", "transformer")
    takes = ("prompt", "reference_images", "height", "width", "num_frames")
    gives = ("height", "width", "num_frames", "batch_size")
    defaults = {"num_frames": 81}

    def run(self, steps: LoomVideoSteps, values: Any) -> None:
        steps.check_size(values.height, values.width, values.num_frames)
        values.batch_size = steps.check_prompts(values.prompt)
        _, values.height, values.width = steps.prepare_references(
            values.reference_images, values.batch_size, values.height, values.width
        )


class LoomVideoTextEncoderStep(LoomVideoBlock):
    """Runs the MLLM on prompts and references, for all branches of guidance."""

    needs = ("text_encoder", "processor")
    takes = ("prompt", "negative_prompt", "reference_images", "height", "width", "num_frames")
    gives = EMBEDS
    defaults = {"num_frames": 81}

    def run(self, steps: LoomVideoSteps, values: Any) -> None:
        names = ("prompt", "negative_prompt", "reference_images", "height", "width", "num_frames")
        embeds = LoomVideoPipeline.encode_prompt(steps, **{name: getattr(values, name) for name in names})
        for name, tensor in zip(EMBEDS, embeds):
            setattr(values, name, tensor)


class LoomVideoReferenceEncoderStep(LoomVideoBlock):
    """Encodes the references with the VAE."""

    needs = ("vae",)
    takes = ("prompt", "reference_images", "height", "width")
    gives = ("reference_latents",)

    def run(self, steps: LoomVideoSteps, values: Any) -> None:
        fitted, _, _ = steps.prepare_references(
            values.reference_images, _count(values.prompt), values.height, values.width
        )
        values.reference_latents = steps.prepare_reference_latents(fitted, 1)


class LoomVideoPrepareLatentsStep(LoomVideoBlock):
    """Draws the noise that becomes a video."""

    needs: tuple[str, ...] = ("vae", "transformer")
    takes: tuple[str, ...] = (
        "batch_size", "num_videos_per_prompt", "height", "width", "num_frames", "generator", "latents",
        "window_frames",
    )  # fmt: skip
    gives: tuple[str, ...] = ("latents",)
    defaults = {"num_frames": 81}

    def run(self, steps: LoomVideoSteps, values: Any) -> None:
        values.latents = steps.prepare_latents(
            values.batch_size * values.num_videos_per_prompt,
            values.num_frames,
            values.height,
            values.width,
            values.generator,
            values.latents,
            values.window_frames,
        )


# Of an edit


class LoomVideoEditSizeStep(LoomVideoBlock):
    """Decides the size and the length of an edit: those which are given, or the source's, rounded down."""

    needs = ("vae", "transformer")
    takes = ("prompt", "video", "image", "reference_images", "height", "width", "num_frames")
    gives = ("height", "width", "num_frames", "batch_size")

    def run(self, steps: LoomVideoSteps, values: Any) -> None:
        steps.check_size(values.height, values.width, values.num_frames)
        values.batch_size = steps.check_prompts(values.prompt)
        clips, _, values.height, values.width, _ = _sources(steps, values)
        values.num_frames = len(clips[0])


class LoomVideoEditTextEncoderStep(LoomVideoBlock):
    """Runs the MLLM on instructions, sources and references, for all branches of guidance."""

    needs = ("text_encoder", "processor")
    takes = (
        "prompt", "negative_prompt", "video", "image", "reference_images", "height", "width", "num_frames",
        "window_frames",
    )  # fmt: skip
    gives = EMBEDS

    def run(self, steps: LoomVideoSteps, values: Any) -> None:
        embeds = steps.encode_prompt(**{name: getattr(values, name) for name in self.takes})
        for name, tensor in zip(EMBEDS, embeds):
            setattr(values, name, tensor)


class LoomVideoSourceEncoderStep(LoomVideoBlock):
    """Encodes the sources with the VAE."""

    needs = ("vae",)
    takes = ("prompt", "video", "image", "height", "width", "num_frames")
    gives = ("source_latents",)

    def run(self, steps: LoomVideoSteps, values: Any) -> None:
        values.source_latents = steps.prepare_clip_latents(_sources(steps, values)[0], 1)


class LoomVideoMaskStep(LoomVideoBlock):
    """Fits masks to the result and its latents, with the pixels of the sources that stay."""

    needs = ("vae",)
    takes = ("mask", "prompt", "video", "image", "height", "width", "num_frames", "mask_feather")
    gives = ("latent_mask", "masks", "pixel_values")

    def run(self, steps: LoomVideoSteps, values: Any) -> None:
        clips, _, height, width, sizes = _sources(steps, values)
        masks = to_masks(values.mask, sizes, len(clips[0]), height, width)
        factors = (steps.vae_scale_factor_spatial, steps.vae_scale_factor_temporal)
        values.latent_mask = to_latent_mask(masks, *factors).to(steps._execution_device)
        values.masks = feather(masks, values.mask_feather)
        values.pixel_values = torch.cat([to_pixel_values(clip) for clip in clips])


class LoomVideoEditPrepareLatentsStep(LoomVideoPrepareLatentsStep):
    """Draws the noise, and begins with the noised source where `strength` is below 1."""

    needs = ("vae", "transformer", "scheduler")
    takes = (*LoomVideoPrepareLatentsStep.takes, "source_latents", "timesteps", "strength")
    gives = ("latents", "noise", "timesteps")
    defaults: dict[str, Any] = {}

    def run(self, steps: LoomVideoSteps, values: Any) -> None:
        super().run(steps, values)
        values.noise = values.latents
        source_latents = values.source_latents.repeat_interleave(values.num_videos_per_prompt, dim=0)
        values.latents, values.timesteps = steps.begin_with_source(
            values.noise, source_latents, values.timesteps, values.strength
        )


def _sources(steps: LoomVideoSteps, values: Any) -> tuple:
    """What `prepare_sources` returns for what a block takes."""
    return steps.prepare_sources(
        values.video,
        values.image,
        getattr(values, "reference_images", None),
        _count(values.prompt),
        values.height,
        values.width,
        values.num_frames,
    )


# Of both


class LoomVideoSetTimestepsStep(LoomVideoBlock):
    """Sets the scheduler."""

    needs = ("scheduler",)
    takes = ("num_inference_steps", "sigmas")
    gives = ("timesteps",)

    def run(self, steps: LoomVideoSteps, values: Any) -> None:
        steps.check_sampling(values.num_inference_steps, 1.0, 1.0, sigmas=values.sigmas)
        with steps.use("scheduler"):
            values.timesteps = steps.prepare_timesteps(values.num_inference_steps, values.sigmas)


class LoomVideoRepeatStep(LoomVideoBlock):
    """Repeats what was encoded once for each prompt as often as there are to be results of it."""

    takes = (
        "num_videos_per_prompt", *EMBEDS, "source_latents", "reference_latents", "latent_mask", "masks",
        "pixel_values",
    )  # fmt: skip
    gives = takes[1:]

    def run(self, steps: LoomVideoSteps, values: Any) -> None:
        def repeat(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.repeat_interleave(values.num_videos_per_prompt, dim=0)

        for name in self.gives:
            value = getattr(values, name, None)
            setattr(values, name, [repeat(one) for one in value] if isinstance(value, list) else repeat(value))


class LoomVideoDenoiseStep(LoomVideoBlock):
    """Takes the noise away, as the guider says: the loop is that of the pipelines, windows and caches included."""

    needs = ("transformer", "scheduler", "vae")
    takes = (
        "latents", "timesteps", *EMBEDS, "num_frames", "source_latents", "reference_latents", "latent_mask", "noise",
        "generator", "window_frames", "window_overlap", "use_kv_cache", "attention_kwargs",
    )  # fmt: skip
    gives = ("latents",)

    @property
    def expected_components(self) -> list[ComponentSpec]:
        guider = ComponentSpec(
            "guider", LoomVideoGuidance, config=FrozenDict({}), default_creation_method="from_config"
        )
        return [*super().expected_components, guider]

    def run(self, steps: LoomVideoSteps, values: Any) -> None:
        steps.begin_call(1.0, 1.0, values.attention_kwargs)
        steps.set_progress_bar_config(**getattr(self, "progress_bar_config", {}))
        windows = divide_into_windows(
            values.num_frames, values.window_frames, values.window_overlap, steps.vae_scale_factor_temporal
        )
        with steps.denoising():
            values.latents = steps.denoise(
                latents=values.latents,
                timesteps=values.timesteps,
                embeds=tuple(getattr(values, name, None) for name in EMBEDS),
                source_latents=values.source_latents,
                reference_latents=values.reference_latents or [],
                windows=windows,
                generator=values.generator,
                use_kv_cache=values.use_kv_cache,
                latent_mask=values.latent_mask,
                noise=values.noise,
                guider=steps.guider,
            )

    def set_progress_bar_config(self, **options: Any) -> None:
        """Sets options of tqdm's progress bar."""
        self.progress_bar_config = options


class LoomVideoDecodeStep(LoomVideoBlock):
    """Decodes the latents, and takes what may not change from the source."""

    needs = ("vae",)
    takes = ("latents", "output_type", "masks", "pixel_values")
    gives = ("videos",)

    def run(self, steps: LoomVideoSteps, values: Any) -> None:
        values.videos = steps.decode_latents(values.latents, values.output_type, values.masks, values.pixel_values)


class LoomVideoAutoReferenceEncoderStep(AutoPipelineBlocks):
    model_name = "loomvideo"
    block_classes = [LoomVideoReferenceEncoderStep]
    block_names = ["references"]
    block_trigger_inputs = ["reference_images"]

    @property
    def description(self) -> str:
        return "Encodes the references, if there are any."


class LoomVideoAutoMaskStep(AutoPipelineBlocks):
    model_name = "loomvideo"
    block_classes = [LoomVideoMaskStep]
    block_names = ["mask"]
    block_trigger_inputs = ["mask"]

    @property
    def description(self) -> str:
        return "Fits masks, if there are any."


class LoomVideoBlocks(LoomVideoComponents, SequentialPipelineBlocks):
    """Videos and images from text, with or without reference images."""

    model_name = "loomvideo"
    block_classes = [
        LoomVideoSizeStep,
        LoomVideoTextEncoderStep,
        LoomVideoAutoReferenceEncoderStep,
        LoomVideoSetTimestepsStep,
        LoomVideoPrepareLatentsStep,
        LoomVideoRepeatStep,
        LoomVideoDenoiseStep,
        LoomVideoDecodeStep,
    ]
    block_names = [
        "size", "text_encoder", "reference_encoder", "set_timesteps", "prepare_latents", "repeat", "denoise", "decode",
    ]  # fmt: skip

    @property
    def description(self) -> str:
        return "Generates videos and images from text, with or without reference images."


class LoomVideoEditBlocks(LoomVideoComponents, SequentialPipelineBlocks):
    """Edits of videos and images, with or without reference images and masks."""

    model_name = "loomvideo"
    block_classes = [
        LoomVideoEditSizeStep,
        LoomVideoEditTextEncoderStep,
        LoomVideoSourceEncoderStep,
        LoomVideoAutoReferenceEncoderStep,
        LoomVideoAutoMaskStep,
        LoomVideoSetTimestepsStep,
        LoomVideoEditPrepareLatentsStep,
        LoomVideoRepeatStep,
        LoomVideoDenoiseStep,
        LoomVideoDecodeStep,
    ]
    block_names = [
        "size", "text_encoder", "source_encoder", "reference_encoder", "mask", "set_timesteps", "prepare_latents",
        "repeat", "denoise", "decode",
    ]  # fmt: skip

    @property
    def description(self) -> str:
        return "Edits videos and images by instruction, with or without reference images and masks."


class LoomVideoAutoBlocks(LoomVideoComponents, AutoPipelineBlocks):
    """What the inputs call for: an edit of a `video` or an `image`, or something new."""

    model_name = "loomvideo"
    block_classes = [LoomVideoEditBlocks, LoomVideoEditBlocks, LoomVideoBlocks]
    block_names = ["edit_video", "edit_image", "generate"]
    block_trigger_inputs = ["video", "image", None]

    @property
    def description(self) -> str:
        return "Edits a `video` or an `image`, or generates one where neither is given."


if "_module" in globals():
    # The classes are those of the package.
    globals().update(vars(_module))
