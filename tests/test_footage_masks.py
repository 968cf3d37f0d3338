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
"""Masks and boxes of footage: what may change changes, and nothing else."""

import csv
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from clips import QUICK, make_clip

from loomvideo_diffusers import cli
from loomvideo_diffusers.errors import LoomVideoError
from loomvideo_diffusers.footage import plan_edit, read_frames, survey
from loomvideo_diffusers.footage.masks import Box, latent_mask_of, read_mask
from loomvideo_diffusers.media import read_comment, read_image, read_video, write_image, write_video


@pytest.fixture
def source(tmp_path):
    """9 frames of 64 x 48 with sound."""
    return make_clip(tmp_path / "source.mp4")


def frames_of(path):
    return np.stack(list(read_frames(survey(path))))


def masks_of(mask, num_frames=9):
    return np.stack([mask[index] for index in range(num_frames)])


def write_masks(path, masks):
    """Writes masks, bool `[F, H, W]`, as the frames of an image sequence."""
    for index, mask in enumerate(masks):
        PIL.Image.fromarray(mask).save(str(path) % (index + 1))


HALF = np.arange(64) >= 32


def test_boxes(source):
    footage = survey(source)
    mask = read_mask(footage, boxes=["8,4,20,30"])
    expected = np.zeros((48, 64), np.uint8)
    expected[4:34, 8:28] = 255
    assert len(mask.frames) == 1
    assert np.array_equal(masks_of(mask), np.stack([expected] * 9))
    inverted = read_mask(footage, boxes=[(8, 4, 20, 30)], invert=True)
    assert np.array_equal(inverted[0], 255 - expected)


def test_a_box_that_moves(source):
    """It goes evenly from one place to the next, in whatever order they are given, and rests before and after."""
    boxes = [Box(40, 8, 8, 8, 6 / 24), Box(8, 8, 16, 8, 2 / 24)]
    masks = masks_of(read_mask(survey(source), boxes=boxes))
    lefts = [int(mask.any(0).argmax()) for mask in masks]
    widths = [int(mask.any(0).sum()) for mask in masks]
    assert lefts == [8, 8, 8, 16, 24, 32, 40, 40, 40]
    assert widths == [16, 16, 16, 14, 12, 10, 8, 8, 8]


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,4,5", "a,b,c,d", "1,2,3,4@", "1,2,3,4@x", "1.5,2,3,4", ""])
def test_what_is_no_box(text):
    with pytest.raises(LoomVideoError, match="A box must be X,Y,W,H or X,Y,W,H@SECONDS, but is"):
        Box.parse(text)
    assert str(Box.parse("1, 2,30,4@1.50")) == "1,2,30,4@1.5"


def test_images(source, tmp_path):
    """Of any size, by their lightness, or by their opacity if something is transparent."""
    footage, path = survey(source), tmp_path / "mask.png"
    PIL.Image.fromarray(np.tile(np.where(HALF, 255, 0).astype(np.uint8), (48, 1))).save(path)
    expected = np.tile(np.where(HALF, 255, 0), (48, 1))
    assert np.array_equal(read_mask(footage, path)[5], expected)
    PIL.Image.fromarray(np.repeat(np.where(HALF[::2], 255, 0).astype(np.uint8)[None], 10, 0)).save(path)
    assert np.abs(read_mask(footage, path)[5] - expected)[:, np.r_[:31, 33:64]].max() == 0
    pixels = np.zeros((48, 64, 4), np.uint8)
    pixels[:, HALF, 3] = 255
    PIL.Image.fromarray(pixels).save(path)
    assert np.array_equal(read_mask(footage, path)[5], expected)


@pytest.mark.parametrize("num_frames", [3, 9, 18])
def test_videos_of_other_lengths(num_frames, source, tmp_path):
    """One of as many frames goes with the clip frame by frame; another by its times, and its last frame stays."""
    masks = np.stack([np.tile(np.arange(32) <= index, (24, 1)) for index in range(num_frames)])
    rate = 12 if num_frames == 9 else 24
    write_video(tmp_path / "mask.mp4", [np.repeat(mask[..., None] * 1.0, 3, 2) for mask in masks], fps=rate)
    read = masks_of(read_mask(survey(source), tmp_path / "mask.mp4"))
    widths = (read[:, 24] > 127).sum(1) / 2
    expected = np.minimum(np.arange(9), num_frames - 1) + 1
    assert np.abs(widths - expected).max() <= 0.5


def test_another_rate(source, tmp_path):
    """A mask of 12 frames a second shows each of them twice."""
    masks = np.stack([np.tile(np.arange(32) <= index, (24, 1)) for index in range(5)])
    write_video(tmp_path / "mask.mp4", [np.repeat(mask[..., None] * 1.0, 3, 2) for mask in masks], fps=12)
    read = masks_of(read_mask(survey(source), tmp_path / "mask.mp4"))
    assert np.abs((read[:, 24] > 127).sum(1) / 2 - [1, 1, 2, 2, 3, 3, 4, 4, 5]).max() <= 0.5


def test_sequences_and_arrays(source, tmp_path):
    """An image sequence, an array, a list, and what finds masks say the same."""
    footage = survey(source)
    masks = np.stack([np.roll(np.tile(HALF, (48, 1)), index, axis=1) for index in range(9)])
    write_masks(tmp_path / "mask_%02d.png", masks)

    def find(frames):
        for index, frame in enumerate(frames):
            assert (frame.shape, frame.dtype) == ((48, 64, 3), np.uint8)
            yield torch.from_numpy(masks[index])

    for form in (
        tmp_path / "mask_%02d.png",
        masks,
        list(masks),
        masks.astype(np.float32),
        torch.from_numpy(masks),
        find,
    ):
        assert np.array_equal(masks_of(read_mask(footage, form)), masks * 255)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": np.zeros((48, 64, 3, 1))}, "`mask` must be a file, an image, an array"),
        ({"mask": 5}, "`mask` must be a file, an image, an array"),
        ({"mask": np.zeros((4, 48, 64))}, "`mask` has 4 frames, but the clip has 9: give one for each."),
        ({"mask": np.zeros((10, 48, 64))}, "`mask` has more frames, but the clip has 9: give one for each."),
        ({"mask": []}, "`mask` has 0 frames, but the clip has 9: give one for each."),
        ({"mask": lambda frames: [next(frames)[..., 0]]}, "`mask` has 1 frames, but the clip has 9"),
        ({"mask": np.full((48, 64), np.nan)}, r"`mask` has values outside of \[0, 1\], or NaN"),
        ({"mask": np.zeros((0, 64))}, r"`mask` must hold masks \[H, W\] that have pixels"),
        ({"mask": "mask.txt"}, "mask.txt cannot be read as a video"),
        ({"mask": "none.png"}, "none.png cannot be read as"),
        ({"mask": "source.mp4", "output": "source.mp4"}, "source.mp4 is named twice"),
        ({"mask": np.zeros((48, 64)), "boxes": ["0,0,9,9"]}, "Both `mask` and a box are given: give one of them."),
        ({"mask_invert": True}, "There is no mask to invert"),
        ({"mask_out": "mask.mp4"}, "There is no mask to write to `mask_out`"),
        ({"boxes": ["60,0,9,9"]}, "The box 60,0,9,9 does not lie within the 64 x 48 pixels of the source."),
        ({"boxes": ["-1,0,9,9"]}, "The box -1,0,9,9 does not lie within"),
        ({"boxes": ["0,0,0,9"]}, "The box 0,0,0,9 does not lie within"),
        ({"boxes": ["0,0,9,9", "9,9,9,9"]}, "give each a time of its own"),
        ({"boxes": ["0,0,9,9@1", "9,9,9,9@1"]}, "give each a time of its own"),
        ({"boxes": [(1, 2, 3, 4, float("nan"))]}, "A box must be x, y, width and height, and maybe seconds"),
        ({"boxes": [(1, 2, 3)]}, "A box must be x, y, width and height, and maybe seconds"),
        ({"mask_feather": -1, "boxes": ["0,0,9,9"]}, "`mask_feather` must be a whole number from 0"),
        ({"strength": 1.5}, "`strength` must be from 0 to 1, but is 1.5."),
        ({"lossless": True}, "out.mp4 cannot hold pictures without loss: write a .mkv"),
    ],
    ids=lambda value: None,
)
def test_bad_input(options, message, source, tmp_path, monkeypatch):
    """It is refused in a sentence, when the plan is made."""
    monkeypatch.chdir(tmp_path)
    Path("mask.txt").write_text("no mask")
    write_image("source.png", np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=message) as raised:
        plan_edit("source.mp4", **{"output": "out.mp4"} | QUICK | options)
    assert "\n" not in str(raised.value)


def test_outside_is_the_source(edit, source, tmp_path):
    """Bit for bit, in a file that holds all bits, with its sound and times; inside is something else."""
    output = tmp_path / "out.mkv"
    plan = plan_edit(
        source, output=output, boxes=["8,4,30,30"], lossless=True, mask_out=tmp_path / "mask.mp4", **QUICK
    )
    plan.run(edit)
    before, after, mask = frames_of(source), frames_of(output), plan.mask[0] > 0
    assert np.array_equal(before[:, ~mask], after[:, ~mask])
    assert np.abs(before[:, 12:26, 16:30].astype(int) - after[:, 12:26, 16:30]).mean() > 5
    footage, result = survey(source), survey(output)
    assert (result.rate, len(result.sound_tracks), len(result.times)) == (footage.rate, 1, 9)
    shown = read_video(tmp_path / "mask.mp4").astype(int)
    assert np.abs(shown - before)[:, ~mask].mean() < 4 < 40 < np.abs(shown - before)[:, mask].mean()


@pytest.mark.parametrize(
    "arguments",
    [
        {"codec": "libx265", "pix_fmt": "yuv420p10le"},
        {"codec": "prores_ks", "pix_fmt": "yuva444p10le", "suffix": ".mov"},
        {"rotation": 90},
        {"rate": 60, "num_frames": 20},
        {"rate": 8},
        {"size": (33, 47), "pix_fmt": "yuv444p"},
    ],
    ids=["10 bits", "alpha", "turned", "fast", "slow", "odd"],
)
def test_clips_of_all_kinds(arguments, edit, tmp_path):
    arguments = dict(arguments)
    source = make_clip(tmp_path / f"source{arguments.pop('suffix', '.mp4')}", **arguments)
    output = tmp_path / "out.mkv"
    boxes = ["4,4,20,20@0", "10,20,20,20@0.3"]
    plan = plan_edit(source, output=output, boxes=boxes, lossless=True, **QUICK)
    plan.run(edit)
    before, after = frames_of(source), frames_of(output)
    outside = masks_of(plan.mask, len(before)) == 0
    assert before.dtype == after.dtype
    assert np.array_equal(before[outside], after[outside])
    assert not np.array_equal(before, after)


def test_long_clips_in_windows(edit, tmp_path):
    """240 frames, and a mask that moves."""
    source, output = make_clip(tmp_path / "source.mp4", num_frames=240), tmp_path / "out.mkv"
    masks = np.zeros((240, 48, 64), bool)
    for index in range(240):
        masks[index, 10:30, index // 6 : index // 6 + 20] = True
    plan = plan_edit(source, output=output, mask=masks, lossless=True, **QUICK)
    plan.run(edit)
    before, after = frames_of(source), frames_of(output)
    assert np.array_equal(before[~masks], after[~masks])
    inside = np.abs(before.astype(int) - after).max(3).reshape(240, -1).sum(1)
    assert (inside > 0).all()


def test_everything_and_nothing(edit, source, tmp_path):
    """A mask of everything is as none; with one of nothing the source comes back, and that is said before."""
    results = {}
    for name, mask in {"none": None, "all": np.ones((48, 64)), "nothing": np.zeros((48, 64))}.items():
        plan = plan_edit(source, output=tmp_path / f"{name}.mkv", mask=mask, lossless=True, mask_feather=0, **QUICK)
        assert plan.notes == (("The mask is empty: nothing will change.",) if name == "nothing" else ())
        plan.run(edit)
        results[name] = frames_of(tmp_path / f"{name}.mkv")
    assert np.array_equal(results["all"], results["none"])
    assert np.array_equal(results["nothing"], frames_of(source))


def test_latent_masks(tmp_path):
    """A latent may change if a pixel of one of its frames may, which a frame is that shows the edit of another."""
    footage = survey(make_clip(tmp_path / "fast.mp4", num_frames=17, rate=48))
    plan = plan_edit(footage, output=tmp_path / "out.mp4", **QUICK)
    masks = np.zeros((17, 48, 64), bool)
    masks[9, 47, 63] = True  # Every second frame is edited: this is shown with the fifth.
    latent_mask = latent_mask_of(read_mask(footage, masks), footage, plan.placement, 16, 4)
    assert latent_mask.shape == (1, 1, 3, 2, 4)
    assert latent_mask.nonzero()[:, 2].tolist() == [1] * int(latent_mask.sum())
    assert latent_mask.sum() > 0


def test_previews(edit, source, tmp_path):
    plan = plan_edit(source, preview=tmp_path / "p.png", boxes=["0,0,20,48"], mask_out=tmp_path / "m.png", **QUICK)
    plan.run(edit)
    sheet = np.asarray(read_image(tmp_path / "p.png"))
    before, after = np.vsplit(sheet, 2)
    assert sheet.shape[1] == 6 * 171
    assert np.array_equal(before[:, 171 // 2 : 171], after[:, 171 // 2 : 171])
    assert not np.array_equal(before, after)
    assert read_image(tmp_path / "m.png").size == (6 * 171, 128)


def test_images_that_are_edited(edit, tmp_path):
    """They keep their size with a mask, of which the model's is a part."""
    pixels = np.random.default_rng(0).integers(0, 256, (70, 101, 3), np.uint8)
    write_image(tmp_path / "source.png", pixels)
    options = {"num_inference_steps": 1, "mask_out": tmp_path / "mask.png"}
    plan = plan_edit(tmp_path / "source.png", "blue", tmp_path / "out.png", boxes=["50,0,51,70"], **options)
    plan.run(edit)
    after = np.asarray(read_image(tmp_path / "out.png"))
    assert np.array_equal(after[:, :50], pixels[:, :50])
    assert not np.array_equal(after[:, 50:], pixels[:, 50:])
    shown = np.asarray(read_image(tmp_path / "mask.png"))
    assert np.array_equal(shown[:, :50], pixels[:, :50])
    with pytest.raises(LoomVideoError, match="An image has one box"):
        plan_edit(tmp_path / "source.png", "blue", tmp_path / "out.png", boxes=["0,0,9,9@0", "9,9,9,9@1"])
    with pytest.raises(LoomVideoError, match=r"out\.mp4"):
        plan_edit(
            tmp_path / "source.png", "blue", tmp_path / "a.png", boxes=["0,0,9,9"], mask_out=tmp_path / "out.mp4"
        )


class Stopped(Exception):
    pass


@pytest.mark.parametrize("options", [{"strength": 0.5}, {"boxes": ["8,4,30,30"]}], ids=str)
def test_resumed(options, edit, source, tmp_path):
    """An interrupted edit goes on to the same result; with another mask or strength it begins anew."""
    options = QUICK | {"num_inference_steps": 6, "lossless": True} | options
    plan_edit(source, output=tmp_path / "whole.mkv", **options).run(edit)
    steps = []

    def stop(pipe, step, timestep, tensors):
        steps.append(step)
        if len(steps) == 2:
            raise Stopped
        return {}

    plan = plan_edit(source, output=tmp_path / "out.mkv", **options)
    with pytest.raises(Stopped):
        plan.run(edit, callback_on_step_end=stop)
    plan.run(edit, callback_on_step_end=stop)
    num_steps = 3 if "strength" in options else 6
    assert len(steps) == 2 + num_steps - 1
    assert np.array_equal(frames_of(tmp_path / "out.mkv"), frames_of(tmp_path / "whole.mkv"))
    others = [{"strength": 0.7}, {"boxes": ["9,4,30,30"]}]
    digests = {plan_edit(source, output=tmp_path / "out.mkv", **options | other).digest() for other in others}
    assert plan.digest() not in digests
    assert plan.digest() == plan_edit(source, output=tmp_path / "o.mkv", **options | {"mask_feather": 9}).digest()


def test_command(model_folder, source, tmp_path, capsys):
    """All options; the file says with which command it was made, which makes it again."""
    size = ["--model", str(model_folder), "--height", "32", "--width", "64", "--steps", "2", "--seed", "1"]
    masked = ["--box", "0,0,20,20@0", "30,10,20,20@0.3", "--mask-invert", "--mask-feather", "2", "--strength", "0.5"]
    masked += ["--lossless", "--mask-out", str(tmp_path / "mask.mp4")]
    assert cli.main(["edit", str(source), "blue", "-o", str(tmp_path / "out.mkv"), *masked, *size]) == 0
    before, after = frames_of(source), frames_of(tmp_path / "out.mkv")
    assert np.array_equal(before[0, :20, :20], after[0, :20, :20])
    assert (tmp_path / "mask.mp4").exists()
    capsys.readouterr()
    assert cli.main(["info", str(tmp_path / "out.mkv")]) == 0
    said = capsys.readouterr().out
    words = "--box 0,0,20,20@0 30,10,20,20@0.3 --mask-invert --mask-feather 2"
    for word in (words, "--lossless", "--strength 0.5"):
        assert word in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--box", "1,2,3"], "argument --box: A box must be X,Y,W,H or X,Y,W,H@SECONDS, but is '1,2,3'."),
        (["--mask", "none.png"], "none.png"),
        (["--mask-invert"], "There is no mask to invert"),
        (["--box", "0,0,999,9"], "does not lie within the 64 x 48 pixels"),
        (["--strength", "2"], "`strength` must be from 0 to 1, but is 2.0."),
    ],
)
def test_bad_commands(arguments, message, source, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "loomvideo_diffusers.cli.edit.load_pipeline", lambda *_, **__: pytest.fail("a model was loaded")
    )
    try:
        status = cli.main(["edit", str(source), "blue", "-o", str(tmp_path / "out.mp4"), *arguments])
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_jobs(suffix, model_folder, source, tmp_path):
    """Each has masks and boxes of its own, relative to the folder of the list."""
    write_masks(tmp_path / "mask_%d.png", np.tile(HALF, (9, 48, 1)))
    write_image(tmp_path / "mask.png", np.stack([np.tile(HALF, (48, 1)) * 1.0] * 3, 2))
    jobs = [
        {"output": "a.mkv", "mask": "mask.png"},
        {"output": "b.mkv", "mask": "mask_%d.png", "mask_invert": True},
        {"output": "c.mkv", "box": ["32,0,32,48"]},
        {"output": "d.mkv"},
    ]
    jobs = [{"input": "source.mp4", "prompt": "blue", "seed": 1} | job for job in jobs]
    if suffix == ".csv":
        with open(tmp_path / "jobs.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, ["input", "prompt", "seed", "output", "mask", "mask_invert", "box"])
            writer.writeheader()
            for job in jobs:
                writer.writerow(job | {name: json.dumps(job[name]) for name in job.keys() & {"box"}})
    else:
        (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    size = ["--model", str(model_folder), "--height", "32", "--width", "64", "--steps", "1", "--lossless"]
    assert cli.main(["edit", "--jobs", str(tmp_path / f"jobs{suffix}"), *size]) == 0
    before = frames_of(source)
    kept = {name: (frames_of(tmp_path / f"{name}.mkv") == before).all((0, 1, 3)) for name in "abcd"}
    for name in "ac":
        assert kept[name][:32].all()
        assert not kept[name][32:].any()
    assert kept["b"][32:].all()
    assert not kept["d"].any()


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"box": ["1,2,3"]}, "A box must be X,Y,W,H"),
        ({"mask": "none.png"}, "none.png is not there."),
    ],
)
def test_bad_jobs(job, message, source, tmp_path, capsys):
    job = {"input": "source.mp4", "prompt": "blue", "output": "out.mp4"} | job
    (tmp_path / "jobs.jsonl").write_text(json.dumps(job))
    assert cli.main(["edit", "--jobs", str(tmp_path / "jobs.jsonl")]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_boxes_are_said_as_they_are_read():
    for seconds in (12345.678, 1e-5, 0.5, 0.0):
        assert Box.parse(str(Box(1, 2, 3, 4, seconds))).seconds == pytest.approx(seconds)


@pytest.mark.parametrize(("mask_invert", "is_inverted"), [(None, True), (True, True), (False, False)])
def test_jobs_and_the_command(mask_invert, is_inverted, model_folder, source, tmp_path):
    """What a job leaves out of its mask, the command says, and so does the result."""
    job = {"input": "source.mp4", "prompt": "blue", "output": "a.mkv", "mask_invert": mask_invert}
    (tmp_path / "jobs.jsonl").write_text(json.dumps({name: value for name, value in job.items() if value is not None}))
    options = ["--model", str(model_folder), "--height", "32", "--width", "64", "--steps", "1", "--lossless"]
    masked = ["--box", "0,0,32,48", "--mask-invert"]
    assert cli.main(["edit", "--jobs", str(tmp_path / "jobs.jsonl"), *options, *masked]) == 0
    kept = (frames_of(tmp_path / "a.mkv") == frames_of(source)).all((0, 1, 3))
    assert (kept[:32].all(), kept[32:].any()) == ((True, False) if is_inverted else (False, True))
    command = json.loads(read_comment(tmp_path / "a.mkv"))["command"]
    assert "--box 0,0,32,48" in command
    assert ("--mask-invert" in command) == is_inverted
