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
"""Writing frames at a constant rate as an mp4 or a gif, and the settings of encoders."""

import os
import platform
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import PIL.Image
from av.video.reformatter import Colorspace, VideoReformatter

from ..errors import LoomVideoError
from ..progress import progress_bar
from .decoding import silence_av
from .files import check_output_path, write_whole
from .pixels import Frames, to_images


VIDEO_SUFFIXES = (".mp4", ".gif")

# What an encoder writes depends on how many threads it has, so all machines use as many. It depends on slices too, so
# each thread has frames of its own.
NUM_THREADS = 4
# With AVX-512, x264 takes into account what lies beside a row of blocks, so that no two files are the same.
ENCODER_OPTIONS = {
    "libx264": {"crf": "17", "sliced-threads": "0"}
    | ({"x264-params": "asm=MMX2,SSE2,SSSE3,SSE4.2"} if platform.machine() in ("x86_64", "AMD64") else {}),
    "libx265": {"crf": "17", "x265-params": "log-level=none:frame-threads=2"},
    "prores_ks": {"profile": "4444"},
    "ffv1": {"level": "3", "slices": "4", "slicecrc": "1", "g": "1"},
}

# BT.709, and luma from 16 to 235, in the numbers of H.273
BT709 = 1
LIMITED_RANGE = 1

# In hundredths of a second
SHORTEST_GIF_DELAY = 2


def write_video(
    path: str | os.PathLike, frames: Frames, fps: float = 24, show_progress: bool = False, comment: str = ""
) -> None:
    """
    Writes an H.264 mp4 or a gif. The file appears when all of it is written.

    Args:
        path: ends in `.mp4` or `.gif`; folders are made if needed.
        frames: a list of PIL images, or an array or tensor `[F, H, W, 3]` or `[F, 3, H, W]` of uint8, or of floats in
            [0, 1]. For mp4, height and width must be even.
        fps: frames a second.
        show_progress: whether to show a progress bar.
        comment: text to store in the file, which `read_comment` returns.

    Raises:
        LoomVideoError: if the frames or the file's ending are wrong, or there can be no file at `path`.
        DiskFullError: if there is no room for the file.
    """
    check_output_path(path, VIDEO_SUFFIXES)
    images = to_images(frames)
    if Path(path).suffix.lower() == ".gif":
        times = [index / fps for index in range(len(images) + 1)]
        write_whole(path, lambda file: write_gif(file, images, times, comment))
        return
    width, height = images[0].size
    if width % 2 or height % 2:
        raise LoomVideoError(
            f"An mp4 needs even sides, but the frames are {width} x {height}: crop them or write a gif."
        )
    write_whole(path, lambda file: _write_mp4(file, images, fps, show_progress, comment))


def write_gif(file: str, images: Sequence[PIL.Image.Image], times: Sequence[float], comment: str = "") -> None:
    """
    Writes a gif that is repeated endlessly.

    A gif counts time in hundredths of a second, and browsers show an image for a tenth of a second if it has fewer
    than two of them. Images that would are left out, so that the whole lasts as long as it should.

    Args:
        file: where to.
        images: one or more, of one size.
        times: when each image is first shown, in ascending seconds, and at last when the last image ends.
        comment: text to store in the file.
    """
    ticks = [round(100 * time) for time in times]
    kept = [0]
    for index in range(1, len(images)):
        if ticks[index] - ticks[kept[-1]] >= SHORTEST_GIF_DELAY and ticks[-1] - ticks[index] >= SHORTEST_GIF_DELAY:
            kept.append(index)
    ends = [*(ticks[index] for index in kept[1:]), max(ticks[-1], ticks[kept[-1]] + SHORTEST_GIF_DELAY)]
    images[0].save(
        file,
        format="GIF",
        save_all=True,
        append_images=[images[index] for index in kept[1:]],
        duration=[10 * (end - ticks[index]) for index, end in zip(kept, ends)],
        loop=0,
        comment=comment.encode(),
    )


def add_video_stream(
    container: av.container.OutputContainer,
    codec: str,
    rate: Fraction,
    size: tuple[int, int],
    pix_fmt: str,
    num_frames: int,
) -> av.VideoStream:
    """
    Adds a stream of frames to a file, encoded to the same bytes each time and on any machine.

    Args:
        container: the open file.
        codec: a key of `ENCODER_OPTIONS`.
        rate: frames a second.
        size: width and height in pixels.
        pix_fmt: pixel format of the stream, as FFmpeg names it.
        num_frames: how many frames will be encoded.
    """
    options = dict(ENCODER_OPTIONS[codec])
    if codec == "libx265" and num_frames < 3:
        # x265 orders frames when it has seen more of them, and otherwise gives them wrong times.
        options["x265-params"] += ":bframes=0"
    stream = container.add_stream(codec, rate=rate.limit_denominator(1001), options=options)
    assert isinstance(stream, av.VideoStream)
    stream.width, stream.height = size
    stream.pix_fmt = pix_fmt
    stream.thread_count = NUM_THREADS
    stream.thread_type = "FRAME"
    return stream


def _write_mp4(file: str, images: list[PIL.Image.Image], fps: float, show_progress: bool, comment: str) -> None:
    silence_av()
    options = {"fflags": "+bitexact", "movflags": "faststart"}
    with av.open(file, "w", format="mp4", options=options) as container:
        container.metadata["comment"] = comment
        stream = add_video_stream(container, "libx264", Fraction(fps), images[0].size, "yuv420p", len(images))
        # Where a file does not say what its colors are, players guess.
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = LIMITED_RANGE
        reformatter = VideoReformatter()
        for image in progress_bar(images, desc="Writing frames", disable=not show_progress):
            frame = av.VideoFrame.from_image(image)
            frame = reformatter.reformat(frame, format="yuv420p", dst_colorspace=Colorspace.ITU709)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
