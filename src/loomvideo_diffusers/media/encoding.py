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
"""Writing frames with the times, colors and sound of a clip: planning what of these a file can hold, and doing it."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from ..errors import LoomVideoError
from .decoding import PIXEL_FORMATS, open_video, silence_av
from .files import check_output_path, whole_file
from .sequences import has_frame_number, sequence_file
from .sound import AUDIO_MODES, CONTAINERS, Track, add_sound, plan_sound, seconds_of, write_packet
from .writing import BT709, LIMITED_RANGE, add_video_stream, write_gif


FOOTAGE_SUFFIXES = (*CONTAINERS, ".gif")
SEQUENCE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")

# How FFV1 is given frames of each of `PIXEL_FORMATS`, whose colors it keeps as they are
LOSSLESS_FORMATS = {"rgb24": "bgr0", "rgba": "bgra", "rgb48le": "gbrp16le", "rgba64le": "rgba64le"}

# Colors that are RGB or not specified, in the numbers of H.273, and luma of the full range, in FFmpeg's
RGB = 0
UNSPECIFIED = 2
FULL_RANGE = 2


class Clip(Protocol):
    """
    What must be known of a clip to write frames in its place; `footage` surveys clips to find out.

    Attributes:
        path: the file, or the pattern of an image sequence.
        width, height: size of an upright frame in pixels.
        times: when each frame is shown, ascending, in units of `time_base`.
        durations: how long each frame is shown, in units of `time_base`.
        time_base: the unit of the times, in seconds.
        rate: frames a second.
        sound_tracks: stream indices of the audio tracks that can be used.
        goes_on: whether the file has more frames than these.
        pixel_aspect: width of a pixel over its height in an upright frame; None if the file does not say.
        pixel_format: of the frames, one of `PIXEL_FORMATS`.
        num_bits: bits of each color in the file.
    """

    @property
    def path(self) -> Path: ...

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def times(self) -> tuple[int, ...]: ...

    @property
    def durations(self) -> tuple[int, ...]: ...

    @property
    def time_base(self) -> Fraction: ...

    @property
    def rate(self) -> Fraction: ...

    @property
    def sound_tracks(self) -> tuple[int, ...]: ...

    @property
    def goes_on(self) -> bool: ...

    @property
    def pixel_aspect(self) -> Fraction | None: ...

    @property
    def pixel_format(self) -> str: ...

    @property
    def num_bits(self) -> int: ...


@dataclass(frozen=True)
class OutputPlan:
    """
    How a clip is written to a file; made by `plan_output`.

    Attributes:
        path: the file, or the pattern of an image sequence.
        kind: its ending, one of `FOOTAGE_SUFFIXES`, or of `SEQUENCE_SUFFIXES` for an image sequence.
        codec, pix_fmt: FFmpeg's names of the encoder and of its pixel format; empty for gifs and image sequences.
        pixel_format: format of the frames to pass to the writer, one of `PIXEL_FORMATS`.
        size: width and height of the video's pictures in pixels.
        tracks: audio tracks to write.
        notes: what is changed or lost, a sentence each.
    """

    path: Path
    kind: str
    codec: str
    pix_fmt: str
    pixel_format: str
    size: tuple[int, int]
    tracks: tuple[Track, ...]
    notes: tuple[str, ...]


def check_footage_path(path: str | os.PathLike, why: str = "") -> None:
    """
    Refuses a path that no clip can be written to, before any work is done.

    Args:
        path: the file, or the pattern of an image sequence.
        why: beginning of the error if the ending is wrong, which says why it must be another.

    Raises:
        LoomVideoError: if the ending is not one of `FOOTAGE_SUFFIXES` (of a pattern, `SEQUENCE_SUFFIXES`), or the
            folder cannot be written to.
    """
    check_output_path(path, SEQUENCE_SUFFIXES if has_frame_number(path) else FOOTAGE_SUFFIXES, why)


def plan_output(
    footage: Clip,
    path: str | os.PathLike,
    audio: str = "copy",
    size: tuple[int, int] | None = None,
    lossless: bool = False,
) -> OutputPlan:
    """
    Decides how frames are written in place of those of a clip, before any work is done.

    Args:
        footage: the clip. The file gets its times, colors, bits and sound, as far as it can hold them.
        path: the file, ending in one of `FOOTAGE_SUFFIXES`, or the pattern of an image sequence.
        audio: `copy` to copy each audio track that the file can hold, and encode the others; `encode` to encode all;
            `none` to leave out all.
        size: width and height of the video's pictures in pixels, by default those of the clip.
        lossless: whether the file is to hold the very colors that are written.

    Raises:
        LoomVideoError: if `audio` is something else, the file cannot be written, or not without loss, or the clip
            cannot be read.
    """
    if audio not in AUDIO_MODES:
        raise LoomVideoError(f"`audio` must be one of {', '.join(AUDIO_MODES)}, but is {audio!r}.")
    path, size = Path(path), size or (footage.width, footage.height)
    check_footage_path(path)
    kind = path.suffix.lower()
    if lossless and kind not in (".mkv", ".png", ".tif", ".tiff"):
        raise LoomVideoError(
            f"{path} cannot hold pictures without loss: write a .mkv, or an image sequence of .png or .tif."
        )
    tracks: tuple[Track, ...] = ()
    notes: list[str] = []
    is_deep, has_alpha = next(key for key, name in PIXEL_FORMATS.items() if name == footage.pixel_format)
    if kind in CONTAINERS:
        tracks, notes = plan_sound(footage.path, footage.sound_tracks, kind, audio)
    elif footage.sound_tracks and audio != "none":
        notes.append(f"{path} cannot hold sound: the sound of {footage.path} is left out.")

    if has_alpha and kind not in (".mov", ".png") and not (lossless and kind == ".mkv"):
        notes.append(
            f"{path} cannot hold transparency: it becomes white. A .mov or an image sequence of .png can hold it."
        )
        has_alpha = False
    if is_deep and kind not in (*CONTAINERS, ".png"):
        notes.append(f"{path} can hold 8 bits of color: the {footage.num_bits} bits of {footage.path} are rounded.")
        is_deep = False
    if has_frame_number(path) or kind == ".gif":
        codec, pix_fmt = "", ""
    elif lossless:
        codec, pix_fmt = "ffv1", LOSSLESS_FORMATS[PIXEL_FORMATS[is_deep, has_alpha]]
    elif has_alpha:
        codec, pix_fmt = "prores_ks", "yuva444p10le"
    else:
        # 4:2:0 stores one color for 2 x 2 pixels, which needs even sides.
        is_odd = any(side % 2 for side in size)
        codec, depth = "libx264", ""
        if is_deep:
            codec, depth = "libx265", "10le" if footage.num_bits <= 10 else "12le"
        pix_fmt = f"{'yuv444p' if is_odd else 'yuv420p'}{depth}"
        if footage.num_bits > 12:
            notes.append(
                f"{path} can hold 12 bits of color: the {footage.num_bits} bits of {footage.path} are rounded."
            )
    return OutputPlan(path, kind, codec, pix_fmt, PIXEL_FORMATS[is_deep, has_alpha], size, tracks, tuple(notes))


class FootageWriter:
    """Writes a video, with the sound of the clip; made by `write_footage`."""

    def __init__(
        self,
        container: av.container.OutputContainer,
        plan: OutputPlan,
        footage: Clip,
        stack: ExitStack,
    ):
        self.container = container
        self.plan = plan
        self.footage = footage
        self.num_written = 0
        source = stack.enter_context(open_video(footage.path, footage.rate))
        like = source.stream.codec_context
        num_frames = len(footage.times)
        stream = add_video_stream(container, plan.codec, footage.rate, plan.size, plan.pix_fmt, num_frames)
        context = stream.codec_context
        context.time_base = footage.time_base
        is_known = like.colorspace not in (0, UNSPECIFIED)
        context.colorspace = like.colorspace if is_known else BT709
        context.color_primaries = like.color_primaries if is_known else BT709
        context.color_trc = like.color_trc if is_known else BT709
        context.color_range = FULL_RANGE if like.color_range == FULL_RANGE else LIMITED_RANGE
        if plan.codec == "ffv1":
            context.colorspace, context.color_range = RGB, FULL_RANGE
        if plan.codec == "libx265" and plan.kind in (".mp4", ".mov"):
            context.codec_tag = "hvc1"  # Apple's players know no other.
        if footage.pixel_aspect:
            context.sample_aspect_ratio = footage.pixel_aspect
        self.stream = stream
        self.reformatter = VideoReformatter()
        self.sound = add_sound(source, container, plan.tracks, plan.kind)
        self.next_sound = next(self.sound, None)

    def write(self, pixels: np.ndarray) -> None:
        """
        Writes the next frame, `[H, W, 3 or 4]` in the plan's `pixel_format`, after the sound that precedes it.

        Frames of another size than the plan's are scaled to it.
        """
        index, time_base = self.num_written, self.footage.time_base
        time = self.footage.times[index]
        self._write_sound(until=time * time_base)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=self.plan.pixel_format)
        context = self.stream.codec_context
        colors = {"dst_colorspace": int(context.colorspace), "dst_color_range": int(context.color_range)}
        frame = self.reformatter.reformat(
            frame, *self.plan.size, format=context.pix_fmt, **({} if context.colorspace == RGB else colors)
        )
        frame.pts, frame.time_base, frame.duration = time, time_base, self.footage.durations[index]
        self.container.mux(self.stream.encode(frame))
        self.num_written += 1

    def _write_sound(self, until: Fraction | None) -> None:
        while self.next_sound is not None:
            packet = self.next_sound
            if until is not None and seconds_of(packet) > until:
                return
            write_packet(self.container, packet)
            self.next_sound = next(self.sound, None)

    def close(self) -> None:
        """Writes what the encoder still holds and the rest of the sound: all of it, or until the last frame ends."""
        self.container.mux(self.stream.encode())
        end = (self.footage.times[-1] + self.footage.durations[-1]) * self.footage.time_base
        self._write_sound(until=end if self.footage.goes_on else None)


class GifWriter:
    """Keeps frames, and writes them as a gif when it is closed; made by `write_footage`."""

    def __init__(self, file: str, footage: Clip, comment: str):
        self.file = file
        self.footage = footage
        self.comment = comment
        self.images: list[Image.Image] = []

    def write(self, pixels: np.ndarray) -> None:
        """Keeps the next frame, uint8 `[H, W, 3]`, in 256 colors."""
        self.images.append(Image.fromarray(pixels).quantize())

    def close(self) -> None:
        times, time_base = self.footage.times, self.footage.time_base
        starts = [float((time - times[0]) * time_base) for time in times]
        end = starts[-1] + float(self.footage.durations[-1] * time_base)
        write_gif(self.file, self.images, [*starts, end], self.comment)


class SequenceWriter:
    """Writes frames as images, numbered from 1; made by `write_footage`."""

    def __init__(self, file: Path, plan: OutputPlan):
        self.file = file
        self.plan = plan
        self.num_written = 0

    def write(self, pixels: np.ndarray) -> None:
        """Writes the next frame, `[H, W, 3 or 4]` in the plan's `pixel_format`."""
        self.num_written += 1
        path = sequence_file(self.file, self.num_written)
        if pixels.dtype == np.uint8:
            Image.fromarray(pixels).save(path, quality=95)
            return
        # Pillow cannot write colors of 16 bits.
        with av.open(str(path), "w", format="image2", options={"update": "1"}) as container:
            stream = container.add_stream("png", rate=1)
            stream.height, stream.width = pixels.shape[:2]
            stream.pix_fmt = "rgb48be" if pixels.shape[2] == 3 else "rgba64be"
            frame = av.VideoFrame.from_ndarray(pixels, format=self.plan.pixel_format).reformat(format=stream.pix_fmt)
            container.mux(stream.encode(frame))
            container.mux(stream.encode())

    def close(self) -> None:
        pass


@contextmanager
def write_footage(
    plan: OutputPlan, footage: Clip, comment: str = ""
) -> Iterator[FootageWriter | GifWriter | SequenceWriter]:
    """
    Opens the planned file to write frames to it, one by one. The file appears when the last one is written.

    Args:
        plan: what `plan_output` returned for the clip.
        footage: the clip, whose times, colors and sound the file gets.
        comment: text to store in the file, which `read_comment` returns; image sequences hold none.

    Returns:
        A context manager of the writer: call `write` once for each frame of the clip.

    Raises:
        LoomVideoError: if there can be no file, or the clip cannot be read.
        DiskFullError: if there is no room for the file.
        OSError: if it cannot be written for another reason.
    """
    silence_av()
    with whole_file(plan.path) as file, ExitStack() as stack:
        writer: FootageWriter | GifWriter | SequenceWriter
        if plan.kind == ".gif":
            writer = GifWriter(str(file), footage, comment)
        elif not plan.codec:
            writer = SequenceWriter(file, plan)
        else:
            # Without this flag, a Matroska file gets a random number.
            options = {"fflags": "+bitexact"} | ({} if plan.kind == ".mkv" else {"movflags": "faststart"})
            stack.enter_context(_writing(plan.path))
            container = av.open(str(file), "w", options=options)
            container = stack.enter_context(container)
            container.metadata["comment"] = comment
            writer = FootageWriter(container, plan, footage, stack)
        yield writer
        writer.close()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns errors of FFmpeg into an OSError that names the file."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise OSError(f"{path} cannot be written ({error.strerror}): choose another folder or format.") from error
