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
"""Trains LoomVideo-nano's transformer and MLLM together: clips are encoded once, and words are always new."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import attention_backend
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm
from transformers import Qwen3VLProcessor

from ..media import write_whole
from ..media.files import replace_folder
from ..pipelines import LoomVideoPipeline
from ..pipelines.loomvideo_frames import mllm_frame_indices
from ..pipelines.loomvideo_mllm import (
    DEFAULT_NEGATIVE_PROMPT,
    NEGATIVE_PROMPT_PREFIX,
    PROMPT_PREFIXES,
    tokenize,
)
from ..training.objective import TransformerWithTextEncoder, add_noise, sample_timestep, velocity_target
from . import SEED
from .contents import BLOCK, ContentsReader, encode_contents
from .fitting import DEVICE, NUM_WORKERS, fit
from .tasks import Example, sample_family, say
from .words import Phrasing, typed
from .world import Scene, draw_frame, frame_times, render


NUM_FAMILIES = 600
# A batch holds samples of one shape. On a GPU, large batches take little longer, and fewer of them are enough.
STEPS, TOKENS_PER_BATCH = (40000, 5760) if DEVICE == "cpu" else (8000, 46080)
# A prompt takes as long as so many tokens of a video.
PROMPT_TOKENS = 24
LEARNING_RATE = 1e-3
# In how many of the steps, at the end, it falls
DECAY_SHARE = 0.25
EMA_DECAY = 0.999
# What is decided in much noise takes longest to learn: colors, directions and shapes.
TIMESTEP_SHIFT = 3.0
# How often a sample is without any condition, and without words, so that guidance has what to guide away from
DROP_ALL, DROP_TEXT = 0.05, 0.05
# A sample's error is divided by itself and this ("Mean Flows", arXiv 2505.13447), so that what nobody could foretell
# does not outweigh what can be learned.
ERROR_FLOOR = 0.005
# Tokens that an edit changes count so many times more than those that it copies: where their latents differ by more
# than this, squared.
CHANGED_WEIGHT, CHANGED = 3.0, 0.05
IS_COMPILED = True

# How often each task comes. What takes longest to learn comes most often.
WEIGHTS = {
    "recolor": 8,
    "replace": 16,
    "resize": 12,
    "redirect": 14,
    "outline": 14,
    "remove": 6,
    "add": 8,
    "background": 12,
    "invert": 5,
    "recolor one of several": 14,
    "replace one of several": 20,
    "resize one of several": 14,
    "redirect one of several": 20,
    "outline one of several": 16,
    "remove one of several": 12,
    "everything": 14,
    "two requests": 24,
    "image": 30,
    "recolor by reference": 6,
    "replace by reference": 12,
    "background by reference": 7,
    "text to video": 60,
    "text to image": 25,
    "several things to video": 40,
    "reference to video": 12,
    "thing and background to video": 10,
    "shape and color to video": 14,
}
# How many times as often as videos the same tasks come as pictures: at first, and at the end
PICTURES = (12.0, 0.5)

Shape = tuple[int, int, int, int]


def clips_of(examples: list[Example]) -> dict[tuple[Scene, int], str]:
    """All clips of examples, as scene and number of frames, with a name for each."""
    clips: dict[tuple[Scene, int], str] = {}
    for example in examples:
        for scene in (example.target, example.source):
            if scene is not None:
                clips.setdefault((scene, example.num_frames), str(len(clips)))
        for reference in example.references:
            clips.setdefault((reference, 1), str(len(clips)))
    return clips


class Clips(Dataset):
    """By the number of a family all its clips, uint8, in stacks of one shape, `[B, F, H, W, 3]`, with their names."""

    def __len__(self) -> int:
        return NUM_FAMILIES

    def __getitem__(self, index: int) -> list[tuple[list[str], torch.Tensor]]:
        stacks: dict[tuple, tuple[list[str], list[np.ndarray]]] = {}
        for (scene, num_frames), name in clips_of(_family(index)).items():
            clip = render(scene, num_frames)
            names, clips = stacks.setdefault(clip.shape, ([], []))
            names.append(name)
            clips.append(clip)
        return [(names, torch.from_numpy(np.stack(clips))) for names, clips in stacks.values()]


def _family(index: int) -> list[Example]:
    return sample_family(np.random.default_rng([SEED, index]))


@torch.no_grad()
def write_latents(pipe: LoomVideoPipeline, folder: Path) -> None:
    """Encodes all clips, and keeps a file of latents for each family, unless it is there."""
    missing = [index for index in range(NUM_FAMILIES) if not _latents_path(folder, index).exists()]
    pipe.to(DEVICE)
    stacks = DataLoader(Subset(Clips(), missing), batch_size=None, num_workers=NUM_WORKERS)
    for index, of_family in zip(missing, tqdm(stacks, desc="Encoding clips")):
        latents: dict[str, torch.Tensor] = {}
        for names, clips in of_family:
            for start in range(0, len(names), 8):
                pixels = clips[start : start + 8].to(DEVICE).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
                encoded = pipe.encode_pixels(pixels).half().cpu()
                latents |= {name: one.clone() for name, one in zip(names[start:], encoded)}
        write_whole(_latents_path(folder, index), partial(save_file, latents))


def _latents_path(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.safetensors"


class Batches(Dataset):
    """
    For each step samples of one shape, by the names of what the model takes, with the clean `latents` and their
    `contents`.

    Args:
        folder: that `write_latents` wrote.
        processor: of the MLLM.
    """

    def __init__(self, folder: Path, processor: Qwen3VLProcessor):
        self.folder = folder
        self.processor = processor
        self.families = [_family(index) for index in tqdm(range(NUM_FAMILIES), desc="Drawing tasks")]
        self.names = [clips_of(family) for family in self.families]
        # Of each shape, by task and whether it is a picture of a video, which family has it and where
        self.places: dict[Shape, dict[tuple[str, bool], list[tuple[int, int]]]] = {}
        for index, family in enumerate(self.families):
            for place, example in enumerate(family):
                is_picture = example.num_frames == 1 and example.task not in ("image", "text to image")
                of_shape = self.places.setdefault(_shape(example), {})
                of_shape.setdefault((example.task, is_picture), []).append((index, place))
        totals = Counter({key: 0 for of_shape in self.places.values() for key in of_shape})
        for of_shape in self.places.values():
            totals.update({key: len(of_key) for key, of_key in of_shape.items()})
        # Of a shape's samples, how many are of a task and of a kind
        self.portions = {
            shape: {key: len(of_key) / totals[key] for key, of_key in of_shape.items()}
            for shape, of_shape in self.places.items()
        }

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([SEED, 6, index])
        weights = {
            shape: np.array([_weight(*key, index) * portion for key, portion in portions.items()])
            for shape, portions in self.portions.items()
        }
        # The larger its batches are, the fewer of them a shape needs.
        shares = np.array([of_shape.sum() / batch_size(shape) for shape, of_shape in weights.items()])
        shape = list(weights)[rng.choice(len(weights), p=shares / shares.sum())]
        of_shape, of_keys = list(self.places[shape].values()), weights[shape]
        drawn = []
        for key in rng.choice(len(of_shape), batch_size(shape), p=of_keys / of_keys.sum()):
            drawn.append(of_shape[key][rng.integers(len(of_shape[key]))])
        return self._make(drawn, rng)

    def _make(self, drawn: list[tuple[int, int]], rng: np.random.Generator) -> dict[str, Any]:
        texts, references, sources = [], [], []
        latents, source_latents, reference_latents = [], [], []
        for family, place in drawn:
            example = self.families[family][place]
            dropped = _drop(example, rng)
            texts.append(_text(example, dropped, rng))
            references.append([PIL.Image.fromarray(render(reference, 1)[0]) for reference in example.references])
            sources.append(_seen(example) if example.source is not None and dropped != "all" else None)
            with safe_open(_latents_path(self.folder, family), "pt") as file:
                names = self.names[family]
                latents.append(file.get_tensor(names[example.target, example.num_frames]).float())
                source_latents.append(torch.zeros_like(latents[-1]))
                if example.source is not None and dropped != "all":
                    source_latents[-1] = file.get_tensor(names[example.source, example.num_frames]).float()
                reference_latents.append([file.get_tensor(names[one, 1]).float() for one in example.references])
        inputs = tokenize(self.processor, texts, references, sources)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        timesteps = [sample_timestep(TIMESTEP_SHIFT, generator) for _ in drawn]
        return {
            "latents": torch.stack(latents),
            "prompt_inputs": {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)},
            "source_hidden_states": torch.stack(source_latents)
            if any(source is not None for source in sources)
            else None,
            "reference_hidden_states": [torch.stack(place) for place in zip(*reference_latents)],
            "source_scale": torch.tensor(timesteps, dtype=torch.float32),
            "contents": torch.stack([encode_contents(self.families[family][place]) for family, place in drawn]),
        }


def _shape(example: Example) -> Shape:
    """What samples of a batch have in common: frames, height, width and number of references."""
    return example.num_frames, example.target.height, example.target.width, len(example.references)


def batch_size(shape: Shape) -> int:
    """How many samples of a shape make a batch."""
    num_frames, height, width, num_references = shape
    num_tokens = ((num_frames - 1) // 4 + 1 + num_references) * (height // 16) * (width // 16)
    return max(1, TOKENS_PER_BATCH // (num_tokens + PROMPT_TOKENS))


def _weight(task: str, is_picture: bool, step: int) -> float:
    """How often a task comes at a step, as a video or as a picture."""
    if not is_picture:
        return WEIGHTS[task]
    first, last = PICTURES
    return WEIGHTS[task] * first * (last / first) ** (step / STEPS)


def _drop(example: Example, rng: np.random.Generator) -> str:
    """Which conditions a sample goes without: `all`, unless it has references, its `text`, or nothing."""
    chance = rng.random()
    if chance < DROP_ALL and not example.references:
        return "all"
    return "text" if chance > 1 - DROP_TEXT else ""


def _text(example: Example, dropped: str, rng: np.random.Generator) -> str:
    """What the MLLM reads (architecture: Prompts)."""
    if dropped:
        return NEGATIVE_PROMPT_PREFIX + DEFAULT_NEGATIVE_PROMPT if dropped == "all" else ""
    action = "generate" if example.source is None else "edit"
    kind = "image" if example.num_frames == 1 else "video"
    said = typed(say(example, Phrasing(rng)).prompt, rng)
    return PROMPT_PREFIXES[f"{action} {kind}", bool(example.references)] + said


def _seen(example: Example) -> PIL.Image.Image | np.ndarray:
    """What the MLLM sees of a source (architecture: Frames)."""
    assert example.source is not None
    times = frame_times(example.num_frames)[mllm_frame_indices(example.num_frames)]
    frames = [draw_frame(example.source, time) for time in times]
    if example.num_frames == 1:
        return PIL.Image.fromarray(frames[0])
    return np.stack(frames * 2 if len(frames) == 1 else frames)


class Learner(TransformerWithTextEncoder):
    """The transformer and the MLLM, and what reads from within the transformer what its tokens show."""

    def __init__(self, pipe: LoomVideoPipeline):
        super().__init__(pipe.transformer, pipe.text_encoder)
        self.reader = ContentsReader(pipe.transformer.norm_out.normalized_shape[0])
        self.hidden_states: torch.Tensor | None = None
        self.transformer.blocks[BLOCK].register_forward_hook(self._keep)

    def _keep(self, block: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        self.hidden_states = output

    def forward(self, contents: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        """Returns the velocity, and how badly the reader reads the contents."""
        (velocity,) = super().forward(return_dict=False, **inputs)
        hidden_states, self.hidden_states = self.hidden_states, None
        return velocity, self.reader(hidden_states, contents)


def token_weights(latents: torch.Tensor, source_latents: torch.Tensor | None) -> torch.Tensor:
    """What the errors of latents `[B, C, T, h, w]` count, `[B, 1, T, h, w]`, 1 on average."""
    if source_latents is None:
        return torch.ones_like(latents[:, :1])
    is_changed = (latents - source_latents).square().mean(dim=1, keepdim=True) > CHANGED
    weights = 1 + CHANGED_WEIGHT * is_changed
    return weights / weights.mean()


def train(untrained: Path, latents: Path, output_dir: Path) -> Path:
    """
    Trains the transformer and the MLLM of a pipeline.

    Args:
        untrained: folder of the pipeline.
        latents: folder that `write_latents` wrote.
        output_dir: the folder for the checkpoint, the log `trained.csv` and the result.

    Returns:
        The folder with the `transformer` and the `text_encoder`: the moving averages of their weights.
    """
    result = output_dir / "trained"
    if result.exists():
        return result
    torch.manual_seed(SEED)
    pipe = LoomVideoPipeline.from_pretrained(untrained, vae=None, dtype=torch.float32)
    # On CPUs, short sequences are faster through plain matrix products, here and below.
    if DEVICE == "cpu":
        pipe.text_encoder.set_attn_implementation("eager")
    model = Learner(pipe).to(DEVICE).train()
    if IS_COMPILED:
        torch._dynamo.config.recompile_limit = 64
        model.transformer.compile_repeated_blocks(dynamic=True)
        for layer in model.text_encoder.language_model.layers:
            layer.compile(dynamic=True)

    def compute(batch: dict[str, Any], step: int) -> tuple[torch.Tensor, dict[str, float]]:
        batch = _to_device(batch)
        latents, timesteps = batch.pop("latents"), batch["source_scale"]
        generator = torch.Generator(DEVICE).manual_seed(2**32 * SEED + step)
        noise = torch.randn(latents.shape, generator=generator, device=DEVICE)
        noisy = add_noise(latents, noise, timesteps)
        velocity, confusion = model(hidden_states=noisy, timestep=1000 * timesteps, **batch)
        squares = (velocity.float() - velocity_target(latents, noise)).square()
        errors = (squares * token_weights(latents, batch["source_hidden_states"])).flatten(1).mean(dim=1)
        loss = (errors / (errors.detach() + ERROR_FLOOR)).mean() + confusion
        return loss, {"error": squares.mean().item(), "confusion": confusion.item()}

    def save(folder: Path) -> None:
        model.transformer.save_pretrained(folder / "transformer")
        model.text_encoder.save_pretrained(folder / "text_encoder")

    # The model's own method would set the attention of all models of the process, and for good.
    with attention_backend("_native_math" if DEVICE == "cpu" else "native"):
        fit(model, Batches(latents, pipe.processor), compute, LEARNING_RATE, result, EMA_DECAY, DECAY_SHARE)
    replace_folder(result, save)
    result.with_suffix(".pt").unlink()
    return result


def _to_device(value: Any) -> Any:
    """The same with all tensors on `DEVICE`."""
    if isinstance(value, dict):
        return {name: _to_device(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_to_device(one) for one in value]
    return value.to(DEVICE, non_blocking=True) if isinstance(value, torch.Tensor) else value
