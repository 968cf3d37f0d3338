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
"""Footage: a clip comes in frame by frame, and goes out with other pixels and its own times, colors and sound."""

import os
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image
from tqdm import tqdm

from .video import FRAMES_PER_SECOND, decode, open_video, to_pixels, write_gif


FOOTAGE_SUFFIXES = (".mp4", ".mov", ".mkv", ".gif")
CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}

# What a clip says of its colors, in the numbers of H.273: BT.709, and "not said"
BT709 = 1
UNSPECIFIED = 2
FULL_RANGE = 2


@dataclass(frozen=True)
class Footage:
    """
    What a clip is, besides its pixels.

    Attributes:
        path: the file.
        width, height: of an upright frame, in pixels.
        times: when each frame is shown, ascending, in units of `time_base` seconds.
        time_base: the unit of the times.
        rate: frames a second, on average.
        has_sound: whether there is any.
        goes_on: whether the file does after the last of these frames.
        pixel_aspect: width of a pixel by its height in an upright frame; None where the file does not say.
    """

    path: Path
    width: int
    height: int
    times: tuple[int, ...]
    time_base: Fraction
    rate: Fraction
    has_sound: bool
    goes_on: bool = False
    pixel_aspect: Fraction | None = None

    @property
    def stride(self) -> Fraction:
        """
        How many frames of the clip make one of the model's, which knows 24 a second: a whole number, or one over it.

        Whole steps keep the motion even. A clip of 20 to 35 frames a second is edited frame by frame; of a faster one
        every n-th frame is, and of a slower one the model sees each frame several times.
        """
        if self.rate >= FRAMES_PER_SECOND:
            return Fraction(max(1, round(self.rate / FRAMES_PER_SECOND)))
        return Fraction(1, max(1, round(FRAMES_PER_SECOND / self.rate)))

    @property
    def num_model_frames(self) -> int:
        """How many frames the model edits, 4k + 1; of the last ones, some may stand for nothing."""
        count = -(-len(self.times) // self.stride)
        return -(-(count - 1) // 4) * 4 + 1

    def model_frame(self, index: int) -> int:
        """Which of the model's frames shows the frame of the clip with an index."""
        return int(index / self.stride)


def survey(path: str | os.PathLike, num_frames: int | None = None, show_progress: bool = False) -> Footage:
    """
    Decodes a clip once and says what it is.

    Args:
        path: a file in any format that FFmpeg reads.
        num_frames: take only so many frames from its beginning.
        show_progress: whether to show a progress bar.

    Raises:
        ValueError: if it cannot be read, is truncated, damaged or has no frames, or not so many.
    """
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"The number of frames must be positive, but is {num_frames}.")
    times, size, pixel_aspect, goes_on = [], None, None, False
    with open_video(path) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate or Fraction(FRAMES_PER_SECOND)
        time_base = stream.time_base or 1 / rate
        step = max(1, round(1 / (rate * time_base)))
        decoded = decode(container, float(rate))
        for frame, _ in tqdm(decoded, desc="Looking through frames", disable=not show_progress):
            goes_on = frame is not None and len(times) == num_frames
            if frame is None or goes_on:
                break
            # Some formats have no times, and damaged files any.
            after_last = times[-1] + step if times else 0
            is_later = frame.pts is not None and (not times or frame.pts > times[-1])
            times.append(frame.pts if is_later else after_last)
            if size is None:
                is_turned = round(frame.rotation / 90) % 2
                size = (frame.height, frame.width) if is_turned else (frame.width, frame.height)
                pixel_aspect = stream.sample_aspect_ratio or None
                pixel_aspect = 1 / pixel_aspect if pixel_aspect and is_turned else pixel_aspect
        has_sound = bool(container.streams.audio)
    if has_sound:
        with open_video(path) as container:
            deque(_read_sound(container), maxlen=0)
    if not times:
        raise ValueError(f"{path} has no frames: choose another video.")
    if num_frames is not None and len(times) < num_frames:
        raise ValueError(f"{path} has {len(times)} frames, but {num_frames} were asked for.")
    return Footage(Path(path), *size, tuple(times), time_base, rate, has_sound, goes_on, pixel_aspect)


def _read_sound(container: av.container.InputContainer) -> Iterator[av.Packet]:
    """Yields the packets of sound, in order."""
    last = {}
    for packet in container.demux(*container.streams.audio):
        if packet.dts is None:
            continue
        if packet.dts <= last.get(packet.stream.index, packet.dts - 1):
            seconds = float(packet.dts * packet.time_base)
            raise ValueError(
                f"The sound of {container.name} is damaged at {seconds:.2f} seconds: choose an intact file."
            )
        last[packet.stream.index] = packet.dts
        yield packet


def read_frames(footage: Footage) -> Iterator[np.ndarray]:
    """Yields all frames of a clip, upright, uint8 `[H, W, 3]`."""
    reformatter = VideoReformatter()
    with open_video(footage.path) as container:
        for _, (frame, _) in zip(footage.times, decode(container, float(footage.rate))):
            yield to_pixels(frame, reformatter)


def spread_frames(footage: Footage, count: int = 6) -> list[np.ndarray]:
    """Reads a few frames from all over a clip, or all of a shorter one."""
    chosen = set(np.linspace(0, len(footage.times) - 1, count).round().astype(int).tolist())
    return [pixels for index, pixels in enumerate(read_frames(footage)) if index in chosen]


def read_model_frames(footage: Footage) -> Iterator[np.ndarray]:
    """Yields the frames that the model sees, `num_model_frames` of them; the last ones may be the same."""
    num_yielded, pixels = 0, None
    for index, pixels in enumerate(read_frames(footage)):
        while int(num_yielded * footage.stride) == index:
            yield pixels
            num_yielded += 1
    for _ in range(footage.num_model_frames - num_yielded):
        yield pixels


class FootageWriter:
    """Writes frames, in order, as the frames of a clip that is there, with its times; made by `write_footage`."""

    def __init__(
        self, container: av.container.OutputContainer, footage: Footage, stack: ExitStack, size: tuple[int, int]
    ):
        self.container = container
        self.footage = footage
        self.num_written = 0
        source = stack.enter_context(open_video(footage.path))
        like = source.streams.video[0].codec_context
        width, height = size
        stream = container.add_stream("libx264", rate=footage.rate.limit_denominator(1001), options={"crf": "17"})
        stream.width, stream.height = size
        # Half the resolution of colors needs even sides.
        stream.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
        context = stream.codec_context
        context.time_base = footage.time_base
        is_known = like.colorspace not in (0, UNSPECIFIED)
        context.colorspace = like.colorspace if is_known else BT709
        context.color_primaries = like.color_primaries if is_known else BT709
        context.color_trc = like.color_trc if is_known else BT709
        context.color_range = FULL_RANGE if like.color_range == FULL_RANGE else 1
        if footage.pixel_aspect:
            context.sample_aspect_ratio = footage.pixel_aspect
        self.stream = stream
        self.reformatter = VideoReformatter()
        self.sound = self._copy_sound(source)
        self.next_sound = next(self.sound, None)

    def _copy_sound(self, source: av.container.InputContainer) -> Iterator[av.Packet]:
        """Adds streams for the sound of the clip, and yields its packets as they are."""
        streams = {}
        for stream in source.streams.audio:
            try:
                streams[stream.index] = self.container.add_stream_from_template(stream)
            except (ValueError, av.error.FFmpegError) as error:
                codec = stream.codec_context.name if stream.codec_context else "of an unknown codec"
                raise ValueError(
                    f"The sound of {self.footage.path} ({codec}) cannot be copied: write a .mkv."
                ) from error
        return self._packets(source, streams) if streams else iter(())

    @staticmethod
    def _packets(source: av.container.InputContainer, streams: dict[int, av.AudioStream]) -> Iterator[av.Packet]:
        for packet in _read_sound(source):
            packet.stream = streams[packet.stream.index]
            yield packet

    def write(self, pixels: np.ndarray) -> None:
        """Writes a frame, uint8 `[H, W, 3]`, after the sound that comes before it."""
        time = self.footage.times[self.num_written]
        self._write_sound(until=time * self.footage.time_base)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        context = self.stream.codec_context
        frame = self.reformatter.reformat(
            frame,
            format=context.pix_fmt,
            dst_colorspace=int(context.colorspace),
            dst_color_range=int(context.color_range),
        )
        frame.pts, frame.time_base = time, self.footage.time_base
        self.container.mux(self.stream.encode(frame))
        self.num_written += 1

    def _write_sound(self, until: Fraction | None) -> None:
        while self.next_sound is not None:
            packet = self.next_sound
            if until is not None and packet.dts * packet.time_base > until:
                return
            self.container.mux(packet)
            self.next_sound = next(self.sound, None)

    def close(self) -> None:
        self.container.mux(self.stream.encode())
        time_base = self.footage.time_base
        end = self.footage.times[-1] * time_base + 1 / self.footage.rate
        self._write_sound(until=end if self.footage.goes_on else None)


class GifWriter:
    """Keeps frames, and writes them as a gif when it is closed; made by `write_footage`."""

    def __init__(self, file: str, footage: Footage, comment: str):
        self.file = file
        self.footage = footage
        self.comment = comment
        self.images = []

    def write(self, pixels: np.ndarray) -> None:
        self.images.append(Image.fromarray(pixels).quantize())

    def close(self) -> None:
        starts = [float((time - self.footage.times[0]) * self.footage.time_base) for time in self.footage.times]
        write_gif(self.file, self.images, [*starts, starts[-1] + float(1 / self.footage.rate)], self.comment)


@contextmanager
def write_footage(
    file: str, kind: str, footage: Footage, comment: str = "", size: tuple[int, int] | None = None
) -> Iterator[FootageWriter | GifWriter]:
    """
    Opens a file for the frames of an edited clip.

    Args:
        file: where to.
        kind: one of `FOOTAGE_SUFFIXES`.
        footage: the clip, whose times, colors and sound the file gets.
        comment: what the file says of itself.
        size: width and height in pixels; by default those of the clip.
    """
    if kind == ".gif":
        writer = GifWriter(file, footage, comment)
        yield writer
        writer.close()
        return
    # Matroska would give itself a random number.
    options = {"fflags": "+bitexact"} | ({} if kind == ".mkv" else {"movflags": "faststart"})
    with ExitStack() as stack:
        container = stack.enter_context(av.open(file, "w", format=CONTAINERS[kind], options=options))
        container.metadata["comment"] = comment
        writer = FootageWriter(container, footage, stack, size or (footage.width, footage.height))
        yield writer
        writer.close()
