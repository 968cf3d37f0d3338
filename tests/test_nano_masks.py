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
"""Masks on LoomVideo-nano, judged on pixels."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from loomvideo_diffusers import LoomVideoEditPipeline, LoomVideoPipeline
from loomvideo_diffusers.media import contact_sheet, write_image
from loomvideo_diffusers.nano import MODEL, NUM_FRAMES, OPTIONS, SIDE
from loomvideo_diffusers.nano.judge import judge
from loomvideo_diffusers.nano.tasks import Example
from loomvideo_diffusers.nano.world import COLORS, frame_times, is_held_out, render, sample_scene


# Where the pictures go that people look at
PICTURES = os.environ.get("LOOMVIDEO_MASK_PICTURES")

NUM_SCENES = 40
BACKGROUNDS_OF_NANO = ("white", "black", "striped", "checkered")


@pytest.fixture(scope="module")
def edit():
    pipe = LoomVideoEditPipeline.from_pipe(LoomVideoPipeline.from_pretrained(MODEL, dtype=torch.float32))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(edit, prompts, videos, **options):
    """Edits clips together; returns their frames, uint8 `[B, F, H, W, 3]`."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    frames = edit(prompts, video=videos, generator=generators, **OPTIONS | options).frames
    return (frames * 255).round().astype(np.uint8)


def in_batches(call, *lists, size=10):
    parts = [call(*(one[start : start + size] for one in lists)) for start in range(0, len(lists[0]), size)]
    return np.concatenate(parts)


def scenes_of_one_color():
    """Scenes of two things of one color, and another color that the first of them is to get."""
    rng, found = np.random.default_rng(30), []
    while len(found) < NUM_SCENES:
        scene, _ = sample_scene(rng, False, 2, SIDE, SIDE)
        first, second = scene.things
        color = list(COLORS)[rng.integers(len(COLORS))]
        shown = [(first.shape, first.color), (first.shape, color), (second.shape, first.color)]
        if first.shape != second.shape and color != first.color and not any(is_held_out(*pair) for pair in shown):
            things = (first, replace(second, color=first.color))
            background = BACKGROUNDS_OF_NANO[rng.integers(len(BACKGROUNDS_OF_NANO))]
            found.append((replace(scene, things=things, background=background), color))
    return found


def mask_of(thing, margin=6):
    """A disk that moves with a thing, bool `[F, H, W]`."""
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    centers = [thing.center(time) for time in frame_times(NUM_FRAMES)]
    return np.stack([np.hypot(columns - x, rows - y) < thing.radius + margin for x, y in centers])


def steps_across(frames, mask):
    """The mean difference of neighbours of which one is in the mask and the other not."""
    total, count = 0.0, 0
    for axis in (1, 2):
        borders = np.diff(mask, axis=axis)
        total += np.abs(np.diff(frames.astype(float), axis=axis)).mean(-1)[borders].sum()
        count += borders.sum()
    return total / count


@pytest.mark.slow
def test_a_mask_chooses(edit):
    """Of two things of one color, the one in the mask changes, and all else is equal; no seam is seen."""
    scenes = scenes_of_one_color()
    sources = [render(scene, NUM_FRAMES) for scene, _ in scenes]
    masks = [mask_of(scene.things[0]) for scene, _ in scenes]
    prompts = [f"make the {scene.things[0].shape} {color}" for scene, color in scenes]
    results = in_batches(lambda *lists: run(edit, *lists[:2], mask=list(lists[2])), prompts, sources, masks)
    plain = in_batches(lambda *lists: run(edit, *lists), prompts, sources)
    successes, equal = [], []
    for (scene, color), source, mask, frames in zip(scenes, sources, masks, results):
        things = (replace(scene.things[0], color=color), scene.things[1])
        successes.append(judge(Example("", replace(scene, things=things), scene), frames)["success"])
        equal.append(np.array_equal(frames[~mask], source[~mask]))
    seams = [[steps_across(frames, mask) for frames, mask in zip(clips, masks)] for clips in (results, plain)]
    ratio = np.mean(seams[0]) / np.mean(seams[1])
    print(f"Inside {np.mean(successes):.0%}, outside equal {np.mean(equal):.0%}, steps at the border {ratio:.2f}")
    if PICTURES:
        for name, chosen in (("successes", True), ("failures", False)):
            rows = [
                row
                for source, frames, ok in zip(sources, results, successes)
                if ok == chosen
                for row in (source, frames)
            ]
            if rows:
                write_image(Path(PICTURES) / f"masks-{name}.png", contact_sheet(rows[:16], height=SIDE))
    assert np.mean(equal) == 1
    assert np.mean(successes) >= 0.95
    assert ratio <= 1.15
