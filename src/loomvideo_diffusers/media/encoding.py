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
"""Writing the frames of a clip with its own times, colors and sound: what of these a file can hold, and doing it."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from ..errors import LoomVideoError
from ..footage.surveying import Footage
from .decoding import FRAME_NUMBER, PIXEL_FORMATS, open_video, sequence_file, silence_av
from .files import whole_file
from .sound import AUDIO_MODES, CONTAINERS, Track, add_sound, plan_sound, write_packet
from .video import add_video_stream, check_output_path, write_gif


FOOTAGE_SUFFIXES = (*CONTAINERS, ".gif")
SEQUENCE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")

# What a clip says of its colors, in the numbers of H.273: BT.709, and "not said"
BT709 = 1
UNSPECIFIED = 2
FULL_RANGE = 2


@dataclass(frozen=True)
class OutputPlan:
    """
    What a file gets of a clip; made by `plan_output`.

    Attributes:
        path: of the file, or the pattern of an image sequence.
        kind: one of `FOOTAGE_SUFFIXES`, or of `SEQUENCE_SUFFIXES` for an image sequence.
        codec, pix_fmt: of the frames, in FFmpeg's words; empty for gifs and image sequences.
        pixel_format: of the frames that are written, one of `PIXEL_FORMATS`.
        tracks: of the sound.
        notes: what is changed or lost, a sentence each.
    """

    path: Path
    kind: str
    codec: str
    pix_fmt: str
    pixel_format: str
    tracks: tuple[Track, ...]
    notes: tuple[str, ...]


def check_footage_path(path: str | os.PathLike, why: str = "") -> None:
    """Raises LoomVideoError if a clip, or an image sequence by its pattern, could not be written there."""
    is_numbered = FRAME_NUMBER.search(Path(path).name)
    check_output_path(path, SEQUENCE_SUFFIXES if is_numbered else FOOTAGE_SUFFIXES, why)


def plan_output(
    footage: Footage, path: str | os.PathLike, audio: str = "copy", width: int | None = None
) -> OutputPlan:
    """
    Decides how a clip is written to a file, before any work goes into it.

    Args:
        footage: the clip, whose times, colors, depth and sound the file gets, as far as it can hold them.
        path: the file, ending in one of `FOOTAGE_SUFFIXES`, or the pattern of an image sequence.
        audio: `copy` to copy sound, where the file can hold it, and else encode it; `encode`; or `none`.
        width: of the frames, if not that of the clip.

    Raises:
        LoomVideoError: if the file cannot be written, or is of another kind.
    """
    if audio not in AUDIO_MODES:
        raise LoomVideoError(f"The sound can be handled by {', '.join(AUDIO_MODES)}, not by {audio!r}.")
    path = Path(path)
    check_footage_path(path)
    is_numbered = bool(FRAME_NUMBER.search(path.name))
    kind, notes, tracks = path.suffix.lower(), [], ()
    is_deep, has_alpha = next(key for key, name in PIXEL_FORMATS.items() if name == footage.pixel_format)
    if kind in CONTAINERS:
        tracks, notes = plan_sound(footage.path, footage.sound_tracks, kind, audio)
    elif footage.sound_tracks and audio != "none":
        notes.append(f"{path} can hold no sound: that of {footage.path} is left out.")

    if has_alpha and kind not in (".mov", ".png"):
        notes.append(
            f"{path} can hold no transparency: it becomes white. A .mov or an image sequence of .png holds it."
        )
        has_alpha = False
    if is_deep and kind not in (*CONTAINERS, ".png"):
        notes.append(f"{path} can hold 8 bits of color: the {footage.num_bits} of {footage.path} are rounded to them.")
        is_deep = False
    if is_numbered or kind == ".gif":
        codec, pix_fmt = "", ""
    elif has_alpha:
        codec, pix_fmt = "prores_ks", "yuva444p10le"
    else:
        # Half the resolution of colors needs even sides.
        is_odd = (width or footage.width) % 2 or footage.height % 2
        codec, depth = "libx264", ""
        if is_deep:
            codec, depth = "libx265", "10le" if footage.num_bits <= 10 else "12le"
        pix_fmt = f"{'yuv444p' if is_odd else 'yuv420p'}{depth}"
        if footage.num_bits > 12:
            notes.append(f"{path} gets 12 bits of color, of the {footage.num_bits} of {footage.path}.")
    return OutputPlan(path, kind, codec, pix_fmt, PIXEL_FORMATS[is_deep, has_alpha], tracks, tuple(notes))


class FootageWriter:
    """Writes frames, in order, as the frames of a clip that is there, with its times; made by `write_footage`."""

    def __init__(
        self,
        container: av.container.OutputContainer,
        plan: OutputPlan,
        footage: Footage,
        stack: ExitStack,
        size: tuple[int, int],
    ):
        self.container = container
        self.plan = plan
        self.footage = footage
        self.num_written = 0
        source = stack.enter_context(open_video(footage.path, footage.rate))
        like = source.stream.codec_context
        num_frames = len(footage.times)
        stream = add_video_stream(container, plan.codec, footage.rate, size, plan.pix_fmt, num_frames)
        context = stream.codec_context
        context.time_base = footage.time_base
        is_known = like.colorspace not in (0, UNSPECIFIED)
        context.colorspace = like.colorspace if is_known else BT709
        context.color_primaries = like.color_primaries if is_known else BT709
        context.color_trc = like.color_trc if is_known else BT709
        context.color_range = FULL_RANGE if like.color_range == FULL_RANGE else 1
        if plan.codec == "libx265" and plan.kind in (".mp4", ".mov"):
            context.codec_tag = "hvc1"  # the one that Apple's players know
        if footage.pixel_aspect:
            context.sample_aspect_ratio = footage.pixel_aspect
        self.stream = stream
        self.reformatter = VideoReformatter()
        self.sound = add_sound(source, container, plan.tracks, plan.kind)
        self.next_sound = next(self.sound, None)

    def write(self, pixels: np.ndarray) -> None:
        """Writes a frame, in the plan's `pixel_format`, after the sound that comes before it."""
        index, time_base = self.num_written, self.footage.time_base
        time = self.footage.times[index]
        self._write_sound(until=time * time_base)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=self.plan.pixel_format)
        context = self.stream.codec_context
        frame = self.reformatter.reformat(
            frame,
            format=context.pix_fmt,
            dst_colorspace=int(context.colorspace),
            dst_color_range=int(context.color_range),
        )
        frame.pts, frame.time_base, frame.duration = time, time_base, self.footage.durations[index]
        self.container.mux(self.stream.encode(frame))
        self.num_written += 1

    def _write_sound(self, until: float | None) -> None:
        while self.next_sound is not None:
            packet = self.next_sound
            if until is not None and packet.dts * packet.time_base > until:
                return
            write_packet(self.container, packet)
            self.next_sound = next(self.sound, None)

    def close(self) -> None:
        self.container.mux(self.stream.encode())
        end = (self.footage.times[-1] + self.footage.durations[-1]) * self.footage.time_base
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
        times, time_base = self.footage.times, self.footage.time_base
        starts = [float((time - times[0]) * time_base) for time in times]
        end = starts[-1] + float(self.footage.durations[-1] * time_base)
        write_gif(self.file, self.images, [*starts, end], self.comment)


class SequenceWriter:
    """Writes frames as images with the numbers from 1 on; made by `write_footage`."""

    def __init__(self, file: Path, plan: OutputPlan):
        self.file = file
        self.plan = plan
        self.num_written = 0

    def write(self, pixels: np.ndarray) -> None:
        self.num_written += 1
        path = sequence_file(self.file, self.num_written)
        if pixels.dtype == np.uint8:
            Image.fromarray(pixels).save(path, quality=95)
            return
        # Pillow has no colors of 16 bits.
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
    plan: OutputPlan, footage: Footage, comment: str = "", size: tuple[int, int] | None = None
) -> Iterator[FootageWriter | GifWriter | SequenceWriter]:
    """
    Writes the frames of an edited clip to the planned file, which appears when all of it is written.

    Args:
        plan: what `plan_output` returned.
        footage: the clip, whose times and colors the file gets.
        comment: what the file says of itself; image sequences say nothing.
        size: width and height in pixels; by default those of the clip.

    Raises:
        OSError: if it cannot be written.
    """
    silence_av()
    with whole_file(plan.path) as file, ExitStack() as stack:
        if plan.kind == ".gif":
            writer = GifWriter(str(file), footage, comment)
        elif not plan.codec:
            writer = SequenceWriter(file, plan)
        else:
            # Matroska would give itself a random number.
            options = {"fflags": "+bitexact"} | ({} if plan.kind == ".mkv" else {"movflags": "faststart"})
            stack.enter_context(_writing(plan.path))
            container = av.open(str(file), "w", format=CONTAINERS[plan.kind], options=options)
            container = stack.enter_context(container)
            container.metadata["comment"] = comment
            writer = FootageWriter(container, plan, footage, stack, size or (footage.width, footage.height))
        yield writer
        writer.close()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Says which file it is that cannot be written; errors of reading say so themselves."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise OSError(f"{path} cannot be written ({error.strerror}): choose another folder or format.") from error
