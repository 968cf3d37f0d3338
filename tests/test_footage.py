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
"""Edits of footage: whatever comes in goes out with its size, length, times and sound."""

import itertools
from collections import Counter
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from clips import QUICK, make_clip
from peft import LoraConfig
from PIL import Image

from loomvideo_diffusers.footage import Footage, Placement, plan_edit, read_frames, read_model_frames, survey
from loomvideo_diffusers.footage.run import edit_preview
from loomvideo_diffusers.media import decoding
from loomvideo_diffusers.media.encoding import plan_output, write_footage


def sound_of(path):
    """The packets of sound, and when each is heard, in milliseconds."""
    with av.open(str(path)) as container:
        packets = list(container.demux(*container.streams.audio)) if container.streams.audio else []
        packets = [packet for packet in packets if packet.dts is not None]
        times = [round(packet.pts * packet.time_base * 1000) for packet in packets]
        return [bytes(packet) for packet in packets], times


def seconds_of(footage):
    return np.array([float((time - footage.times[0]) * footage.time_base) for time in footage.times])


def check_same_clip(source, result):
    before, after = survey(source), survey(result)
    assert (after.width, after.height) == (before.width, before.height)
    assert len(after.times) == len(before.times)
    assert np.abs(seconds_of(after) - seconds_of(before)).max() < 0.002
    assert float(after.rate) == pytest.approx(float(before.rate), rel=0.01)
    assert sound_of(result)[0] == sound_of(source)[0]
    assert np.abs(np.subtract(sound_of(result)[1], sound_of(source)[1])).max(initial=0) <= 1


CLIPS = {
    **{f"{number} frames": {"num_frames": number} for number in (1, 2, 15, 16, 17, 29, 30)},
    **{f"{rate} a second": {"rate": rate} for rate in (12, 23.976, 25, 29.97, 50, 60, 120)},
    **{f"{width} x {height}": {"size": (width, height)} for width, height in ((33, 47), (128, 32), (50, 96))},
    **{layout: {"layout": layout} for layout in ("mono", "5.1")},
    "no sound": {"layout": None},
    "turned": {"rotation": 90},
    "upside down": {"rotation": 180},
    "variable": {"times": [0, 40, 50, 90, 250, 260, 300, 1300, 1400]},
    "10 bits": {"pix_fmt": "yuv420p10le", "codec": "libx265"},
    "full range": {"colors": (1, 1, 1, 2)},
    "BT.601": {"colors": (6, 6, 6, 1)},
    "BT.2020": {"colors": (9, 9, 14, 1), "pix_fmt": "yuv420p10le"},
    "alpha": {"codec": "prores_ks", "pix_fmt": "yuva444p10le", "suffix": ".mov"},
    "VP9": {"codec": "libvpx-vp9", "suffix": ".mkv"},
    "AV1": {"codec": "libsvtav1", "suffix": ".mkv"},
}


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_comes_back(name, edit, tmp_path):
    """With its size, length, times and sound."""
    arguments = dict(CLIPS[name])
    if arguments.get("codec", "libx264") not in av.codecs_available:
        pytest.skip(f"this PyAV has no {arguments['codec']}")
    odd = any(side % 2 for side in arguments.get("size", ()))
    arguments |= {"pix_fmt": "yuv444p"} if odd else {}
    suffix = arguments.pop("suffix", ".mp4")
    source, output = make_clip(tmp_path / f"source{suffix}", **arguments), tmp_path / f"out{suffix}"
    plan_edit(survey(source), output=output, **QUICK).run(edit)
    check_same_clip(source, output)
    assert {path.name for path in tmp_path.iterdir()} == {source.name, output.name}


def test_pictures_and_colors_come_back(tmp_path):
    """Frames that nobody edits look as before, upright, whatever the file says of its colors."""
    for index, arguments in enumerate(
        ({}, {"rotation": 90}, {"colors": (1, 1, 1, 2)}, {"colors": (6, 6, 6, 1)}, {"colors": (9, 9, 14, 1)})
    ):
        source, output = tmp_path / f"{index}.mp4", tmp_path / f"{index}-out.mp4"
        footage = survey(make_clip(source, options={"crf": "1"}, **arguments))
        with write_footage(plan_output(footage, output), footage) as writer:
            for pixels in read_frames(footage):
                writer.write(pixels)
        before, after = (np.stack(list(read_frames(survey(path)))).astype(int) for path in (source, output))
        assert np.abs(before - after).mean() < 1.5
        with av.open(str(source)) as a, av.open(str(output)) as b:
            contexts = [container.streams.video[0].codec_context for container in (a, b)]
            if "colors" in arguments:
                said = [(one.colorspace, one.color_primaries, one.color_trc, one.color_range) for one in contexts]
                assert said[0] == said[1]


@pytest.mark.parametrize(
    ("rate", "num_frames", "stride", "num_model_frames"),
    [
        (24, 30, 1, 33),
        (30, 30, 1, 33),
        (Fraction(30000, 1001), 121, 1, 121),
        (60, 240, 2, 121),
        (50, 101, 2, 53),
        (35, 41, 1, 41),
        (37, 41, 2, 21),
        (84, 41, 4, 13),
        (10, 9, Fraction(1, 2), 21),
        (14, 9, Fraction(1, 2), 21),
        (17, 9, 1, 9),
        (120, 500, 5, 101),
        (12, 9, Fraction(1, 2), 21),
        (5, 3, Fraction(1, 5), 17),
        (24, 1, 1, 1),
    ],
)
def test_frames_that_the_model_sees(rate, num_frames, stride, num_model_frames):
    """Whole steps: every frame of the clip, each n-th, or each several times."""
    footage = Footage(None, 64, 48, tuple(range(num_frames)), Fraction(1, rate), Fraction(rate))
    assert footage.stride == stride
    assert footage.num_model_frames == num_model_frames
    shown = list(footage.model_frames)
    assert shown == sorted(shown)
    assert shown[-1] < num_model_frames
    assert {int(index * stride) for index in shown} <= set(range(num_frames))


def test_model_frames(tmp_path):
    footage = survey(make_clip(tmp_path / "a.mp4", num_frames=10, rate=48))
    frames, seen = list(read_frames(footage)), list(read_model_frames(footage))
    assert len(seen) == footage.num_model_frames == 5
    assert all(np.array_equal(seen[index], frames[2 * index]) for index in range(5))
    footage = survey(make_clip(tmp_path / "b.mp4", num_frames=3, rate=12))
    frames, seen = list(read_frames(footage)), list(read_model_frames(footage))
    assert [next(i for i, one in enumerate(frames) if np.array_equal(one, pixels)) for pixels in seen] == [
        0, 0, 1, 1, 2, 2, 2, 2, 2,
    ]  # fmt: skip


@pytest.mark.parametrize("max_crop", [0.0, 0.1, 0.9])
@pytest.mark.parametrize(("width", "height"), [(64, 48), (1920, 1080), (33, 470), (832, 480)])
def test_placement(width, height, max_crop):
    """What is placed and restored is as before, but for what was cropped, which is no more than asked."""
    placement = Placement.of((width, height), 416, 240, max_crop)
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([255 * rows / height, 255 * columns / width, np.full(rows.shape, 99)], -1).astype(np.uint8)
    placed = placement.place(pixels)
    assert placed.shape == (240, 416, 3)
    left, top, right, bottom = placement.visible
    inner = placement.inner
    share = (right - left) * (bottom - top) / ((inner[2] - inner[0]) * (inner[3] - inner[1]))
    assert share >= 1 - max_crop - 0.02
    assert max_crop < 0.9 or width == 33 or (right - left, bottom - top) == (416, 240)
    assert np.array_equal(placed[0], placed[top])
    assert np.array_equal(placed[:, 0], placed[:, left])
    back = placement.restore(placed, np.zeros((height, width, 3), np.uint8))
    seen = placement.restore(np.full((240, 416), 255, np.uint8), np.zeros((height, width), np.uint8)) > 0
    assert seen.mean() >= 1 - max_crop - 0.02
    assert np.abs(back.astype(int) - pixels)[seen].mean() < 6


@pytest.mark.parametrize("size", [(30, 90), (90, 30)])
def test_only_what_shows_the_clip_is_restored(size):
    """What lies around it in the model's frame is not mixed in."""
    placement = Placement.of(size, 64, 64)
    left, top, right, bottom = placement.visible
    assert min(right - left, bottom - top) < 64
    frame = np.full((64, 64, 3), 255, np.uint8)
    frame[top:bottom, left:right] = 100
    assert (placement.restore(frame, np.zeros((*size[::-1], 3), np.uint8)) == 100).all()


def test_deep_frames_are_scaled_within_their_range():
    """Beside an edge, Lanczos overshoots; far from it, nothing changes."""
    frame = np.zeros((64, 64, 3), np.uint16)
    frame[:, 32:] = 65535
    whole = Placement.of((100, 100), 64, 64).restore(frame, np.full((100, 100, 3), 7, np.uint16))
    assert whole.dtype == np.uint16
    assert (whole[:, :40] == 0).all()
    assert (whole[:, 60:] == 65535).all()
    assert (whole[:, :48] < 15000).all()
    assert (whole[:, 52:] > 50000).all()


def test_what_did_not_change_comes_from_the_clip(edit, tmp_path, monkeypatch):
    """At its full resolution, with a soft edge around what did change."""
    source = make_clip(tmp_path / "source.mp4", num_frames=5, size=(128, 64), options={"crf": "1"})
    footage = survey(source)

    def paint_corner(latents):
        for pixels in read_model_frames(footage):
            changed = Placement.of((128, 64), 64, 32).place(pixels).copy()
            changed[20:, 50:] = (0, 255, 0)
            yield changed

    paint = lambda pipe, latents, dtype: paint_corner(latents)  # noqa: E731
    monkeypatch.setattr("loomvideo_diffusers.footage.run._decode", paint)
    for keep_unchanged in (False, True):
        plan_edit(footage, output=tmp_path / "out.mp4", keep_unchanged=keep_unchanged, **QUICK).run(edit)
        before, after = (
            np.stack(list(read_frames(survey(path)))).astype(int) for path in (source, tmp_path / "out.mp4")
        )
        error = np.abs(before - after)
        assert after[:, 56:, 116:].mean((0, 1, 2)) == pytest.approx((0, 255, 0), abs=12)
        # The edges of the square are sharp only if they are the clip's own.
        assert (error[:, :, :64].max() < 40) == keep_unchanged


def test_comparison_and_preview(edit, tmp_path):
    source = make_clip(tmp_path / "source.mp4", num_frames=30)
    footage, output, compare = survey(source), tmp_path / "out.mp4", tmp_path / "compare.mp4"
    plan_edit(footage, output=output, compare=compare, comment="made so", **QUICK).run(edit)
    both = np.stack(list(read_frames(survey(compare)))).astype(int)
    assert both.shape == (30, 48, 128, 3)
    before, after = (np.stack(list(read_frames(survey(path)))).astype(int) for path in (source, output))
    assert np.abs(both[:, :, :64] - before).mean() < 3
    assert np.abs(both[:, :, 64:] - after).mean() < 6
    with av.open(str(output)) as container:
        assert container.metadata["comment"] == "made so"
    shown, edited = edit_preview(edit, plan_edit(footage, preview=tmp_path / "sheet.png", **QUICK))
    assert len(shown) == len(edited) == 6
    assert {pixels.shape for pixels in (*shown, *edited)} == {(48, 64, 3)}
    assert np.array_equal(shown[0], next(read_frames(footage)))


@pytest.mark.parametrize(("rotation", "expected"), [(None, Fraction(4, 3)), (90, Fraction(3, 4))])
def test_pixels_that_are_not_square(rotation, expected, tmp_path):
    """Their proportions are kept, of a turned clip upright, beside each other too."""
    footage = survey(make_clip(tmp_path / "source.mp4", rotation=rotation, pixel_aspect=Fraction(4, 3)))
    frames = list(read_frames(footage))
    for name, size in (("same.mp4", None), ("double.mp4", (2 * footage.width, footage.height))):
        with write_footage(plan_output(footage, tmp_path / name, size=size), footage) as writer:
            for pixels in frames:
                writer.write(pixels if size is None else np.hstack([pixels, pixels]))
        assert survey(tmp_path / name).pixel_aspect == expected


BOTH = QUICK | {"num_inference_steps": 2, "guidance_scale": 3.0, "guidance_scale_visual": 2.0}


def add_lora(edit):
    """Random weights, whose effect is large enough to be seen."""
    torch.manual_seed(0)
    edit.transformer.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))


def call(edit, video, **settings):
    """What a call of the pipeline makes of frames of the model's size, uint8 `[F, H, W, 3]`."""
    settings = BOTH | settings
    settings["attention_kwargs"] = {"scale": settings.pop("lora_scale", 1.0)}
    settings["reference_images"] = list(settings.pop("references", ())) or None
    generator = torch.Generator().manual_seed(settings.pop("seed", 0))
    frames = edit(**settings, video=list(video), generator=generator).frames[0]
    return (frames * 255).round().astype(int)


def edited(edit, footage, folder, **settings):
    """What an edit writes, uint8 `[F, H, W, 3]`."""
    plan_edit(footage, output=folder / "%d.png", **BOTH | settings).run(edit)
    return np.stack([np.asarray(Image.open(folder / f"{i + 1}.png"), int) for i in range(len(footage.times))])


@pytest.mark.parametrize(
    "settings",
    [
        {"prompt": "red"},
        {"references": (Image.new("RGB", (32, 32), "red"),)},
        {"negative_prompt": "dark"},
        {"seed": 1},
        {"num_inference_steps": 3},
        {"guidance_scale": 5.0},
        {"guidance_scale_visual": 4.0},
        {"window_frames": 21},
        {"window_overlap": 8},
        {"lora_scale": 0.25},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_reach_the_model(settings, edit, tmp_path):
    """The result is that of a call with the same settings, and differs from that of a call without."""
    footage = survey(make_clip(tmp_path / "source.mp4", num_frames=33, size=(64, 32)))
    video = list(read_frames(footage))
    add_lora(edit)
    expected = call(edit, video, **settings)
    assert np.abs(expected - call(edit, video)).max() > 2
    assert np.abs(edited(edit, footage, tmp_path, **settings) - expected).max() <= 1


def test_size_and_crop_reach_the_model(edit, tmp_path):
    """Frames are scaled to the model's size and back; what is cropped stays as it was."""
    footage = survey(make_clip(tmp_path / "source.mp4", num_frames=5, size=(64, 32)))
    double = [np.asarray(Image.fromarray(frame).resize((128, 64), Image.BILINEAR)) for frame in read_frames(footage)]
    expected = call(edit, double, height=64, width=128).astype(np.uint8)
    expected = [np.asarray(Image.fromarray(frame).resize((64, 32), Image.LANCZOS), int) for frame in expected]
    assert np.abs(edited(edit, footage, tmp_path, height=64, width=128) - expected).max() <= 2

    footage = survey(make_clip(tmp_path / "tall.mp4", num_frames=5, size=(64, 48)))
    video = np.stack(list(read_frames(footage)))
    result = edited(edit, footage, tmp_path, max_crop=0.4)
    assert np.abs(result[:, 8:40] - call(edit, video[:, 8:40])).max() <= 1
    assert np.array_equal(result[:, :8], video[:, :8])
    assert np.array_equal(result[:, 40:], video[:, 40:])


@pytest.mark.parametrize(
    "settings",
    [{}, {"references": (Image.new("RGB", (32, 32), "red"),)}, {"lora_scale": 0.25}],
    ids=["plain", "references", "lora_scale"],
)
def test_a_preview_is_of_single_images(settings, edit, tmp_path):
    """Each frame is that of a call with the image, references and LoRA scale."""
    footage = survey(make_clip(tmp_path / "source.mp4", num_frames=2, size=(64, 32)))
    add_lora(edit)
    before, after = edit_preview(edit, plan_edit(footage, preview=tmp_path / "sheet.png", **BOTH | settings))
    assert np.array_equal(before, list(read_frames(footage)))
    options = {name: value for name, value in BOTH.items() if name != "window_frames"}
    for pixels, picture in zip(before, after):
        frames = edit(
            **options,
            image=pixels,
            reference_images=list(settings.get("references", ())) or None,
            attention_kwargs={"scale": settings.get("lora_scale", 1.0)},
            generator=torch.Generator().manual_seed(0),
        ).frames[0]
        assert np.abs(picture - (frames[0] * 255).round()).max() <= 1


def test_clips_are_decoded_no_more_than_needed(edit, tmp_path, monkeypatch):
    """Once to be checked and once for the model; once more where the result needs the source's pixels."""
    source = make_clip(tmp_path / "source.mp4", num_frames=9)
    counts, results = Counter(), {}
    decode = decoding.VideoReader.frames

    def frames(self):
        counts[self.path] += 1
        return decode(self)

    monkeypatch.setattr(decoding.VideoReader, "frames", frames)
    for number, options in (
        (2, {}),
        (3, {"compare": tmp_path / "both.mp4"}),
        (3, {"contact_sheet": tmp_path / "sheet.png"}),
        (3, {"keep_unchanged": True}),
        (3, {"max_crop": 0.2}),
    ):
        counts.clear()
        plan_edit(source, output=tmp_path / "out.mp4", **QUICK | options).run(edit)
        assert list(counts.values()) == [number], options
        if "keep_unchanged" not in options and "max_crop" not in options:
            assert (tmp_path / "out.mp4").read_bytes() == results.setdefault(
                "out", (tmp_path / "out.mp4").read_bytes()
            )


def test_a_broken_off_edit_goes_on(edit, tmp_path, monkeypatch):
    """The same call does the steps that are left, and gives what an unbroken one gives; another call begins anew."""
    footage = survey(make_clip(tmp_path / "source.mp4", num_frames=30))
    settings = QUICK | {"num_inference_steps": 4}
    plan_edit(footage, output=tmp_path / "whole.mp4", **settings).run(edit)
    step, calls = edit.scheduler.step, itertools.count()
    with monkeypatch.context() as context:
        context.setattr(
            edit.scheduler, "step", lambda *args, **options: 1 / 0 if next(calls) == 2 else step(*args, **options)
        )
        with pytest.raises(ZeroDivisionError):
            plan_edit(footage, output=tmp_path / "out.mp4", **settings).run(edit)
    assert (tmp_path / ".unfinished-out.safetensors").exists()
    num_calls = []
    edit.transformer.register_forward_hook(lambda *_: num_calls.append(1))
    plan_edit(footage, output=tmp_path / "out.mp4", **settings).run(edit)
    num_windows = 2
    assert len(num_calls) == 2 * num_windows
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert not (tmp_path / ".unfinished-out.safetensors").exists()

    monkeypatch.setattr("loomvideo_diffusers.footage.run._results", lambda *_: iter([1 / 0]))
    with pytest.raises(ZeroDivisionError):
        plan_edit(footage, output=tmp_path / "again.mp4", **settings).run(edit)
    monkeypatch.undo()
    num_calls.clear()
    plan_edit(footage, output=tmp_path / "again.mp4", **settings).run(edit)
    assert not num_calls
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    # What was broken off is of no use for fewer frames, or for another model.
    monkeypatch.setattr("loomvideo_diffusers.footage.run._results", lambda *_: iter([1 / 0]))
    with pytest.raises(ZeroDivisionError):
        plan_edit(footage, output=tmp_path / "fewer.mp4", **settings).run(edit)
    monkeypatch.undo()
    for part, model in ((survey(footage.path, 9), ""), (footage, "another")):
        num_calls.clear()
        progress = (tmp_path / ".unfinished-fewer.safetensors").read_bytes()
        plan_edit(part, output=tmp_path / "fewer.mp4", model=model, **settings).run(edit)
        assert len(num_calls) == 4 * (1 if part.num_model_frames == 9 else num_windows)
        (tmp_path / ".unfinished-fewer.safetensors").write_bytes(progress)
    (tmp_path / ".unfinished-other.safetensors").write_bytes(b"no tensors")
    plan_edit(footage, output=tmp_path / "other.mp4", **QUICK).run(edit)
    assert (tmp_path / "other.mp4").exists()
