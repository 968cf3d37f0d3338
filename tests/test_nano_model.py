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
"""What LoomVideo-nano makes of what its training never showed it, judged on pixels."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from loomvideo_diffusers import LoomVideoEditPipeline, LoomVideoPipeline, cli
from loomvideo_diffusers.footage import plan_edit, read_frames, read_model_frames, survey
from loomvideo_diffusers.media import read_video, write_video
from loomvideo_diffusers.nano import DEFAULT_OPTIONS, MODEL, NUM_FRAMES, OPTIONS, SIDE
from loomvideo_diffusers.nano.evaluation import call, evaluate_examples
from loomvideo_diffusers.nano.judge import PATH_TOLERANCE, look
from loomvideo_diffusers.nano.tasks import Example
from loomvideo_diffusers.nano.world import Scene, Thing, draw_frame
from loomvideo_diffusers.pipelines.loomvideo_guidance import divide_into_windows


@pytest.fixture(scope="module")
def pipe():
    return LoomVideoPipeline.from_pretrained(MODEL, dtype=torch.float32)


def share(judged, name="success"):
    return np.mean([judgement[name] for *_, judgement in judged])


def test_the_folder_is_small_and_whole():
    """Below 40 MB in half precision; what saves or uploads it adds the code."""
    files = list(MODEL.rglob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) < 40e6
    for path in files:
        with safe_open(path, "pt") as file:
            assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118
    index = json.loads((MODEL / "model_index.json").read_text())
    assert {"text_encoder", "processor", "vae", "transformer", "scheduler"} < set(index)
    assert (MODEL / "README.md").is_file()
    assert index["_class_name"] == "LoomVideoPipeline"
    assert not list(MODEL.rglob("*.py"))


def test_the_command_line_makes_what_is_asked_for(tmp_path):
    """Without a model being named, from words, and of the video that came out."""
    heart, blue = tmp_path / "heart.mp4", tmp_path / "blue.mp4"
    words = "a large red heart moves right on a white background"
    assert cli.main(["generate", words, "--seed", "0", "-o", str(heart)]) == 0
    background, seen = look(read_video(heart))
    assert (background, seen.shape, seen.color, seen.direction) == ("white", "heart", "red", "right")
    assert read_video(heart).shape == (NUM_FRAMES, SIDE, SIDE, 3)
    assert cli.main(["edit", str(heart), "make the heart blue", "--seed", "0", "-o", str(blue)]) == 0
    background, edited = look(read_video(blue))
    assert (background, edited.shape, edited.color) == ("white", "heart", "blue")
    assert np.abs(edited.path - seen.path).max() < 3


HEART = Thing("heart", "red", "large", "right", (48.0, 48.0))
PORTRAIT = Thing("star", "green", "large", "still", (48.0, 48.0))
ON_WHITE = Scene((HEART,), "white")
# Plain things to ask for: the words, the result, and what it is made of
PLAIN = {
    "text to video": Example("", ON_WHITE, prompt="a large red heart moves right"),
    "recolor": Example("", Scene((replace(HEART, color="blue"),), "white"), ON_WHITE, prompt="make the heart blue"),
    "replace": Example(
        "", Scene((replace(HEART, shape="star"),), "white"), ON_WHITE, prompt="turn the heart into a star"
    ),
    "background": Example("", Scene((HEART,), "black"), ON_WHITE, prompt="put the heart on a black background"),
    "recolor by reference": Example(
        "",
        Scene((replace(HEART, color="green"),), "white"),
        ON_WHITE,
        (Scene((PORTRAIT,), "black"),),
        prompt="make the heart the color of @Image 1",
    ),
    "replace by reference": Example(
        "",
        Scene((replace(HEART, shape="star"),), "white"),
        ON_WHITE,
        (Scene((PORTRAIT,), "black"),),
        prompt="turn the heart into the shape of @Image 1",
    ),
    "thing and background to video": Example(
        "",
        Scene((replace(PORTRAIT, direction="left"),), "striped"),
        None,
        (Scene((PORTRAIT,), "black"), Scene((), "striped")),
        prompt="@Image 1 moves left on @Image 2",
    ),
}


@pytest.mark.parametrize(
    "task",
    [
        "text to video",
        "recolor",
        pytest.param("replace", marks=pytest.mark.slow),
        pytest.param("background", marks=pytest.mark.slow),
        pytest.param("recolor by reference", marks=pytest.mark.slow),
        pytest.param("replace by reference", marks=pytest.mark.slow),
        pytest.param("thing and background to video", marks=pytest.mark.slow),
    ],
)
def test_tasks(pipe, task):
    """Most of a few results succeed; by chance, one in six shapes and one in eight colors would be right."""
    assert share(evaluate_examples(pipe, [PLAIN[task]], seeds=(0, 1, 2, 3))) > 0.5


@pytest.mark.slow
def test_the_path_comes_from_the_source(pipe):
    """With a source scale of 0, edits lose it."""
    examples = [
        replace(
            PLAIN["recolor"],
            source=replace(ON_WHITE, things=(replace(HEART, direction=direction),)),
            target=replace(ON_WHITE, things=(replace(HEART, direction=direction, color="blue"),)),
        )
        for direction in ("left", "up", "down-right")
    ]
    assert share(evaluate_examples(pipe, examples, (0,)), "path") > 0.5
    assert share(evaluate_examples(pipe, examples, (0,), "source"), "path") < 0.5


@pytest.mark.slow
def test_the_color_comes_from_the_reference(pipe):
    """Without it, it is a guess."""
    example = PLAIN["recolor by reference"]
    assert share(evaluate_examples(pipe, [example], (0, 1, 2, 3)), "color") > 0.5
    assert share(evaluate_examples(pipe, [example], (0, 1, 2, 3), "references"), "color") < 0.5


def test_guidance_scales(pipe):
    """A step moves the latents by (s - 1) of what the words change, and by (v - 1) of what the visual input does."""
    examples = (PLAIN["recolor"],)

    def step(guidance_scale, guidance_scale_visual):
        scales = {"guidance_scale": guidance_scale, "guidance_scale_visual": guidance_scale_visual}
        generator = torch.Generator().manual_seed(0)
        return call(pipe, examples, num_inference_steps=1, generator=generator, output_type="latent", **scales)

    plain = step(1, 1)
    words, visual = step(2, 1) - plain, step(1, 2) - plain
    assert min(words.abs().max(), visual.abs().max()) > 1e-2
    assert torch.allclose(step(3, 1.5), plain + 2 * words + 0.5 * visual, atol=1e-4)


# What is seen when these are done to a red heart on white: shape, color and background
LONG_EDITS = {
    "make the heart blue": ("heart", "blue", "white"),
    "turn the heart into a star": ("star", "red", "white"),
    "put the heart on a black background": ("heart", "red", "black"),
}
# It leaves open what to make, so that windows by themselves differ.
OPEN_EDIT = "make the heart another color"


@pytest.mark.slow
def test_a_long_edit_has_no_seam(pipe, tmp_path):
    """240 frames are as even where windows begin and end as elsewhere, which windows by themselves are not."""
    pipe = LoomVideoEditPipeline.from_pipe(pipe)
    thing = Thing("heart", "red", "large", "right", (48.0, 50.0))
    # To and fro, as fast as in the clips of the training
    times = 1 - np.abs(np.arange(240) / (NUM_FRAMES - 1) % 2 - 1)
    write_video(tmp_path / "source.mp4", np.stack([draw_frame(Scene((thing,), "white"), time) for time in times]))
    footage, beginning = survey(tmp_path / "source.mp4"), survey(tmp_path / "source.mp4", NUM_FRAMES)
    source, model_frames = np.stack(list(read_frames(footage))), np.stack(list(read_model_frames(footage)))
    path = np.array([thing.center(time) for time in times])
    starts = range(0, 240, NUM_FRAMES - 1)

    def read(name):
        return np.stack(list(read_frames(survey(tmp_path / name))))

    def succeeds(frames, expected):
        background, seen = look(frames)
        is_right = seen is not None and (seen.shape, seen.color, background) == expected
        return is_right and np.linalg.norm(seen.path - path[: len(frames)], axis=1).max() <= PATH_TOLERANCE

    def edited(clip, prompt):
        windows = {name: DEFAULT_OPTIONS[name] for name in ("window_frames", "window_overlap")}
        settings = {"height": SIDE, "width": SIDE} | OPTIONS | windows
        plan_edit(clip, prompt, tmp_path / "edited.mp4", **settings).run(pipe)
        return read("edited.mp4")

    long, short = ([edited(clip, prompt) for prompt in LONG_EDITS] for clip in (footage, beginning))
    parts = pipe(
        [OPEN_EDIT] * len(starts),
        video=[model_frames[start : start + NUM_FRAMES] for start in starts],
        generator=[torch.Generator().manual_seed(start) for start in starts],
        **OPTIONS,
    ).frames
    write_video(tmp_path / "apart.mp4", np.concatenate(parts[:, :-1]))

    latent_windows = divide_into_windows(241, NUM_FRAMES, DEFAULT_OPTIONS["window_overlap"])
    edges = {edge for part, _ in latent_windows for edge in (part.start, part.stop)} - {0, 61}
    seams, cuts = [4 * edge - 4 for edge in sorted(edges)], [start - 1 for start in starts[1:]]

    def unevenness(clips, places):
        steps = np.abs(np.diff(np.stack(clips).astype(float), axis=1)).mean((2, 3, 4))
        return steps[:, places].mean() / np.delete(steps, places, axis=1).mean()

    of_source, of_windows = unevenness([source], seams), unevenness(long, seams)
    of_open, of_cuts = unevenness([edited(footage, OPEN_EDIT)], seams), unevenness([read("apart.mp4")], cuts)
    print(f"Steps at seams, in those elsewhere: {of_windows:.3f} ({of_source:.3f} in the source).")
    print(f"Of an edit that leaves open what to make: {of_open:.3f}, cut {of_cuts:.3f}.")
    successes = [
        [succeeds(frames, expected) for frames, expected in zip(results, LONG_EDITS.values())]
        for results in (long, short)
    ]
    print(f"Successes of {list(LONG_EDITS)}: long {successes[0]}, short {successes[1]}.")
    assert of_windows < 1.15
    assert of_open < 1.15 < of_cuts - 0.5
    assert sum(successes[0]) >= sum(successes[1]) > 0
