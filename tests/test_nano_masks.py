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
"""Masks and keyframes on LoomVideo-nano, judged on pixels."""

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
from loomvideo_diffusers.nano.world import COLORS, Scene, frame_times, is_held_out, render, sample_scene


# Where the pictures go that people look at
PICTURES = os.environ.get("LOOMVIDEO_MASK_PICTURES")

NUM_SCENES = 20


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
        same = replace(scene, things=(first, replace(second, color=first.color)))
        others = [color for color in COLORS if color not in (first.color, scene.background)]
        color = others[rng.integers(len(others))]
        if not is_held_out(first.shape, color) and not is_held_out(second.shape, first.color):
            found.append((same, color))
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
    prompts = [f"make everything {color}" for _, color in scenes]
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


@pytest.mark.slow
def test_an_edited_first_frame_is_carried_on(edit):
    """The frame is what it is to be, to 30 dB, and the others follow it."""
    rng, jobs = np.random.default_rng(31), []
    while len(jobs) < NUM_SCENES:
        scene, _ = sample_scene(rng, False, 1, SIDE, SIDE)
        thing = scene.things[0]
        others = [color for color in COLORS if color not in (thing.color, scene.background)]
        color = others[rng.integers(len(others))]
        if not is_held_out(thing.shape, color):
            jobs.append((scene, Scene((replace(thing, color=color),), scene.background)))
    sources, targets = ([render(job[side], NUM_FRAMES) for job in jobs] for side in (0, 1))
    successes, closeness = [], []
    results = []
    for source, target, job in zip(sources, targets, jobs):
        frames = run(edit, ["make it another color"], [source], keyframes={0: target[0]})[0]
        results.append(frames)
        successes.append(judge(Example("", job[1], job[0]), frames)["success"])
        closeness.append(10 * np.log10(255**2 / np.square(frames[0].astype(float) - target[0]).mean()))
    print(f"Carried on {np.mean(successes):.0%}, first frame {np.mean(closeness):.1f} dB, least {min(closeness):.1f}")
    if PICTURES:
        rows = [row for source, frames in zip(sources, results) for row in (source, frames)]
        write_image(Path(PICTURES) / "keyframes.png", contact_sheet(rows[:16], height=SIDE))
    assert min(closeness) >= 30
    assert np.mean(successes) >= 0.9
