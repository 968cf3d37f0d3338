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
"""Video and image files, real ones, written and read."""

import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import FIXTURES

from loomvideo_diffusers import media
from loomvideo_diffusers.errors import LoomVideoError
from loomvideo_diffusers.media import (
    check_output_path,
    contact_sheet,
    probe_video,
    read_image,
    read_video,
    sample_frame_indices,
    write_gif,
    write_image,
    write_video,
)
from loomvideo_diffusers.pipelines import loomvideo_frames


def gray_frames(values, height: int = 48, width: int = 64) -> np.ndarray:
    return np.stack([np.full((height, width, 3), value, np.uint8) for value in values])


def write_with_times(
    path: Path, frames: np.ndarray, times: list[int], pix_fmt: str = "yuv420p", codec: str = "libx264"
):
    """Writes frames that are shown at these milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], pix_fmt
        stream.codec_context.time_base = Fraction(1, 1000)
        for pixels, time in zip(frames, times):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize("fps", [8, 12, 23.976, 24, 25, 29.97, 30, 50, 60, 120])
def test_constant_frame_rates(fps, tmp_path):
    values = [(7 * index) % 256 for index in range(int(2 * fps))]
    write_video(tmp_path / "clip.mp4", gray_frames(values), fps=fps)
    frames = read_video(tmp_path / "clip.mp4")
    expected = [values[index] for index in sample_frame_indices(len(values), fps)]
    assert frames.shape == (len(expected), 48, 64, 3)
    assert np.abs(frames[:, 24, 32, 0].astype(int) - expected).max() <= 2


def test_only_the_beginning_of_a_long_video_is_read(tmp_path, caplog):
    values = [index % 256 for index in range(400)]
    write_video(tmp_path / "clip.mp4", gray_frames(values), fps=30)
    frames = read_video(tmp_path / "clip.mp4")
    assert len(frames) == 121
    expected = [values[index] for index in sample_frame_indices(400, 30)]
    assert np.abs(frames[:, 24, 32, 0].astype(int) - expected).max() <= 2
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'clip.mp4'} is longer than 5.0 seconds: using only its beginning."
    ]

    caplog.clear()
    assert np.array_equal(read_video(tmp_path / "clip.mp4", max_frames=9), frames[:9])
    assert not caplog.records
    write_video(tmp_path / "clip.mp4", gray_frames(values[:121]), fps=24)
    assert len(read_video(tmp_path / "clip.mp4")) == 121
    assert not caplog.records


def test_variable_frame_rate(tmp_path):
    """Half a second at 60 frames a second, then a second at 10: each moment shows the frame that is nearest to it."""
    times = [round(1000 * index / 60) for index in range(30)] + [500 + 100 * index for index in range(11)]
    values = [time // 7 for time in times]
    write_with_times(tmp_path / "clip.mp4", gray_frames(values), times)
    frames = read_video(tmp_path / "clip.mp4")[:, 24, 32, 0].astype(int)
    assert len(frames) == 37
    moments = [1000 * index / 24 for index in range(37)]
    expected = [values[int(np.abs(np.array(times) - moment).argmin())] for moment in moments]
    assert np.abs(frames - expected).max() <= 2


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix"),
    [
        ("libx264", "yuv444p", ".mp4"),
        ("libx264", "yuv420p10le", ".mp4"),
        ("libx264rgb", "rgb24", ".mkv"),
        ("libvpx-vp9", "yuva420p", ".webm"),
        ("ffv1", "gray16le", ".mkv"),
        ("mjpeg", "yuvj422p", ".avi"),
        ("gif", "rgb8", ".gif"),
    ],
)
def test_pixel_formats(codec, pix_fmt, suffix, tmp_path):
    values = [10, 60, 110, 160, 210]
    write_with_times(
        tmp_path / f"clip{suffix}", gray_frames(values), [40 * index for index in range(5)], pix_fmt, codec
    )
    frames = read_video(tmp_path / f"clip{suffix}")
    assert frames.dtype == np.uint8
    assert len(frames) in (1, 5)
    assert np.abs(frames[0, 24, 32].astype(int) - values[0]).max() <= (30 if codec == "gif" else 3)


@pytest.mark.parametrize(
    ("matrix", "turns"),
    [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)],
    ids=["clockwise", "upside down", "counterclockwise"],
)
def test_rotation(matrix, turns, tmp_path):
    corner = np.zeros((5, 48, 64, 3), np.uint8)
    corner[:, :16, :16] = 255
    path = tmp_path / "clip.mp4"
    write_video(path, corner)
    # The display matrix is in the track's header, 44 bytes after its name.
    content = bytearray(path.read_bytes())
    a, b, c, d = (65536 * value for value in matrix)
    struct.pack_into(">9i", content, content.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    expected = np.rot90(corner, turns, axes=(1, 2))
    frames = read_video(path)
    assert frames.shape == expected.shape
    assert np.abs(frames.astype(int) - expected).mean() < 3


def test_a_last_frame_that_lasts(tmp_path):
    """The declared length of this file is far behind its last frame, and yet nothing is missing."""
    times = [0, 40, 80, 500, 540, 3000]
    write_with_times(tmp_path / "clip.mkv", gray_frames([10, 20, 30, 40, 50, 60]), times, codec="ffv1")
    frames = read_video(tmp_path / "clip.mkv")[:, 24, 32, 0].tolist()
    moments = [1000 * index / 24 for index in range(len(frames))]
    expected = [10 * (1 + int(np.abs(np.array(times) - moment).argmin())) for moment in moments]
    assert np.abs(np.array(frames) - expected).max() <= 2


@pytest.mark.parametrize(("last", "num_frames"), [(970, 21), (985, 25)])
def test_a_last_frame_is_shown_for_half_of_its_time(last, num_frames, tmp_path):
    """At 25 frames a second it counts for 20 milliseconds, which is short of frame 24 of the result, or beyond it."""
    times = [0, 40, 80, 500, 540, last]
    write_with_times(tmp_path / "clip.mkv", gray_frames(range(6)), times, codec="ffv1")
    assert len(read_video(tmp_path / "clip.mkv")) == num_frames
    assert probe_video(tmp_path / "clip.mkv") == (64, 48, num_frames)


def test_written_colors_are_read_back(tmp_path):
    for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40)):
        write_video(tmp_path / "clip.mp4", np.broadcast_to(np.uint8(color), (5, 32, 32, 3)))
        assert np.abs(read_video(tmp_path / "clip.mp4")[:, 16, 16].astype(int) - color).max() <= 2
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, float(stream.average_rate)) == ("h264", "yuv420p", 24.0)
        assert (stream.frames, stream.codec_context.colorspace) == (5, 1)


def test_the_same_frames_give_the_same_file(tmp_path):
    """Whatever was in the memory that the encoder gets. Rows of 6 blocks are none that its vectors hold."""
    rng = np.random.default_rng(0)
    squares = rng.integers(0, 256, (12, 12, 3)).repeat(8, 0).repeat(8, 1)
    moving = np.stack([np.roll(squares, shift, 1) for shift in range(27)]) + rng.integers(-9, 9, (27, 96, 96, 3))
    frames, files = moving.clip(0, 255).astype(np.uint8), set()
    for index in range(6):
        write_video(tmp_path / f"{index}.mp4", frames)
        files.add((tmp_path / f"{index}.mp4").read_bytes())
    assert len(files) == 1


def test_kinds_of_frames(tmp_path):
    frames = read_video(FIXTURES / "cat.mp4")
    assert frames.shape == (33, 160, 256, 3)
    kinds = [
        frames,
        frames.astype(np.float32) / 255,
        torch.from_numpy(frames).permute(0, 3, 1, 2) / 255,
        [PIL.Image.fromarray(frame) for frame in frames],
    ]
    for index, kind in enumerate(kinds):
        write_video(tmp_path / f"{index}.mp4", kind)
        assert (tmp_path / f"{index}.mp4").read_bytes() == (tmp_path / "0.mp4").read_bytes()
    assert np.abs(read_video(tmp_path / "0.mp4").astype(int) - frames).mean() < 3


def test_arrays_that_could_be_read_in_two_ways(tmp_path):
    """Three rows and three channels: NumPy arrays have channels last, tensors first."""
    pixels = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    for picture, expected in ((pixels, pixels), (torch.from_numpy(pixels), pixels.transpose(1, 2, 0))):
        write_image(tmp_path / "image.png", picture)
        assert np.array_equal(np.asarray(read_image(tmp_path / "image.png")), expected)


@pytest.mark.parametrize(
    ("frames", "error", "reason"),
    [
        (np.full((2, 4, 4, 3), 1.5), LoomVideoError, "outside of"),
        (np.full((2, 4, 4, 3), -0.1), LoomVideoError, "outside of"),
        (np.full((2, 4, 4, 3), np.nan), LoomVideoError, "outside of"),
        (np.zeros((4, 4, 3), np.uint8), LoomVideoError, r"shape \(4, 3\)"),
        (np.zeros((2, 4, 4, 4), np.uint8), LoomVideoError, r"shape \(4, 4, 4\)"),
        (np.zeros((2, 0, 4, 3), np.uint8), LoomVideoError, r"shape \(0, 4, 3\)"),
        ([PIL.Image.new("RGB", (4, 4)), PIL.Image.new("RGB", (6, 4))], LoomVideoError, r"\(4, 4\) and \(6, 4\)"),
        (np.zeros((2, 4, 4, 3), np.int32), TypeError, "int32"),
        (["a.png"], TypeError, "str"),
    ],
)
def test_frames_that_are_refused(frames, error, reason, tmp_path):
    with pytest.raises(error, match=reason):
        write_video(tmp_path / "clip.mp4", frames)
    assert not list(tmp_path.iterdir())


def test_the_last_image_of_a_gif_may_be_short(tmp_path):
    images = [PIL.Image.new("RGB", (8, 8), (level, 0, 0)) for level in (10, 200)]
    write_gif(str(tmp_path / "clip.gif"), images, [0, 0.1, 0.12])
    with PIL.Image.open(tmp_path / "clip.gif") as gif:
        assert (gif.n_frames, gif.info["duration"]) == (2, 100)
        gif.seek(1)
        assert gif.info["duration"] == 20


def test_gif(tmp_path):
    frames = read_video(FIXTURES / "cat.mp4")
    write_video(tmp_path / "new" / "clip.gif", frames)
    with PIL.Image.open(tmp_path / "new" / "clip.gif") as gif:
        assert (gif.n_frames, gif.size, gif.info["loop"]) == (33, (256, 160), 0)
        durations = []
        for index in range(gif.n_frames):
            gif.seek(index)
            durations.append(gif.info["duration"])
    assert set(durations) == {40, 50}
    assert sum(durations) == pytest.approx(1000 * 33 / 24, abs=10)


def test_images(tmp_path):
    image = read_image(FIXTURES / "coffee.jpg")
    assert (image.mode, image.size) == ("RGB", (300, 200))
    for suffix, tolerance in ((".png", 0), (".webp", 8), (".jpg", 8)):
        write_image(tmp_path / f"image{suffix}", image)
        read = np.asarray(read_image(tmp_path / f"image{suffix}")).astype(int)
        assert np.abs(read - np.asarray(image)).mean() <= tolerance
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (200, 300)
    PIL.Image.fromarray(np.full((5, 5), 30000, np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png").getpixel((0, 0)) == (117, 117, 117)
    PIL.Image.new("RGBA", (5, 5), (10, 20, 30, 0)).save(tmp_path / "alpha.png")
    assert read_image(tmp_path / "alpha.png").getpixel((0, 0)) == (255, 255, 255)


def test_contact_sheet():
    source, result = gray_frames(range(0, 250, 10), 40, 60), gray_frames(range(5, 255, 10), 40, 60)
    sheet = np.asarray(contact_sheet([source, result], columns=5, height=80))
    assert sheet.shape == (160, 600, 3)
    assert sheet[40, 60::120, 0].tolist() == [0, 60, 120, 180, 240]
    assert sheet[120, 60::120, 0].tolist() == [5, 65, 125, 185, 245]
    assert contact_sheet([source[:1], result[:1]]).size == (192, 256)


def test_labels_of_a_contact_sheet():
    """They stand above their rows, which stay as they are."""
    rows = [np.full((3, 64, 96, 3), value, np.uint8) for value in (120, 200)]
    plain = np.asarray(contact_sheet(rows, height=64))
    labelled = np.asarray(contact_sheet(rows, height=64, labels=["source", "result"]))
    above, first, between, second = np.split(labelled, (20, 84, 104))
    assert np.array_equal(np.concatenate([first, second]), plain)
    assert above.min() < 100
    assert between.min() < 100
    assert not np.array_equal(above, between)


def test_unreadable_files(tmp_path):
    video = (FIXTURES / "cat.mp4").read_bytes()
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video at all")
    write_with_times(tmp_path / "whole.mp4", gray_frames(range(50)), [40 * index for index in range(50)])
    whole = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "no-index.mp4").write_bytes(whole[: whole.index(b"moov")])
    (tmp_path / "cut.mp4").write_bytes(video[: len(video) // 2])
    times = [round(1000 * index / 30) for index in range(50)]
    write_with_times(tmp_path / "long.mkv", gray_frames(range(50)), times, codec="ffv1")
    assert len(read_video(tmp_path / "long.mkv")) == 37
    long = (tmp_path / "long.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(long[: len(long) // 2])
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    write_with_times(tmp_path / "none.avi", np.zeros((0, 48, 64, 3), np.uint8), [], codec="mjpeg", pix_fmt="yuvj420p")
    for name, reason in {
        "missing.mp4": "No such file",
        "empty.mp4": "Invalid data",
        "text.mp4": "Invalid data",
        "no-index.mp4": "Invalid data",
        "cut.mp4": "truncated|Invalid data",
        "cut.mkv": "truncated",
        "sound.wav": "has no video",
        "none.avi": "has no frames|cannot be read",
        ".": "Is a directory|Invalid|cannot be read",
    }.items():
        with pytest.raises(LoomVideoError, match=reason) as error:
            read_video(tmp_path / name)
        assert str(tmp_path) in str(error.value)
        assert "\n" not in str(error.value)
    (tmp_path / "cut.jpg").write_bytes((FIXTURES / "coffee.jpg").read_bytes()[:5000])
    for name in ("missing.jpg", "text.mp4", "cut.jpg"):
        with pytest.raises(LoomVideoError, match="cannot be read as an image"):
            read_image(tmp_path / name)


def test_unwritable_files(tmp_path):
    frames = gray_frames([0, 50])
    (tmp_path / "file").write_text("")
    for path, reason in {
        tmp_path / "clip.avi": "must end in .mp4 or .gif",
        tmp_path / "file" / "clip.mp4": "is not a folder",
        Path("/proc/clip.mp4"): "cannot be written",
        Path("/proc/new/clip.mp4"): "cannot be written",
    }.items():
        with pytest.raises(LoomVideoError, match=reason):
            write_video(path, frames)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(LoomVideoError, match="is a folder"):
        check_output_path(tmp_path / "folder.png", (".png",))
    with pytest.raises(LoomVideoError, match="even sides"):
        write_video(tmp_path / "odd.mp4", frames[:, :47])
    with pytest.raises(LoomVideoError, match="has no frames"):
        write_video(tmp_path / "none.mp4", [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    write_video(tmp_path / "clip.mp4", gray_frames([10] * 5))
    before = (tmp_path / "clip.mp4").read_bytes()

    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(av.VideoFrame, "from_image", fail)
    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "clip.mp4", gray_frames([200] * 5))
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    assert (tmp_path / "clip.mp4").read_bytes() == before


def test_logging_does_not_lock_up():
    """Older versions of torchvision turn on PyAV's logging, with which decoders lock up when they are closed early."""
    program = (
        "import av.logging; av.logging.set_level(av.logging.ERROR)\n"
        "from loomvideo_diffusers.media import probe_video\n"
        f"[probe_video({str(FIXTURES / 'cat.mp4')!r}) for _ in range(50)]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_nothing_of_a_model_is_imported(tmp_path):
    """Files are probed, read, written and refused without PyTorch, which takes seconds to import."""
    program = (
        "import sys; from loomvideo_diffusers import media\n"
        "[getattr(media, name) for name in media.__all__]\n"
        f"media.write_video({str(tmp_path / 'clip.mp4')!r}, media.read_video({str(FIXTURES / 'cat.mp4')!r}))\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'diffusers', 'transformers')],"
        " [name for name in sys.modules if name.startswith('loomvideo_diffusers.') and '.media' not in name])"
    )
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    imported, others = result.stdout.strip().split("] [")
    assert imported == "["
    assert sorted(others.rstrip("]").replace("'", "").split(", ")) == [
        "loomvideo_diffusers.errors",
        "loomvideo_diffusers.progress",
    ]


def test_the_old_module_is_deprecated():
    import loomvideo_diffusers.video

    with pytest.warns(FutureWarning, match=r"`read_video` from `loomvideo_diffusers\.media`"):
        assert loomvideo_diffusers.video.read_video is read_video
    with pytest.raises(AttributeError, match="no attribute 'read_videos'"):
        loomvideo_diffusers.video.read_videos  # noqa: B018


def test_the_room_reads_as_much_as_the_model_edits():
    assert (media.MAX_FRAMES, media.FRAMES_PER_SECOND) == (loomvideo_frames.MAX_SOURCE_FRAMES, 24)
