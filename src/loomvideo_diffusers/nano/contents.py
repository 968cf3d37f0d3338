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
"""
What each token of a clip shows. The transformer learns to say it from within, as in "Representation Alignment for
Generation" (arXiv 2410.06940): so it finds out what to draw, and where, in fewer steps.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .tasks import Example
from .world import BACKGROUNDS, COLORS, DIRECTIONS, SHAPES, SIZES, draw_mask, frame_times


# What can be said of a token; for things, nothing comes first.
OPTIONS: dict[str, tuple[str, ...]] = {
    "shape": ("", *SHAPES),
    "color": ("", *COLORS),
    "size": ("", *SIZES),
    "direction": ("", *DIRECTIONS),
    "style": ("", "filled", "outlined"),
    "background": (*BACKGROUNDS, *(f"inverted {name}" for name in BACKGROUNDS)),
}
# The block whose output says it
BLOCK = 5
# A token is 16 pixels high and wide and, but for the first, four frames long.
TOKEN_SIDE, TOKEN_FRAMES = 16, 4
# A thing is seen in a token if it covers more than this share of it.
SMALLEST_SHARE = 0.08


def encode_contents(example: Example) -> torch.Tensor:
    """Numbers what the tokens of an example's target show, int64 `[T, rows, columns, len(OPTIONS)]`."""
    scene, num_frames = example.target, example.num_frames
    background = f"{'inverted ' if scene.is_inverted else ''}{scene.background}"
    grid = (scene.height // TOKEN_SIDE, scene.width // TOKEN_SIDE)
    # The first frame, and the middle of each four that follow
    frames = np.maximum(np.arange(0, num_frames, TOKEN_FRAMES) - 1.5, 0)
    times = frames / (num_frames - 1) if num_frames > 1 else frame_times(1)
    numbers = np.zeros((len(times), *grid, len(OPTIONS)), np.int64)
    numbers[..., -1] = OPTIONS["background"].index(background)
    largest = np.full(numbers.shape[:3], SMALLEST_SHARE)
    for thing in scene.things:
        direction = thing.direction if num_frames > 1 else "still"
        style = "outlined" if thing.is_outline else "filled"
        said = (thing.shape, thing.color, thing.size, direction, style)
        row = [options.index(value) for options, value in zip(OPTIONS.values(), said)]
        for place, time in enumerate(times):
            mask = draw_mask(thing.shape, thing.radius, thing.center(time), width=scene.width, height=scene.height)
            shares = mask.reshape(grid[0], TOKEN_SIDE, grid[1], TOKEN_SIDE).mean(axis=(1, 3))
            is_larger = shares > largest[place]
            largest[place][is_larger] = shares[is_larger]
            numbers[place][is_larger, :-1] = row
    return torch.from_numpy(numbers)


class ContentsReader(nn.Module):
    """Reads from hidden states of the transformer what its tokens show."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.heads = nn.ModuleDict({name: nn.Linear(dim, len(options)) for name, options in OPTIONS.items()})

    def forward(self, hidden_states: torch.Tensor, contents: torch.Tensor) -> torch.Tensor:
        """
        Returns the mean cross-entropy, in which what shows things weighs as much as the rest.

        Args:
            hidden_states: of the video's tokens, and of any that follow, `[B, S, dim]`.
            contents: a stack of what `encode_contents` returns, `[B, T, rows, columns, len(OPTIONS)]`.
        """
        contents = contents.flatten(1, 3)
        hidden_states = self.norm(hidden_states[:, : contents.shape[1]].float())
        is_thing = contents[..., 0] > 0
        losses = []
        for place, (name, head) in enumerate(self.heads.items()):
            entropies = F.cross_entropy(head(hidden_states).float().mT, contents[..., place], reduction="none")
            losses.append(entropies[~is_thing].mean())
            if name != "background" and is_thing.any():
                losses.append(entropies[is_thing].mean())
        return torch.stack(losses).sum() / len(self.heads)
