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
"""Features of clips: latents of the VAE and hidden states of the MLLM, computed when needed or kept on disk."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import LoomVideoError
from ..media.files import write_whole
from ..pipelines import LoomVideoEditPipeline
from ..pipelines.loomvideo_frames import mllm_frames
from ..pipelines.loomvideo_mllm import run_mllm, tokenize
from ..progress import progress_bar
from .config import Dropped
from .data import Clip, Record, read_frames


# To be raised when the same inputs lead to other features.
FORMAT = 2


@dataclass
class Features:
    """
    Attributes:
        latents: of the target, normalized, float32 `[C, T, h, w]`.
        prompt: of the prompt, as in a `TrainingSample`.
        source_latents: of the source, of the shape of `latents`, or None.
        reference_latents: of the references, each `[C, 1, h, w]`.
    """

    latents: torch.Tensor
    prompt: dict[str, torch.Tensor]
    source_latents: torch.Tensor | None
    reference_latents: list[torch.Tensor]


class Encoders:
    """
    The VAE, in float32, and the MLLM of a model.

    Args:
        folder: of the model.
        num_layers: how many of the MLLM's last layers the transformer reads; None if the MLLM is trained, when only
            its processor is needed here.
        device: where they run.
        dtype: of the MLLM and of the pixels that it reads.
    """

    def __init__(self, folder: str, num_layers: int | None, device: torch.device, dtype: torch.dtype):
        without = {"transformer": None} | ({"text_encoder": None} if num_layers is None else {})
        self.pipe = LoomVideoEditPipeline.from_pretrained(
            folder, **without, dtype={"default": torch.float32, "text_encoder": dtype}
        ).to(device)
        self.num_layers = num_layers
        self.device = device
        self.dtype = dtype

    @torch.no_grad()
    def encode(self, clip: Clip) -> Features:
        return Features(
            latents=self.latents(clip.target),
            prompt=self.prompt(clip),
            source_latents=None if clip.source is None else self.latents(clip.source),
            reference_latents=[self.latents(reference[None]) for reference in clip.references],
        )

    @torch.no_grad()
    def latents(self, frames: torch.Tensor) -> torch.Tensor:
        """Encodes uint8 `[F, H, W, 3]` as float32 `[C, T, h, w]`."""
        return self.pipe.encode_pixels(frames.permute(3, 0, 1, 2)[None].float() / 127.5 - 1)[0]

    @torch.no_grad()
    def prompt(self, clip: Clip) -> dict[str, torch.Tensor]:
        """The hidden states of the MLLM, `[num_layers, L, E]`, or if it is trained, its inputs."""
        source = None
        if clip.source is not None:
            frames = [PIL.Image.fromarray(frame.numpy()) for frame in clip.source]
            source = mllm_frames(frames) if clip.is_video else frames[0]
        references = [PIL.Image.fromarray(reference.numpy()) for reference in clip.references]
        inputs = tokenize(self.pipe.processor, [clip.prompt], [references], [source])
        inputs = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        if self.num_layers is None:
            return {
                name: value.to(self.dtype) if value.is_floating_point() else value for name, value in inputs.items()
            }
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        prompt_embeds, _ = run_mllm(self.pipe.text_encoder, inputs, self.num_layers)
        return {"prompt_embeds": prompt_embeds[0]}


class FeatureStore:
    """
    Features on disk, each named by the hash of all that it depends on: files, sizes, prompts and the models' weights.

    A file that is there is whole. When an input changes, so does the name.

    Args:
        folder: where the features are kept.
        digests: what `hash_inputs` returned for the model and all files of the records.
        num_layers: how many of the MLLM's layers are kept; None to keep the MLLM's inputs.
        dtype: of the MLLM.
        variants: which conditions are dropped from samples.
    """

    def __init__(
        self, folder: str, digests: dict[str, str], num_layers: int | None, dtype: torch.dtype, variants: list[Dropped]
    ):
        self.folder = Path(folder)
        self.digests = digests
        self.vae = {"format": FORMAT, "vae": digests["vae"]}
        self.mllm = {"format": FORMAT, "mllm": digests["mllm"], "num_layers": num_layers, "dtype": str(dtype)}
        self.variants = variants

    def _path(self, kind: str, key: dict) -> Path:
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.folder / kind / name[:2] / f"{name}.safetensors"

    def _latents_path(self, file: str, record: Record, num_frames: int) -> Path:
        size = {"width": record.width, "height": record.height, "num_frames": num_frames}
        return self._path("latents", self.vae | size | {"file": self.digests[file]})

    def _prompt_path(self, record: Record, dropped: Dropped) -> Path:
        key: dict[str, Any] = {"text": record.full_prompt(dropped)}
        if dropped != "all" and (record.source is not None or record.references):
            key |= {
                # The MLLM sees only as much of a source as its target is long.
                "source": None
                if record.source is None
                else [self.digests[record.source], self.digests[record.target]],
                "references": [self.digests[reference] for reference in record.references],
                "is_video": record.is_video,
                "size": record.shape,
            }
        return self._path("prompts", self.mllm | key)

    def paths(self, record: Record) -> Iterator[Path]:
        """Yields the path of each feature of a record, whether or not it is there."""
        yield self._latents_path(record.target, record, record.num_frames)
        if record.source is not None:
            yield self._latents_path(record.source, record, record.num_frames)
        for reference in record.references:
            yield self._latents_path(reference, record, 1)
        for dropped in self.variants:
            yield self._prompt_path(record, dropped)

    def is_complete(self, record: Record) -> bool:
        return all(path.exists() for path in self.paths(record))

    def write(self, record: Record, clip: Clip, encoders: Encoders) -> None:
        """Computes the missing features of a record, whose files were read as `clip`, without anything dropped."""
        for video, frames in ((record.target, clip.target), (record.source, clip.source)):
            if video is None or frames is None:
                continue
            path = self._latents_path(video, record, record.num_frames)
            if not path.exists():
                # If one of the two turned out to be short, the clip has the other cut to it: read it whole.
                is_whole = len(frames) == record.num_frames
                _write(path, {"latents": encoders.latents(frames if is_whole else read_frames(video, record))})
        for reference, pixels in zip(record.references, clip.references):
            path = self._latents_path(reference, record, 1)
            if not path.exists():
                _write(path, {"latents": encoders.latents(pixels[None])})
        for dropped in self.variants:
            path = self._prompt_path(record, dropped)
            if not path.exists():
                seen = clip if dropped != "all" else Clip("", clip.target, None, [], clip.is_video)
                _write(path, encoders.prompt(replace(seen, prompt=record.full_prompt(dropped))))

    def read(self, record: Record, dropped: Dropped) -> Features:
        """Reads a record's features. Raises LoomVideoError if a file is damaged."""
        latents = _read(self._latents_path(record.target, record, record.num_frames))["latents"]
        source_latents, references = None, []
        if dropped != "all":
            if record.source is not None:
                source_latents = _read(self._latents_path(record.source, record, record.num_frames))["latents"]
                # A file may be shorter than its header says; latents can be cut because the VAE is causal.
                length = min(latents.shape[1], source_latents.shape[1])
                latents, source_latents = latents[:, :length], source_latents[:, :length]
            references = [_read(self._latents_path(path, record, 1))["latents"] for path in record.references]
        return Features(
            latents=latents,
            prompt=_read(self._prompt_path(record, dropped)),
            source_latents=source_latents,
            reference_latents=references,
        )


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, lambda file: save_file(tensors, file))


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise LoomVideoError(f"{path} cannot be read ({error}): delete it, and it will be computed again.") from error


def hash_inputs(model: str, files: list[str]) -> dict[str, str]:
    """Hashes what features depend on: each file, and as `vae` and `mllm` the files of these models."""
    folders = {"vae": ["vae"], "mllm": ["text_encoder", "processor"]}
    weights = {
        part: sorted(file for name in names for file in (Path(model) / name).rglob("*") if file.is_file())
        for part, names in folders.items()
    }
    digests = {}
    with progress_bar([*files, *weights["vae"], *weights["mllm"]], desc="Hashing files") as progress:
        for file in progress:
            digest = hashlib.sha256()
            try:
                with open(file, "rb") as opened:
                    while block := opened.read(2**20):
                        digest.update(block)
            except OSError:
                if isinstance(file, Path):
                    raise
                # A clip that cannot be read has no features, and is reported when they are computed.
            digests[str(file)] = digest.hexdigest()
    for part, paths in weights.items():
        contents = [[path.relative_to(model).as_posix(), digests[str(path)]] for path in paths]
        digests[part] = hashlib.sha256(json.dumps(contents).encode()).hexdigest()
    return digests
