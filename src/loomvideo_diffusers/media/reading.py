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
"""Reading the beginning of a video as an array, at 24 frames a second, and what a file says of itself."""

import functools
import itertools
import logging
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..errors import LoomVideoError
from ..progress import progress_bar
from .decoding import VideoReader, measure_rate, open_video
from .images import is_animation, is_image, read_image_comment


logger = logging.getLogger(__name__)

FRAMES_PER_SECOND = 24

# 5 seconds
MAX_FRAMES = 121


def sample_positions(fps: float, target_fps: float = FRAMES_PER_SECOND, max_frames: int = MAX_FRAMES) -> Iterator[int]:
    """Yields which frames of an endless clip of `fps` frames a second are sampled (architecture: Frames)."""
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
    Which frames of a clip make a clip of another rate, of 4k + 1 frames (architecture: Frames).

    Args:
        num_frames: length of the clip, at least 1.
        fps: frames a second of the clip.
        target_fps: frames a second of the result.
        max_frames: greatest length of the result, 4k + 1.

    Returns:
        4k + 1 ascending indices into the clip. If the clip has fewer frames a second than the result, some are
        repeated.
    """
    positions = sample_positions(fps, target_fps, max_frames)
    indices = list(itertools.takewhile(lambda index: index < num_frames, positions))
    return indices[: (len(indices) - 1) // 4 * 4 + 1]


def read_video(path: str | os.PathLike, show_progress: bool = False, max_frames: int | None = None) -> np.ndarray:
    """
    Reads the first 5 seconds of a video, or all of a shorter one, at 24 frames a second.

    The frames are turned upright and deinterlaced, and what is transparent is laid on white. If the frame rate varies,
    each moment shows the frame that is nearest to it. Decoding stops after the last frame that is needed.

    Args:
        path: a file in any format that FFmpeg reads, or the pattern of an image sequence, such as `frames_%04d.png`.
        show_progress: whether to show a progress bar.
        max_frames: greatest length of the result, 4k + 1; by default 121, with a warning if the video is longer.

    Returns:
        `np.ndarray`: uint8 `[F, H, W, 3]`, F = 4k + 1 and at most `max_frames`.

    Raises:
        LoomVideoError: if the file cannot be read, is truncated or damaged, or has no frames.
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
    Predicts what `read_video` returns, from the first frame and the times of the others, which are not decoded.

    Args:
        path: as for `read_video`.
        max_frames: greatest number of frames, 4k + 1.

    Returns:
        Width and height in pixels, and number of frames: `max_frames` if the file does not say how long it is.

    Raises:
        LoomVideoError: if the file cannot be read or has no frames.
    """
    rate, is_constant, seconds = _look_ahead(path, max_frames)
    with open_video(path) as reader:
        if next(reader.frames(), None) is None:
            raise LoomVideoError(f"{path} has no frames: choose another video.")
        width, height = reader.upright_size
        duration = float(Fraction(reader.container.duration or 0, av.time_base))
        length = len(seconds) or reader.stream.frames or round(duration * float(rate))
    if not length:
        return width, height, max_frames
    if not is_constant:
        # `read_video` takes the last frame for the moments up to half of a frame's time after it.
        duration = seconds[-1] - seconds[0] + 0.5 / float(rate)
        length, rate = int(duration * FRAMES_PER_SECOND) + 1, Fraction(FRAMES_PER_SECOND)
    return width, height, len(sample_frame_indices(length, float(rate), max_frames=max_frames))


def _look_ahead(path: str | os.PathLike, max_frames: int) -> tuple[Fraction, bool, list[float]]:
    """Frames a second at the beginning of a video, whether that rate is constant, and the times in seconds, if any."""
    with open_video(path) as reader:
        seconds = reader.seconds(max_frames / FRAMES_PER_SECOND + 1)
        return *measure_rate(seconds, reader.declared_rate), seconds


@functools.lru_cache
def _warn_once(note: str) -> None:
    """Logs a note on a video, which may be read many times."""
    logger.warning(note)


def _sample(
    reader: VideoReader, rate: Fraction, is_constant: bool, max_frames: int, warns_of_rest: bool
) -> Iterator[np.ndarray]:
    """Yields for each moment of the result the frame, uint8 `[H, W, 3]`, that is nearest to it."""
    fps = float(rate)
    if is_constant:
        # The times may be rounded: it is the number of a frame that says when it is shown.
        moments = (position / fps for position in sample_positions(fps, max_frames=max_frames))
    else:
        moments = (index / FRAMES_PER_SECOND for index in range(max_frames))
    moment = next(moments, None)
    previous, previous_time, first = None, 0.0, None
    for index, (frame, pts) in enumerate(reader.frames()):
        time = float(pts * reader.time_base)
        first = time if first is None else first
        time = index / fps if is_constant else time - first
        pixels = None
        while previous is not None and moment is not None and moment <= (previous_time + time) / 2:
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


def read_comment(path: str | os.PathLike) -> str:
    """
    Returns the comment that a video or an image holds, or "" if it holds none.

    Raises:
        LoomVideoError: if the file cannot be read.
    """
    if is_image(path) or is_animation(path) or Path(path).suffix.lower() == ".gif":
        return read_image_comment(path)
    with open_video(path) as reader:
        # Matroska writes the names of its tags in capitals.
        return {name.lower(): value for name, value in reader.container.metadata.items()}.get("comment", "")
