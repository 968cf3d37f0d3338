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
"""Files: reading footage at LoomVideo's 24 frames a second, and writing videos, images and contact sheets."""

import functools
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from av.video.reformatter import Colorspace, VideoReformatter
from diffusers.utils import logging

from ..errors import LoomVideoError
from ..pipelines import loomvideo_frames
from ..progress import progress_bar
from .decoding import VideoReader, measure_rate, open_video, silence_av
from .files import check_output_path, write_whole
from .images import (  # noqa: F401, for who reads or writes files of all kinds
    IMAGE_SUFFIXES,
    is_animation,
    is_image,
    probe_image,
    read_image,
    read_image_comment,
    write_image,
)
from .orientation import swaps_sides


logger = logging.get_logger(__name__)

FRAMES_PER_SECOND = 24
MAX_FRAMES = loomvideo_frames.MAX_SOURCE_FRAMES

VIDEO_SUFFIXES = (".mp4", ".gif")

# Encoders' threads: as many on all machines, since results depend on it; and each with whole frames, since slices
# change what is written.
NUM_THREADS = 4
ENCODER_OPTIONS = {
    "libx264": {"crf": "17", "sliced-threads": "0"},
    "libx265": {"crf": "17", "x265-params": "log-level=none:frame-threads=2"},
    "prores_ks": {"profile": "4444"},
}

# In hundredths of a second
SHORTEST_GIF_DELAY = 2

# Of what is written above the rows of a contact sheet, in pixels
LABEL_HEIGHT = 20

Frames = loomvideo_frames.Video


def sample_positions(fps: float, target_fps: float = FRAMES_PER_SECOND, max_frames: int = MAX_FRAMES) -> Iterator[int]:
    """Yields the frames that a clip of endless length and `fps` frames a second is sampled at (spec: frames)."""
    end = int(fps * (max_frames - 1) / target_fps) + 1
    position = 0.0
    for _ in range(max_frames):
        if round(position) >= end:
            return
        yield round(position)
        position += fps / target_fps


def sample_frame_indices(
    num_frames: int, fps: float, target_fps: float = FRAMES_PER_SECOND, max_frames: int = MAX_FRAMES
) -> list[int]:
    """
    Which frames of a clip LoomVideo works on (spec: frames).

    Args:
        num_frames: length of the clip, at least 1.
        fps: frames a second of the clip.
        target_fps: frames a second of the result.
        max_frames: the result's greatest length, 4k + 1.

    Returns:
        4k + 1 indices into the clip; an index comes more than once where the clip is slower than the result.
    """
    indices = [index for index in sample_positions(fps, target_fps, max_frames) if index < num_frames]
    return indices[: (len(indices) - 1) // 4 * 4 + 1]


def read_video(path: str | os.PathLike, show_progress: bool = False, max_frames: int | None = None) -> np.ndarray:
    """
    Reads the beginning of a video, by default the first 5 seconds, or all of a shorter one, at 24 frames a second.

    Frames are upright and deinterlaced; of a variable frame rate, each moment's nearest frame is taken; any pixel
    format will do, and what is transparent becomes white. Decoding stops after the last frame that is needed.

    Args:
        path: a file in any format that FFmpeg reads.
        show_progress: whether to show a progress bar.
        max_frames: the result's greatest length, 4k + 1; by default 121, and a warning says if the video is longer.

    Returns:
        `np.ndarray`: uint8 `[F, H, W, 3]`, F = 4k + 1 and at most `max_frames`.

    Raises:
        LoomVideoError: if the file cannot be read, is truncated or has no frames.
    """
    most = MAX_FRAMES if max_frames is None else max_frames
    rate, is_constant, _ = _look_ahead(path, most)
    with open_video(path) as reader:
        sampled = _sample(reader, rate, is_constant, most, warns_of_rest=max_frames is None)
        frames = list(progress_bar(sampled, desc="Reading frames", disable=not show_progress))
    for note in reader.notes:
        _warn_once(note)
    if not frames:
        raise LoomVideoError(f"{path} has no frames: choose another video.")
    return np.stack(frames[: (len(frames) - 1) // 4 * 4 + 1])


def probe_video(path: str | os.PathLike, max_frames: int = MAX_FRAMES) -> tuple[int, int, int]:
    """
    Returns the width, the height and the number of frames that `read_video` is expected to give, of which only the
    first is decoded. Where a file does not say how long it is, the number is `max_frames`.

    Raises:
        LoomVideoError: if the file cannot be read or has no frames.
    """
    rate, is_constant, seconds = _look_ahead(path, max_frames)
    with open_video(path) as reader:
        if next(reader.frames(), None) is None:
            raise LoomVideoError(f"{path} has no frames: choose another video.")
        width, height = reader.size[::-1] if swaps_sides(reader.orientation) else reader.size
        duration = float(Fraction(reader.container.duration or 0, av.time_base))
        length = len(seconds) or reader.stream.frames or round(duration * float(rate))
    if not length:
        return width, height, max_frames
    if not is_constant:
        # The last frame shows itself for half of its time.
        lasts = seconds[-1] - seconds[0] + 0.5 / float(rate)
        length, rate = int(lasts * FRAMES_PER_SECOND) + 1, FRAMES_PER_SECOND
    return width, height, len(sample_frame_indices(length, float(rate), max_frames=max_frames))


def _look_ahead(path: str | os.PathLike, max_frames: int) -> tuple[Fraction, bool, list[float]]:
    """The rate of the beginning of a video, whether it is constant, and the times of its frames as far as known."""
    with open_video(path) as reader:
        seconds = reader.seconds(max_frames / FRAMES_PER_SECOND + 1)
        return *measure_rate(seconds, reader.declared_rate), seconds


@functools.lru_cache
def _warn_once(note: str) -> None:
    """Says what is odd about a video, which may be read many times."""
    logger.warning(note)


def _sample(
    reader: VideoReader, rate: Fraction, is_constant: bool, max_frames: int, warns_of_rest: bool
) -> Iterator[np.ndarray]:
    """Yields the frames that are nearest to the moments of the result."""
    fps = float(rate)
    # With a constant rate, the frame that is nearest to a position is the one with its number.
    moments = (position / fps for position in sample_positions(fps, max_frames=max_frames))
    if not is_constant:
        moments = (index / FRAMES_PER_SECOND for index in range(max_frames))
    moment = next(moments)
    previous, previous_time, first = None, 0.0, None
    for index, (frame, pts) in enumerate(reader.frames()):
        time = float(pts * reader.time_base)
        first = time if first is None else first
        time = index / fps if is_constant else time - first
        pixels = None
        while previous is not None and moment <= (previous_time + time) / 2:
            pixels = reader.to_rgb(previous) if pixels is None else pixels
            yield pixels
            moment = next(moments, None)
            if moment is None:
                if warns_of_rest:
                    logger.warning(f"{reader.path} is longer than {time:.1f} seconds: using only its beginning.")
                return
        previous, previous_time = frame, time
    while previous is not None and moment is not None and moment <= previous_time + 0.5 / fps:
        yield reader.to_rgb(previous)
        moment = next(moments, None)


def write_video(
    path: str | os.PathLike,
    frames: Frames,
    fps: float = FRAMES_PER_SECOND,
    show_progress: bool = False,
    comment: str = "",
) -> None:
    """
    Writes an H.264 mp4 or a gif. The file appears when all of it is written.

    Args:
        path: where to, ending in `.mp4` or `.gif`; the folder is made if needed.
        frames: PIL images, or an array `[F, H, W, 3]` or `[F, 3, H, W]` of uint8 or of floats in [0, 1]. Height and
            width are even for mp4.
        fps: frames a second.
        show_progress: whether to show a progress bar.
        comment: what the file says of itself, which `read_comment` reads.

    Raises:
        LoomVideoError: if the frames or the ending are wrong, or the file cannot be written.
    """
    check_output_path(path, VIDEO_SUFFIXES)
    images = loomvideo_frames.to_frames(frames, "frames")
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


def write_gif(file: str, images: list[PIL.Image.Image], times: list[float], comment: str = "") -> None:
    """
    Writes images as a gif, given the seconds when each is shown and when the last is over.

    A gif counts in hundredths of a second, and browsers show for a tenth what is to last less than two of them: images
    that would are left out, and the whole lasts as long.
    """
    ticks = [round(100 * time) for time in times]
    kept = [0]
    for index in range(1, len(images)):
        if ticks[index] - ticks[kept[-1]] >= SHORTEST_GIF_DELAY and ticks[-1] - ticks[index] >= SHORTEST_GIF_DELAY:
            kept.append(index)
    ends = [*(ticks[index] for index in kept[1:]), max(ticks[-1], ticks[kept[-1]] + SHORTEST_GIF_DELAY)]
    durations = [10 * (end - ticks[index]) for index, end in zip(kept, ends)]
    others = [images[index] for index in kept[1:]]
    options = {"append_images": others, "duration": durations, "loop": 0, "comment": comment.encode()}
    images[0].save(file, format="GIF", save_all=True, **options)


def add_video_stream(
    container: av.container.OutputContainer,
    codec: str,
    rate: Fraction,
    size: tuple[int, int],
    pix_fmt: str,
    num_frames: int,
) -> av.VideoStream:
    """Adds a stream whose packets are the same each time and on any machine; `size` is width and height."""
    options = dict(ENCODER_OPTIONS[codec])
    if codec == "libx265" and num_frames < 3:
        # Of so few, it waits for more before it knows their order, and in the end gives them any times.
        options["x265-params"] += ":bframes=0"
    stream = container.add_stream(codec, rate=rate.limit_denominator(1001), options=options)
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
        context = stream.codec_context
        # BT.709, and luma from 16 to 235, in the numbers of H.273: players guess what is not written down.
        context.color_primaries = context.color_trc = context.colorspace = context.color_range = 1
        reformatter = VideoReformatter()
        for image in progress_bar(images, desc="Writing frames", disable=not show_progress):
            frame = av.VideoFrame.from_image(image)
            frame = reformatter.reformat(frame, format="yuv420p", dst_colorspace=Colorspace.ITU709)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def read_comment(path: str | os.PathLike) -> str:
    """Returns what a video or an image says of itself, which may be nothing, or raises ValueError."""
    if is_image(path) or is_animation(path) or Path(path).suffix.lower() == ".gif":
        return read_image_comment(path)
    with open_video(path) as reader:
        # Matroska writes the names of its tags in capitals.
        return {name.lower(): value for name, value in reader.container.metadata.items()}.get("comment", "")


def contact_sheet(
    rows: list[Frames], columns: int = 6, height: int = 128, labels: list[str] | None = None
) -> PIL.Image.Image:
    """
    Shows videos below each other, each as a row of pictures spread over its length.

    Args:
        rows: videos, as for `write_video`.
        columns: pictures in a row; fewer for a shorter video.
        height: height of a row in pixels.
        labels: what to write above each row.
    """
    strips = []
    for row in rows:
        frames = loomvideo_frames.to_frames(row, "frames")
        chosen = np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)
        width = round(frames[0].width * height / frames[0].height)
        strips.append(PIL.Image.fromarray(np.hstack([frames[index].resize((width, height)) for index in chosen])))
    label_height = 0 if labels is None else LABEL_HEIGHT
    row_height = label_height + height
    sheet = PIL.Image.new("RGB", (max(strip.width for strip in strips), row_height * len(strips)), "white")
    for index, strip in enumerate(strips):
        if labels is not None:
            font = PIL.ImageFont.load_default(LABEL_HEIGHT * 2 / 3)
            place = (LABEL_HEIGHT // 4, index * row_height + LABEL_HEIGHT // 2)
            PIL.ImageDraw.Draw(sheet).text(place, labels[index], fill="black", font=font, anchor="lm")
        sheet.paste(strip, (0, index * row_height + label_height))
    return sheet
