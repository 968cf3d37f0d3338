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
"""Teaches LoomVideo-nano's MLLM what sentences mean, before it is trained together with the transformer."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset
from transformers import Qwen3VLModel, Qwen3VLProcessor

from ..media.files import replace_folder
from ..pipelines.loomvideo_mllm import PROMPT_PREFIXES, run_mllm, tokenize
from . import SEED
from .edits import KINDS
from .fitting import DEVICE, fit
from .tasks import TASKS, Example, sample_example
from .untrained import make_processor, make_text_encoder
from .words import typed
from .world import BACKGROUNDS, COLORS, DIRECTIONS, PLACES, SHAPES, SIZES


STEPS = 1500
BATCH_SIZE = 96
LEARNING_RATE = 2e-3
# Of the tasks in which there is more to say, more sentences
TASK_WEIGHTS = {"two requests": 4, "several things to video": 4, "text to video": 3, "everything": 2}

# What a sentence says, in rows: one for each change or each thing that is described, and one for the background. For
# each column what may be said; nothing comes first.
COLUMNS: dict[str, tuple[str, ...]] = {
    "kind": ("", *KINDS, "show", "ground"),
    "value": ("", *COLORS, *SHAPES, *SIZES, "bigger", "smaller", *DIRECTIONS, "reverse", *BACKGROUNDS[:4], "image"),
    "shape": ("", *SHAPES),
    "color": ("", *COLORS),
    "size": ("", *SIZES),
    "direction": ("", *DIRECTIONS),
    "place": ("", *PLACES),
    "number": ("", "all", "same"),
}
# The MLLM reads four tokens after each prompt. Of each, what it says in these layers is one row.
NUM_ROWS = 4
LAYERS = (3, 5, 7)


def encode_meaning(meaning: Iterable[dict[str, str]]) -> torch.Tensor:
    """Numbers what is said, int64 `[NUM_ROWS, columns]`."""
    numbers = [[options.index(row.get(column, "")) for column, options in COLUMNS.items()] for row in meaning]
    numbers += [[0] * len(COLUMNS)] * (NUM_ROWS - len(numbers))
    return torch.tensor(numbers)


class Sentences(Dataset):
    """For each step sentences as the pipelines pass them to the MLLM, and what they mean, `[B, NUM_ROWS, columns]`."""

    def __init__(self, processor: Qwen3VLProcessor):
        self.processor = processor
        self.tasks = list(TASKS)
        weights = np.array([TASK_WEIGHTS.get(task, 1) for task in TASKS])
        self.shares = weights / weights.sum()

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        rng = np.random.default_rng([SEED, 4, index])
        examples = [sample_example(str(task), rng) for task in rng.choice(self.tasks, BATCH_SIZE, p=self.shares)]
        return tokenize_sentences(self.processor, examples, rng), torch.stack(
            [encode_meaning(example.meaning) for example in examples]
        )


def tokenize_sentences(
    processor: Qwen3VLProcessor, examples: list[Example], rng: np.random.Generator
) -> dict[str, torch.Tensor]:
    """The inputs of the MLLM for the words of examples, spelled as people do, without what there is to see."""
    texts = []
    for example in examples:
        action = "generate" if example.source is None else "edit"
        key = (f"{action} {'image' if example.num_frames == 1 else 'video'}", bool(example.references))
        texts.append(PROMPT_PREFIXES[key] + typed(example.prompt, rng))
    inputs = tokenize(processor, texts, [[]] * len(texts), [None] * len(texts))
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}


class Reader(nn.Module):
    """An MLLM, and what reads from its layers what a sentence means."""

    def __init__(self, text_encoder: Qwen3VLModel):
        super().__init__()
        self.text_encoder = text_encoder
        size = text_encoder.config.text_config.hidden_size
        self.norms = nn.ModuleList(nn.RMSNorm(size) for _ in LAYERS)
        self.heads = nn.ModuleDict({column: nn.Linear(size, len(options)) for column, options in COLUMNS.items()})

    def forward(self, inputs: dict[str, torch.Tensor]) -> list[list[torch.Tensor]]:
        """Returns for each of `LAYERS` and for each column the logits, `[B, NUM_ROWS, options]`."""
        hidden_states, _ = run_mllm(self.text_encoder, inputs, None)
        ends = inputs["attention_mask"].sum(dim=1, keepdim=True)
        places = ends - NUM_ROWS + torch.arange(NUM_ROWS, device=ends.device)
        batch = torch.arange(len(places), device=ends.device)[:, None]
        read = [norm(hidden_states[batch, layer, places]) for norm, layer in zip(self.norms, LAYERS)]
        return [[head(states) for head in self.heads.values()] for states in read]


def train_language(output_dir: Path) -> Path:
    """
    Teaches an MLLM, from nothing, what sentences mean.

    Args:
        output_dir: the folder for the checkpoint, the log `language.csv` and the result.

    Returns:
        The folder of the `Qwen3VLModel`, `text_encoder`, and its processor, `processor`.
    """
    result = output_dir / "language"
    if result.exists():
        return result
    torch.manual_seed(SEED)
    processor = make_processor()
    reader = Reader(make_text_encoder(processor.tokenizer)).to(DEVICE)
    reader.text_encoder.visual.requires_grad_(False)

    def compute(
        batch: tuple[dict[str, torch.Tensor], torch.Tensor], step: int
    ) -> tuple[torch.Tensor, dict[str, float]]:
        inputs, meanings = {name: tensor.to(DEVICE) for name, tensor in batch[0].items()}, batch[1].to(DEVICE)
        read = reader(inputs)
        losses = [
            F.cross_entropy(logits.float().flatten(0, 1), meanings[..., column].flatten())
            for of_layer in read
            for column, logits in enumerate(of_layer)
        ]
        right = torch.stack([logits.argmax(-1) for logits in read[-1]], dim=-1) == meanings
        return torch.stack(losses).mean(), {"understood": right.flatten(1).all(dim=1).float().mean().item()}

    def save(folder: Path) -> None:
        reader.text_encoder.save_pretrained(folder / "text_encoder")
        processor.save_pretrained(folder / "processor")

    fit(reader, Sentences(processor), compute, LEARNING_RATE, result)
    replace_folder(result, save)
    result.with_suffix(".pt").unlink()
    return result
