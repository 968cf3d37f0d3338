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
"""Clips of the kinds that people have: their rates, tracks, times, orientation, depth, and what is written of them."""

import os
import re
import resource
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import PIL.Image
import pytest
from clips import QUICK, flashes_and_beeps, make_clip, rewrite
from conftest import FIXTURES
from oriented import make_oriented_clip, make_oriented_photo, upright_picture

from loomvideo_diffusers import cli
from loomvideo_diffusers.errors import LoomVideoError
from loomvideo_diffusers.footage import Footage, plan_edit, read_frames, read_model_frames, survey
from loomvideo_diffusers.media import probe_video, read_video, write_gif, write_video
from loomvideo_diffusers.media.decoding import convert_pixels, measure_rate
from loomvideo_diffusers.media.encoding import plan_output
from loomvideo_diffusers.media.images import probe_image, read_image
from loomvideo_diffusers.media.sequences import sequence_files
from loomvideo_diffusers.training.data import Record, read_clip


FIELD = FIXTURES / "field"


def footage_with(times, **values):
    """A clip by the milliseconds when its frames are shown."""
    rate, _ = measure_rate([time / 1000 for time in times], None)
    return Footage(None, 64, 48, tuple(times), Fraction(1, 1000), rate, **values)


def test_a_recording_of_a_browser():
    """Its times jitter and no rate is declared, or a wrong one: each of its frames is edited."""
    footage = survey(FIELD / "browser.webm")
    assert len(footage.times) == 60
    assert 28 < footage.rate < 32
    assert set(footage.counts) <= {1, 2}
    assert 57 <= footage.num_model_frames <= 65
    frames = read_video(FIELD / "browser.webm")
    assert frames.shape == (45, 96, 128, 3)
    assert len(np.unique(frames.reshape(45, -1), axis=0)) > 40
    assert probe_video(FIELD / "browser.webm") == (128, 96, 45)


@pytest.mark.parametrize(
    ("times", "rate", "counts"),
    [
        # 60 a second with two frames lost: each second one is edited, and what stands for long is not skipped.
        ([0, 17, 33, 50, 67, 117, 133, 150], 60, [1, 0, 1, 0, 1, 1, 0, 1]),
        # 30 a second, and a pause of half a second, which the model sees as such
        ([0, 33, 67, 100, 600, 633, 667], 30, [1, 1, 1, 12, 1, 1, 1]),
        # 10 a second, of which the model sees each twice, and a frame that is gone at once
        ([0, 100, 200, 300, 320, 400, 500, 600, 700], 10, [2, 2, 2, 1, 2, 2, 2, 2, 2]),
        # A picture each 5 minutes: a second of the model's time
        ([0, 300_000, 600_000], Fraction(1, 300), [24, 24, 24]),
    ],
)
def test_frames_that_the_model_sees_of_uneven_clips(times, rate, counts):
    footage = footage_with(times)
    assert float(footage.rate) == pytest.approx(float(rate), rel=0.02)
    assert list(footage.counts) == counts
    first = np.cumsum([0, *counts[:-1]])
    assert list(footage.model_frames) == [start if count else start - 1 for start, count in zip(first, counts)]


def test_a_clip_that_is_nearly_still(tmp_path):
    times = [300_000 * index for index in range(12)]
    footage = survey(make_clip(tmp_path / "slides.mp4", num_frames=12, times=times, layout=None))
    assert footage.num_model_frames == 289
    assert any("12 frames in 3300 seconds" in note and "289 frames" in note for note in footage.notes)
    seen = list(read_model_frames(footage))
    assert len(seen) == 289
    assert np.array_equal(seen[0], seen[23])
    assert not np.array_equal(seen[0], seen[24])


@pytest.mark.parametrize("audio", ["copy", "encode"])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("name", ["cut.mp4", "opus.webm", "joined.ts"])
def test_times_and_sound_in_every_container(name, suffix, audio, tmp_path):
    """Flash and beep are where a player has them in the source; what was cut off stays off."""
    notes = rewrite(FIELD / name, tmp_path / f"out{suffix}", audio)
    if suffix != ".mkv":
        # So that a page can show the clip before all of it has arrived, its index comes first.
        whole = (tmp_path / f"out{suffix}").read_bytes()
        assert whole.index(b"moov") < whole.index(b"mdat")
    flashes, beeps = flashes_and_beeps(tmp_path / f"out{suffix}")
    expected = {
        "cut.mp4": ([0.292, 1.292, 2.292], [0.3, 1.3, 2.3]),
        "opus.webm": ([0.007 + index for index in range(6)], [*map(float, range(6))]),
        # The second recording goes on after all of the first, of 50 frames.
        "joined.ts": ([0.021, 1.021, 2.021, 3.109, 4.109], [0.021, 1.021, 2.021, 3.109, 4.109]),
    }[name]
    assert flashes == pytest.approx(expected[0], abs=0.002)
    assert beeps == pytest.approx(expected[1], abs=0.012)
    is_copied = audio == "copy" and (name, suffix) != ("opus.webm", ".mov")
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        codec = container.streams.audio[0].codec_context.name
    assert codec == ("opus" if name == "opus.webm" and is_copied else "aac")
    assert any("encoded as AAC" in note for note in notes) == (audio == "copy" and not is_copied)
    assert any("several recordings" in note for note in notes) == (name == "joined.ts")


@pytest.mark.parametrize(
    ("codec", "source", "results"),
    [
        ("pcm_s16le", ".mov", {".mov": "pcm_s16le", ".mkv": "pcm_s16le"}),
        ("flac", ".mkv", {".mp4": "flac", ".mov": "pcm_s16le", ".mkv": "flac"}),
        ("alac", ".mov", {".mp4": "alac", ".mov": "alac"}),
        ("libmp3lame", ".avi", {".mp4": "mp3", ".mov": "mp3", ".mkv": "mp3"}),
    ],
)
def test_sound_that_a_container_cannot_hold(codec, source, results, tmp_path):
    """It is encoded, without loss if it has none, and a line says so."""
    video = "libx264" if source in (".mov", ".mkv") else "mpeg4"
    clip = make_clip(tmp_path / f"clip{source}", num_frames=24, codec=video, sound_codec=codec)
    for suffix, expected in results.items():
        notes = rewrite(clip, tmp_path / f"out{suffix}")
        with av.open(str(tmp_path / f"out{suffix}")) as container:
            assert container.streams.audio[0].codec_context.name in (expected, f"{expected}float")
            seconds = sum(frame.samples for frame in container.decode(audio=0)) / 48000
        assert seconds == pytest.approx(1, abs=0.08)
        assert len([note for note in notes if "encoded" in note]) == (expected not in codec)


def test_encoded_sound(tmp_path):
    """At the rate of the source, with 128 kbit/s for each channel, and no longer than the frames that are taken."""
    clip = make_clip(tmp_path / "clip.mkv", num_frames=96, sound_codec="libopus")
    rewrite(clip, tmp_path / "all.mp4", "encode")
    rewrite(clip, tmp_path / "part.mp4", "encode", num_frames=24)
    for name, seconds in (("all.mp4", 4), ("part.mp4", 1)):
        with av.open(str(tmp_path / name)) as container:
            stream = container.streams.audio[0]
            assert (stream.codec_context.name, stream.codec_context.sample_rate) == ("aac", 48000)
            sizes, samples = [packet.size for packet in container.demux(stream)], 1024 * stream.frames
        assert 8 * sum(sizes) / (samples / 48000) == pytest.approx(256_000, rel=0.15)
        assert samples / 48000 == pytest.approx(seconds, abs=0.06)


def test_sequences_of_jpgs_are_of_good_quality(tmp_path):
    rewrite(FIXTURES / "cat.mp4", tmp_path / "%d.jpg", num_frames=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.jpg", "2.jpg"]
    before = next(read_frames(survey(FIXTURES / "cat.mp4")))
    assert np.abs(np.asarray(read_image(tmp_path / "1.jpg")).astype(int) - before).mean() < 3


@pytest.mark.parametrize(("num_bits", "pix_fmt"), [(9, "10le"), (10, "10le"), (12, "12le"), (16, "12le")])
def test_bits_of_colors(num_bits, pix_fmt, tmp_path):
    footage = footage_with([0, 40], pixel_format="rgb48le", num_bits=num_bits)
    plan = plan_output(footage, tmp_path / "out.mp4")
    assert (plan.codec, plan.pix_fmt) == ("libx265", f"yuv420p{pix_fmt}")
    assert [note for note in plan.notes if "12 bits" in note and "16 bits" in note] == list(plan.notes)
    assert len(plan.notes) == (num_bits == 16)


def test_a_track_of_an_unknown_codec_is_left_out(tmp_path):
    notes = rewrite(FIELD / "apac.mov", tmp_path / "out.mov")
    (note,) = notes
    assert all(words in note for words in ("track 2", str(FIELD / "apac.mov"), "codec", "left out"))
    with av.open(str(tmp_path / "out.mov")) as container:
        assert [stream.codec_context.name for stream in container.streams] == ["h264", "aac"]
    rewrite(FIELD / "apac.mov", tmp_path / "none.mov", audio="none")
    with av.open(str(tmp_path / "none.mov")) as container:
        assert len(container.streams) == 1


def test_a_track_without_sound_is_left_out(tmp_path):
    """Such as of a recording that broke off at once."""
    data = (FIELD / "joined.ts").read_bytes()
    (tmp_path / "clip.ts").write_bytes(data[: 188 * 20])
    notes = rewrite(tmp_path / "clip.ts", tmp_path / "out.mp4")
    with av.open(str(tmp_path / "clip.ts")) as container:
        assert not [packet for packet in container.demux(audio=0) if packet.size]
    assert any("is empty: it is left out" in note for note in notes)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert len(container.streams) == 1


def test_damaged_packets_of_sound_are_left_out(tmp_path):
    """Those of a recording whose heads are broken, which no muxer takes."""
    data = bytearray((FIELD / "joined.ts").read_bytes())
    with av.open(str(FIELD / "joined.ts")) as container:
        sound = container.streams.audio[0].id
    places = [place for place in range(0, len(data), 188) if (data[place + 1] & 0x1F) << 8 | data[place + 2] == sound]
    for place in places[5:60:5]:
        data[place + 60 : place + 180] = bytes(120)
    (tmp_path / "clip.ts").write_bytes(data)
    for suffix in (".mp4", ".mov", ".mkv"):
        notes = rewrite(tmp_path / "clip.ts", tmp_path / f"out{suffix}")
        assert any(re.search(r"has \d+ damaged packets: they are left out", note) for note in notes), notes
        assert len(survey(tmp_path / f"out{suffix}").times) == 100


def test_errors_of_decoders_are_not_hidden(tmp_path):
    """With a thread for each frame, the decoder of VP8 gives out frames that it failed to decode."""
    data = bytearray((FIELD / "browser.webm").read_bytes())
    with av.open(str(FIELD / "browser.webm")) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    start = data.index(packets[30])
    data[start : start + 12] = bytes(12)
    (tmp_path / "clip.webm").write_bytes(data)
    with pytest.raises(LoomVideoError, match=r"clip.webm cannot be read as a video"):
        survey(tmp_path / "clip.webm")


def test_damage_after_what_is_read_is_no_matter(tmp_path):
    clip = make_clip(tmp_path / "clip.avi", num_frames=48, codec="mjpeg", pix_fmt="yuvj420p", layout=None)
    with av.open(str(clip)) as container:
        last = [bytes(packet) for packet in container.demux(video=0) if packet.size][-1]
    data = clip.read_bytes()
    clip.write_bytes(data[: data.rindex(last) + 4])
    assert len(survey(clip, num_frames=3).times) == 3
    with pytest.raises(LoomVideoError, match=r"clip\.avi is truncated"):
        survey(clip)


@pytest.mark.parametrize(("suffix", "codec"), [(".h264", "libx264"), (".hevc", "libx265")])
def test_streams_without_times(suffix, codec, tmp_path):
    """Each frame is shown for as long as the stream says that all are."""
    footage = survey(make_clip(tmp_path / f"clip{suffix}", num_frames=12, codec=codec, rate=50, layout=None))
    assert [time * footage.time_base for time in footage.times] == [Fraction(index, 50) for index in range(12)]
    assert footage.rate == 50


@pytest.mark.parametrize(("layout", "channels"), [("mono", 1), ("stereo", 2), ("5.1", 6)])
def test_channels_of_encoded_sound(layout, channels, tmp_path):
    clip = make_clip(tmp_path / "clip.mkv", num_frames=24, sound_codec="ac3", layout=layout)
    rewrite(clip, tmp_path / "out.mp4", "encode")
    with av.open(str(tmp_path / "out.mp4")) as container:
        context = container.streams.audio[0].codec_context
        assert (context.name, context.sample_rate, context.layout.nb_channels) == ("aac", 48000, channels)


def test_frames_lost_at_the_end_are_noticed(tmp_path):
    """Some versions of decoders with a thread for each frame do not say that they failed to decode the last one."""
    clip = make_clip(tmp_path / "clip.mp4", num_frames=24, codec="libx265", layout=None)
    with av.open(str(clip)) as container:
        last = [bytes(packet) for packet in container.demux(video=0) if packet.size][-1]
    data = clip.read_bytes()
    place = data.rindex(last)
    clip.write_bytes(data[: place + 8] + bytes(len(last) - 8) + data[place + len(last) :])
    with pytest.raises(LoomVideoError, match=r"clip\.mp4 (is damaged at its end|cannot be read as a video)"):
        survey(clip)


def test_a_few_frames_cut_off_are_noticed(tmp_path):
    clip = make_clip(tmp_path / "clip.mkv", num_frames=48, codec="ffv1", layout=None)
    with av.open(str(clip)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    clip.write_bytes(clip.read_bytes()[: clip.read_bytes().rindex(packets[-5])])
    with pytest.raises(LoomVideoError, match=r"clip\.mkv is truncated"):
        survey(clip)


@pytest.mark.parametrize(
    ("rate", "declared", "expected"),
    [
        (25, Fraction(24), 25),
        (25, Fraction(251, 10), Fraction(251, 10)),
        (30000 / 1001, Fraction(30000, 1001), Fraction(30000, 1001)),
        (25, None, 25),
    ],
)
def test_the_declared_rate_counts_where_it_is_right(rate, declared, expected):
    """To within a percent, by times that are rounded to milliseconds."""
    assert measure_rate([round(index / rate, 3) for index in range(60)], declared) == (expected, True)


def test_pixels_are_converted():
    deep = np.array([[[65535, 25956, 0]]], np.uint16)  # 25956 / 257 = 100.996
    assert convert_pixels(deep, "rgb24").tolist() == [[[255, 100, 0]]]
    clear = np.array([[[200, 0, 0, 127], [9, 9, 9, 0], [9, 9, 9, 255]]], np.uint8)
    assert convert_pixels(clear, "rgb24").tolist() == [[[228, 128, 128], [255, 255, 255], [9, 9, 9]]]
    assert convert_pixels(clear, "rgba") is clear


def test_a_cover_is_not_the_video():
    footage = survey(FIELD / "cover_first.mp4")
    assert len(footage.times) == 144
    assert probe_video(FIELD / "cover_first.mp4") == (128, 96, 121)
    with pytest.raises(LoomVideoError, match=r"only_cover.m4a has no video but a cover picture"):
        survey(FIELD / "only_cover.m4a")


def test_packets_of_equal_times_are_no_damage(tmp_path):
    """Matroska counts in milliseconds, in which there is room for several packets."""
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        video = container.add_stream("libx264", rate=24)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=48000, layout="mono")
        for index in range(24):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 9 * index, np.uint8))))
        container.mux(video.encode())
        for index in range(3000):
            frame = av.AudioFrame.from_ndarray(np.full((1, 16), index, np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 16 * index, Fraction(1, 48000)
            container.mux(sound.encode(frame))
    for suffix in (".mov", ".mkv"):
        assert rewrite(tmp_path / "clip.mkv", tmp_path / f"out{suffix}") == []
        with av.open(str(tmp_path / f"out{suffix}")) as container:
            heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        assert np.array_equal(heard, np.repeat(np.arange(3000), 16))


def test_recordings_with_losses(tmp_path):
    """What is missing of a recording is said, and the rest is used, at its times."""
    whole = make_clip(tmp_path / "whole.ts", num_frames=120, options={"g": "12"})
    data = whole.read_bytes()
    third = len(data) // 188 // 3 * 188
    (tmp_path / "gap.ts").write_bytes(data[:third] + data[third + 30 * 188 :])
    footage = survey(tmp_path / "gap.ts")
    assert 60 < len(footage.times) < 120
    assert float(footage.times[-1] * footage.time_base) == pytest.approx(119 / 24, abs=0.03)
    assert [note for note in footage.notes if "is missing at" in note]
    assert len(read_video(tmp_path / "gap.ts")) >= 109


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(orientation, tmp_path):
    """Clips and photos come in as a player shows them, whatever their matrix or EXIF, by every way."""
    clip = make_oriented_clip(tmp_path / "clip.mp4", orientation)
    expected = upright_picture().astype(int)
    height, width = expected.shape[:2]
    assert probe_video(clip)[:2] == (width, height)
    assert np.abs(read_video(clip)[0] - expected).mean() < 3
    footage = survey(clip)
    assert (footage.width, footage.height) == (width, height)
    assert np.abs(next(read_model_frames(footage)) - expected).mean() < 3
    rewrite(clip, tmp_path / "out.mov")
    assert np.abs(read_video(tmp_path / "out.mov")[0] - expected).mean() < 4
    photo = make_oriented_photo(tmp_path / "photo.png", orientation)
    assert probe_image(photo) == (width, height)
    assert np.array_equal(np.asarray(read_image(photo)), expected)
    for target, is_video in ((clip, True), (photo, False)):
        record = Record("", "a", str(target), None, [str(photo)], is_video, width, height, 1, "")
        sample = read_clip(record, "nothing")
        assert np.abs(sample.target[0].numpy() - expected).mean() < 3
        assert np.array_equal(sample.references[0].numpy(), expected)


def test_a_mirrored_clip():
    frame = read_video(FIELD / "mirrored.mp4")[0].astype(int)
    with av.open(str(FIELD / "mirrored.mp4")) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    assert np.abs(stored - stored[:, ::-1]).mean() > 5
    assert np.array_equal(frame, stored[:, ::-1])


def test_interlaced_clips_are_deinterlaced(tmp_path):
    def combs(pixels):
        """How much lines differ from both of their neighbours, compared to how these differ."""
        rows = pixels.astype(int)
        return np.abs(2 * rows[1:-1] - rows[:-2] - rows[2:]).mean() / (np.abs(rows[:-2] - rows[2:]).mean() + 1)

    footage = survey(FIELD / "interlaced.mp4")
    (note,) = footage.notes
    assert f"{FIELD / 'interlaced.mp4'} is interlaced" in note
    assert len(footage.times) == 25
    with av.open(str(FIELD / "interlaced.mp4")) as container:
        stored = [(frame.to_ndarray(format="rgb24"), frame.pts) for frame in container.decode(video=0)]
    frames = list(read_frames(footage))
    assert list(footage.times) == [time for _, time in stored]
    assert combs(frames[12]) < 0.75 * combs(stored[12][0])
    assert np.array_equal(read_video(FIELD / "interlaced.mp4")[0], frames[0])


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_keeps_its_depth_and_its_tags(transfer, name, suffix, edit, tmp_path):
    clip, output = tmp_path / "clip.mp4", tmp_path / f"out{suffix}"
    colors = (9, 9, transfer, 1)
    make_clip(clip, num_frames=5, codec="libx265", pix_fmt="yuv420p10le", colors=colors, layout=None)
    footage = survey(clip)
    assert (footage.num_bits, footage.pixel_format) == (10, "rgb48le")
    plan_edit(footage, output=output, keep_unchanged=True, **QUICK).run(edit)
    with av.open(str(output)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("hevc", "yuv420p10le")
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == colors
        assert suffix == ".mkv" or context.codec_tag == "hvc1"


def test_deep_colors_survive(tmp_path):
    """A ramp that 8 bits cannot hold comes back finer than they could."""
    ramp = np.linspace(20_000, 24_000, 256).astype(np.uint16)
    with av.open(str(tmp_path / "ramp.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 256, 64, "gbrp10le"
        pixels = np.repeat(np.broadcast_to(ramp, (64, 256))[..., None], 3, axis=2)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb48le")
        container.mux(stream.encode(frame.reformat(format="gbrp10le")))
        container.mux(stream.encode())
    for _ in range(20):  # x265 failed with one of three clips of so few frames.
        rewrite(tmp_path / "ramp.mkv", tmp_path / "out.mov")
    row = next(read_frames(survey(tmp_path / "out.mov")))[32, :, 1].astype(int)
    assert len(np.unique(row)) > 40  # of 16 in 8 bits
    assert np.abs(row - ramp).max() < 300
    rewrite(tmp_path / "ramp.mkv", tmp_path / "%d.png")
    row = next(read_frames(survey(tmp_path / "%d.png")))[32, :, 1].astype(int)
    assert np.abs(row - ramp).max() < 65


@pytest.mark.parametrize(("output", "keeps"), [("out.mov", True), ("%03d.png", True), ("out.mp4", False)])
def test_transparency(output, keeps, edit, tmp_path):
    """It is kept where it can be, and else becomes white, as the model sees it."""
    with av.open(str(tmp_path / "clip.mov"), "w") as container:
        stream = container.add_stream("qtrle", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "argb"
        pixels = np.zeros((48, 64, 4), np.uint8)
        pixels[:, :32] = (255, 0, 0, 255)
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba").reformat(format="argb")))
        container.mux(stream.encode())
    footage = survey(tmp_path / "clip.mov")
    assert footage.pixel_format == "rgba"
    seen = next(read_model_frames(footage))
    assert (seen[0, 0].tolist(), seen[0, -1].tolist()) == ([255, 0, 0], [255, 255, 255])
    plan_edit(footage, output=tmp_path / output, **QUICK).run(edit)
    result = survey(tmp_path / output)
    frame = next(read_frames(result)).astype(float)
    assert ("a" in result.pixel_format) == keeps
    if keeps:
        most = frame.max()
        assert np.abs(frame[:, :28, 3] / most - 1).max() < 0.02
        assert np.abs(frame[:, 36:, 3] / most).max() < 0.02
    else:
        assert any("transparency" in note for note in plan_output(footage, tmp_path / output).notes)


def test_image_sequences(model_folder, tmp_path, capsys):
    """They come in and go out as clips do, at the rate that was said, by any first number and without gaps."""
    rng = np.random.default_rng(0)
    for number in range(1001, 1010):
        PIL.Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(tmp_path / f"f_{number:04d}.png")
    options = [
        "--model",
        str(model_folder),
        "--height",
        "32",
        "--width",
        "64",
        "--steps",
        "1",
        "--guidance-scale",
        "1",
    ]
    options += ["--guidance-scale-visual", "1"]
    source, output = str(tmp_path / "f_%04d.png"), tmp_path / "out" / "g_%03d.png"
    assert cli.main(["edit", source, "blue", "-o", str(output), "--rate", "12", *options]) == 0
    assert sorted(os.listdir(tmp_path / "out")) == [f"g_{number:03d}.png" for number in range(1, 10)]
    footage = survey(source, rate=12)
    assert (footage.rate, len(footage.times), footage.num_model_frames) == (12, 9, 21)
    assert cli.main(["edit", source, "blue", "-o", str(tmp_path / "out.mp4"), "--rate", "12", *options]) == 0
    assert survey(tmp_path / "out.mp4").rate == 12
    capsys.readouterr()
    (tmp_path / "f_1005.png").unlink()
    assert cli.main(["edit", source, "blue", "-o", str(tmp_path / "out.mp4"), *options]) == 2
    assert "f_1005.png" in capsys.readouterr().err
    assert cli.main(["edit", str(tmp_path / "h_%d.png"), "blue", "-o", str(tmp_path / "out.mp4"), *options]) == 2
    assert "h_1.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("%d.png", ["8.png", "9.png", "10.png"]),
        ("100%_%04d.png", ["100%_0000.png", "100%_0001.png", "100%_0002.png"]),
        ("%03dof%d.png", ["998of%d.png", "999of%d.png", "1000of%d.png"]),
        ("50% of it/f%02d.png", ["50% of it/f07.png", "50% of it/f08.png", "50% of it/f09.png"]),
    ],
)
def test_names_of_image_sequences(pattern, names, tmp_path):
    for index, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).with_name(f"00000{index}.png").touch()  # Leading zeros make another name.
        PIL.Image.new("RGB", (64, 48), (100 * index, 0, 0)).save(tmp_path / name)
    assert sequence_files(tmp_path / pattern) == [tmp_path / name for name in names]
    frames = list(read_frames(survey(tmp_path / pattern)))
    assert [frame[0, 0, 0] for frame in frames] == [0, 100, 200]


def test_gifs_last_as_long(tmp_path):
    """Browsers show for a tenth of a second what is to last less than a fiftieth."""
    colors = [PIL.Image.new("RGB", (8, 8), (4 * index, 0, 0)) for index in range(60)]
    for rate in (10, 24, 50, 60, 120):
        write_gif(str(tmp_path / "out.gif"), colors, [index / rate for index in range(61)])
        with PIL.Image.open(tmp_path / "out.gif") as image:
            delays = []
            for index in range(image.n_frames):
                image.seek(index)
                delays.append(image.info["duration"])
        assert min(delays) >= 20
        assert sum(delays) == pytest.approx(60_000 / rate, abs=10)


def test_same_bytes_on_any_number_of_processors(tmp_path):
    """Of mp4 by itself, and of an edited clip in each depth."""
    clips = {"plain": {}, "deep": {"pix_fmt": "yuv420p10le", "codec": "libx265"}}
    for name, options in clips.items():
        make_clip(tmp_path / f"{name}.mp4", num_frames=24, size=(128, 96), **options)
    code = (
        "import os, sys; os.sched_setaffinity(0, {0} if sys.argv[2] == 'one' else set(range(os.cpu_count())));"
        "sys.path.insert(0, sys.argv[1]); from clips import rewrite;"
        "[rewrite(f'{name}.mp4', f'{name}-{sys.argv[2]}{suffix}') for name in ('plain', 'deep')"
        " for suffix in ('.mp4', '.mkv')]; assert 'torch' not in sys.modules"
    )
    for processors in ("one", "all"):
        command = [sys.executable, "-c", code, os.path.dirname(__file__), processors]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    for name in clips:
        for suffix in (".mp4", ".mkv"):
            one, all_of_them = (tmp_path / f"{name}-{number}{suffix}" for number in ("one", "all"))
            assert one.read_bytes() == all_of_them.read_bytes()
    frames = np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), np.uint8)
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, frames)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_what_was_denoised_is_found_under_another_suffix(edit, tmp_path, monkeypatch):
    footage = survey(make_clip(tmp_path / "source.mp4", num_frames=9))
    monkeypatch.setattr("loomvideo_diffusers.footage.run._results", lambda *_: iter([1 / 0]))
    with pytest.raises(ZeroDivisionError):
        plan_edit(footage, output=tmp_path / "out.mov", **QUICK).run(edit)
    monkeypatch.undo()
    num_calls = []
    edit.transformer.register_forward_hook(lambda *_: num_calls.append(1))
    plan_edit(footage, output=tmp_path / "out.mkv", **QUICK).run(edit)
    assert not num_calls
    assert sorted(os.listdir(tmp_path)) == ["out.mkv", "source.mp4"]


def test_the_output_is_checked_before_the_work(tmp_path):
    footage = survey(make_clip(tmp_path / "source.mp4", num_frames=9))
    (tmp_path / "file").write_bytes(b"")
    for output, reason in (
        (tmp_path / "out.avi", "must end in"),
        (tmp_path / "file" / "out.mp4", "cannot be written"),
        (tmp_path, "must end in"),
        (tmp_path / "out_%04d.mp4", "must end in"),
    ):
        with pytest.raises(LoomVideoError, match=reason):
            plan_edit(footage, output=output, **QUICK)
    with pytest.raises(LoomVideoError, match="copy, encode, none"):
        plan_edit(footage, output=tmp_path / "out.mp4", audio="mute", **QUICK)
    assert plan_output(replace(footage, sound_tracks=()), tmp_path / "out.gif").notes == ()


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.gif", "%d.png"])
def test_errors_of_writing_are_not_those_of_reading(name, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", num_frames=24, size=(128, 96))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        with pytest.raises(OSError, match=r"could not be written \(File too large\): make room"):
            rewrite(clip, tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["clip.mp4"]
