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
"""What the nodes share: ComfyUI's folders, bar and interrupt, and the pipelines that are loaded."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import PIL.Image
import torch

from loomvideo_diffusers import LoomVideoEditPipeline, LoomVideoPipeline
from loomvideo_diffusers.acceleration import Levers
from loomvideo_diffusers.errors import LoomVideoError
from loomvideo_diffusers.footage.watching import Watch
from loomvideo_diffusers.loading import load_pipeline
from loomvideo_diffusers.progress import Progress, observed_by


# Folders of models, in ComfyUI's folder of models
MODELS_FOLDER = "loomvideo"
NANO = "nano (coloured shapes)"

# ComfyUI's seeds have 64 bits, and those of the package 63.
MOST_SEEDS = 2**63

PREVIEW_SIDE = 512

# A picture takes about half as long as a step.
STEPS_BETWEEN_PICTURES = 8


def register_folder() -> None:
    """Tells ComfyUI where the models are."""
    folder = Path(folder_paths.models_dir) / MODELS_FOLDER
    folder_paths.add_model_folder_path(MODELS_FOLDER, str(folder), is_default=True)


def list_models() -> list[str]:
    """The models that can be chosen: nano, and the folders of models, by their names in ComfyUI's folder."""
    folders = [Path(folder) for folder in folder_paths.get_folder_paths(MODELS_FOLDER)]
    found = {path.parent.name for folder in folders for path in folder.glob("*/model_index.json")}
    return [NANO, *sorted(name for name in found if not name.startswith("."))]


def find_model(name: str) -> str:
    """
    What the package calls a model that was chosen.

    Raises:
        LoomVideoError: if it is not there any more.
    """
    if name == NANO:
        return "nano"
    if name in list_models():
        for folder in folder_paths.get_folder_paths(MODELS_FOLDER):
            if (Path(folder) / name / "model_index.json").is_file():
                return str(Path(folder) / name)
    raise LoomVideoError(f"The model {name} is not in ComfyUI's folder models/{MODELS_FOLDER}: put it there.")


def fetch_model(repository: str) -> str:
    """Downloads a repository into ComfyUI's folder of models, unless it is there. Returns the name of its folder."""
    from huggingface_hub import snapshot_download

    name = repository.replace("/", "--")
    folder = Path(folder_paths.get_folder_paths(MODELS_FOLDER)[0]) / name
    if not (folder / "model_index.json").is_file():
        # A download that is interrupted goes on there, and is no model before it is whole.
        part = folder.with_name(f".{name}")
        snapshot_download(repository, local_dir=part, allow_patterns=["*.json", "*.jinja", "*.txt", "*.safetensors"])
        part.rename(folder)
    return name


@dataclass(frozen=True, eq=False)
class Model:
    """
    What goes along the wire of a model.

    Attributes:
        pipe: the pipeline.
        loras: files, weights and times of change of the LoRAs that calls with this wire use.
        is_kept: whether it stays on the device between calls.
    """

    pipe: LoomVideoPipeline
    loras: tuple[tuple[str, float, int], ...] = ()
    is_kept: bool = True

    def with_lora(self, path: str, weight: float) -> "Model":
        # A file that has changed is another LoRA.
        return replace(self, loras=(*self.loras, (path, weight, Path(path).stat().st_mtime_ns)))


def load(model: str, dtype: str | None, levers: Levers, is_kept: bool) -> Model:
    """Loads a model, for which other models make room."""
    comfy.model_management.unload_all_models()
    with watched():
        device = str(comfy.model_management.get_torch_device())
        pipe = load_pipeline(LoomVideoPipeline, model, device=device, dtype=dtype, levers=levers)
    pipe.loras_loaded = ()
    return Model(pipe, is_kept=is_kept)


@contextmanager
def watched() -> Iterator["Bar"]:
    """Shows progress on the node, and ends with ComfyUI's own exception when it is to stop."""
    bar = Bar()
    with observed_by(bar):
        yield bar


class Bar:
    """ComfyUI's bar of the node that runs, as an observer of progress; it can show a picture too."""

    def __init__(self) -> None:
        self.description = ""
        self.bar: Any = None
        self.progress = Progress("")

    def __call__(self, progress: Progress) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if not progress.total:
            return
        if progress.description != self.progress.description or self.bar is None:
            self.bar = comfy.utils.ProgressBar(progress.total)
        self.progress = progress
        self.bar.update_absolute(progress.num_done, progress.total)

    def show(self, step: int, frames: np.ndarray) -> None:
        if self.bar is not None:
            preview = ("JPEG", PIL.Image.fromarray(frames[0]), PREVIEW_SIDE)
            self.bar.update_absolute(self.progress.num_done, self.progress.total, preview)


@contextmanager
def in_use(model: Model) -> Iterator[tuple[LoomVideoPipeline, LoomVideoEditPipeline, Watch | None]]:
    """
    Has a model on the device with its LoRAs, and gives the memory back to ComfyUI in the end.

    Yields:
        Both pipelines, and a `callback_on_step_end` that shows what a call is becoming, or None.
    """
    pipe, device = model.pipe, comfy.model_management.get_torch_device()
    is_moved = not any(hasattr(part, "_hf_hook") for part in pipe.components.values())
    try:
        with watched() as bar:
            if is_moved and pipe.device.type != device.type:
                comfy.model_management.unload_all_models()
                pipe.to(device)
            _use_loras(model)
            edit = LoomVideoEditPipeline.from_pipe(pipe)
            edit.progress_bar = pipe.progress_bar
            # With offloading, a picture would send the transformer away, and fetch it again.
            watch = Watch(bar.show, num_latent_frames=1, every=STEPS_BETWEEN_PICTURES) if is_moved else None
            yield pipe, edit, watch
    finally:
        if is_moved and not model.is_kept:
            pipe.to("cpu")
        comfy.model_management.soft_empty_cache()


def _use_loras(model: Model) -> None:
    pipe = model.pipe
    if pipe.loras_loaded != model.loras:
        pipe.loras_loaded = None  # until all of them are
        pipe.unload_lora_weights()
        names = [f"lora_{index}" for index in range(len(model.loras))]
        for name, (path, _, _) in zip(names, model.loras):
            pipe.load_lora_weights(path, adapter_name=name)
        if names:
            pipe.set_adapters(names, [weight for _, weight, _ in model.loras])
        pipe.loras_loaded = model.loras


def to_pictures(images: torch.Tensor | None) -> list[PIL.Image.Image] | None:
    """The pictures of an IMAGE, float `[B, H, W, 3]` in [0, 1]."""
    if images is None:
        return None
    return [PIL.Image.fromarray((image[..., :3] * 255).round().byte().cpu().numpy()) for image in images]


def to_image(frames: np.ndarray | Sequence[PIL.Image.Image]) -> torch.Tensor:
    """An IMAGE, float32 `[F, H, W, 3]` in [0, 1]."""
    return torch.from_numpy(np.asarray(frames, np.float32))


def path_of(video: Any) -> Path:
    """The file of a VIDEO; what has none is written to one in ComfyUI's temporary folder."""
    source = video.get_stream_source() if hasattr(video, "get_stream_source") else video
    if isinstance(source, io.BytesIO):
        path = temporary_file("source.mp4")
        path.write_bytes(source.getvalue())
        return path
    return Path(source)


def temporary_file(name: str) -> Path:
    """A file that is not there yet, in ComfyUI's temporary folder."""
    folder = folder_paths.get_temp_directory()
    full_folder, stem, counter, _, _ = folder_paths.get_save_image_path(f"loomvideo/{Path(name).stem}", folder)
    return Path(full_folder) / f"{stem}_{counter:05}_{Path(name).suffix}"


def output_file(prefix: str, suffix: str) -> tuple[Path, str]:
    """
    A file that is not there yet, in ComfyUI's folder of outputs, and the folder's name in that.

    Raises:
        Exception: if the prefix leads out of that folder.
    """
    folder = folder_paths.get_output_directory()
    full_folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, folder)
    return Path(full_folder) / f"{stem}_{counter:05}_{suffix}", subfolder
