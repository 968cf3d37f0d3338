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
"""What a clip of any length, size and rate is, found out by decoding it once, and its frames one by one."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np

from ..errors import LoomVideoError
from ..media import FRAMES_PER_SECOND
from ..media.decoding import PIXEL_FORMATS, convert_pixels, measure_rate, open_video
from ..media.orientation import swaps_sides
from ..media.sound import usable_tracks
from ..progress import progress_bar


# A picture that is shown for longer than a second is shown to the model for one second.
MOST_REPEATS = FRAMES_PER_SECOND


@dataclass(frozen=True)
class Footage:
    """
    All of a clip but its pixels; made by `survey`.

    Attributes:
        path: the file, or the pattern of an image sequence.
        width, height: size of an upright frame in pixels.
        times: when each frame is shown, ascending, in units of `time_base`.
        time_base: the unit of the times, in seconds.
        rate: measured frames a second, pauses left out.
        sound_tracks: indices of the audio streams that can be used.
        goes_on: whether the file has more frames than these.
        pixel_aspect: width of a pixel over its height in an upright frame; None if the file does not say.
        end: when the last frame ends, in units of `time_base`; None for the usual time of a frame after it starts.
        pixel_format: format of the frames that are read, one of `PIXEL_FORMATS`: 8 or 16 bits, with or without alpha.
        num_bits: bits of each of the clip's own colors.
        notes: what a person should know before the clip is edited, a sentence each.
    """

    path: Path
    width: int
    height: int
    times: tuple[int, ...]
    time_base: Fraction
    rate: Fraction
    sound_tracks: tuple[int, ...] = ()
    goes_on: bool = False
    pixel_aspect: Fraction | None = None
    end: int | None = None
    pixel_format: str = PIXEL_FORMATS[False, False]
    num_bits: int = 8
    notes: tuple[str, ...] = ()

    @property
    def stride(self) -> Fraction:
        """
        How many frames of the clip there are for each frame of the model, which edits 24 a second: n or 1 / n.

        Whole numbers keep the motion even. A clip between 16 and 36 frames a second is edited frame by frame. Of a
        faster one, the model sees every n-th frame; of a slower one, each frame n times.
        """
        if self.rate >= FRAMES_PER_SECOND:
            return Fraction(max(1, round(self.rate / FRAMES_PER_SECOND)))
        return Fraction(1, min(MOST_REPEATS, max(1, round(FRAMES_PER_SECOND / self.rate))))

    @cached_property
    def durations(self) -> tuple[int, ...]:
        """How long each frame is shown, in units of `time_base`."""
        usual = max(1, round(1 / (self.rate * self.time_base)))
        end = self.times[-1] + usual if self.end is None else self.end
        return tuple(np.diff([*self.times, end]).tolist())

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """
        How many of the model's frames each frame of the clip becomes: 0 if it shows the edit of the one before it.

        Frames that follow each other at the clip's rate are taken by its stride. One that is shown for longer is shown
        to the model for as long, up to a second, and is never skipped.
        """
        usual, repeats = 1 / float(self.rate), int(1 / min(Fraction(1), self.stride))
        counts, kept = [], None
        for time, duration in zip(self.times, self.durations):
            seconds, lasts = float(time * self.time_base), float(duration * self.time_base)
            count = min(MOST_REPEATS, max(1, round(FRAMES_PER_SECOND * lasts)))
            stands_still = lasts > 1.5 * max(Fraction(1), self.stride) * usual
            if not stands_still and kept is not None and seconds - kept < (self.stride - 0.5) * usual:
                count = 0
            elif not stands_still:
                count = min(count, repeats) if lasts < usual / 2 else repeats
            kept = seconds if count else kept
            counts.append(count)
        return tuple(counts)

    @cached_property
    def model_frames(self) -> tuple[int, ...]:
        """Which of the model's frames each frame of the clip shows."""
        starts = np.cumsum([0, *self.counts[:-1]])
        return tuple((starts - (np.array(self.counts) == 0)).tolist())

    @property
    def num_model_frames(self) -> int:
        """How many frames the model edits, 4k + 1: the last one is repeated as often as that takes."""
        return -(-(sum(self.counts) - 1) // 4) * 4 + 1


def survey(
    path: str | os.PathLike,
    num_frames: int | None = None,
    show_progress: bool = False,
    rate: Fraction | float | None = None,
) -> Footage:
    """
    Decodes a clip once, to find out what it is and that all of it can be read.

    Args:
        path: a file in any format that FFmpeg reads, or the pattern of an image sequence, such as `frames_%04d.png`.
        num_frames: take only so many frames from its beginning.
        show_progress: whether to show a progress bar.
        rate: frames a second of an image sequence, by default 24.

    Raises:
        LoomVideoError: if it cannot be read, is truncated or damaged, or has no frames or fewer than `num_frames`.
    """
    if num_frames is not None and num_frames < 1:
        raise LoomVideoError(f"The number of frames must be positive, but is {num_frames}.")
    sequence_rate = None if rate is None else Fraction(rate).limit_denominator(1001)
    times, durations, goes_on, has_alpha = [], [], False, False
    with open_video(path, sequence_rate) as reader:
        time_base = reader.time_base
        frames = progress_bar(reader.frames(), desc="Looking through frames", disable=not show_progress)
        for frame, time in frames:
            goes_on = len(times) == num_frames
            if goes_on:
                break
            times.append(time)
            if len(times) == 1:
                reader.note_losses(frame)
            if reader.may_have_alpha and not has_alpha:
                has_alpha = reader.to_pixels(frame, "rgba")[..., 3].min() < 255
            durations.append(round((frame.duration or 0) * frame.time_base / time_base))
        if not times:
            raise LoomVideoError(f"{path} has no frames: choose another video.")
        assert reader.size is not None  # A frame was read.
        is_turned = swaps_sides(reader.orientation)
        width, height = reader.size[::-1] if is_turned else reader.size
        pixel_aspect = reader.stream.sample_aspect_ratio or None
        pixel_aspect = 1 / pixel_aspect if pixel_aspect and is_turned else pixel_aspect
        seconds = [float(time * time_base) for time in times]
        rate, _ = measure_rate(seconds, reader.declared_rate)
        pixel_format, num_bits = PIXEL_FORMATS[reader.num_bits > 8, bool(has_alpha)], reader.num_bits
        notes = reader.notes
    if num_frames is not None and len(times) < num_frames:
        raise LoomVideoError(f"{path} has {len(times)} frames, but {num_frames} were asked for.")
    with open_video(path, sequence_rate) as reader:
        tracks = usable_tracks(reader)
        if reader.container.streams.subtitles:
            reader.note(f"The subtitles of {path} are left out.")
        notes += [note for note in reader.notes if note not in notes]
    usual = max(1, round(1 / (rate * time_base)))
    footage = Footage(
        Path(path),
        width,
        height,
        tuple(times),
        time_base,
        rate,
        tracks,
        goes_on,
        pixel_aspect,
        # Formats without durations give any.
        times[-1] + (durations[-1] if durations[-1] > usual / 2 else usual),
        pixel_format,
        num_bits,
    )
    if footage.num_model_frames > 2 * len(times) + 4:
        notes.append(
            f"{path} has {len(times)} frames in {seconds[-1] - seconds[0]:.0f} seconds: the model sees each of them "
            f"several times, {footage.num_model_frames} frames in all."
        )
    return replace(footage, notes=tuple(notes))


def read_frames(footage: Footage) -> Iterator[np.ndarray]:
    """Yields the frames of a clip, upright, `[H, W, 3 or 4]` of uint8 or uint16, in its `pixel_format`."""
    with open_video(footage.path, footage.rate) as reader:
        for _, (frame, _) in zip(footage.times, reader.frames()):
            yield reader.to_pixels(frame, footage.pixel_format)


def spread_indices(footage: Footage, count: int = 6) -> list[int]:
    """The indices of `count` frames from all over a clip, or of all frames of a shorter one."""
    return sorted(set(np.linspace(0, len(footage.times) - 1, count).round().astype(int).tolist()))


def spread_frames(footage: Footage, count: int = 6) -> list[np.ndarray]:
    """Reads `count` frames from all over a clip, or all frames of a shorter one, as `read_frames` does."""
    chosen = set(spread_indices(footage, count))
    return [pixels for index, pixels in enumerate(read_frames(footage)) if index in chosen]


def read_model_frames(footage: Footage) -> Iterator[np.ndarray]:
    """
    Yields the `num_model_frames` frames that the model sees, uint8 `[H, W, 3]`, what is transparent laid on white.
    """
    num_yielded = 0
    pixels: np.ndarray | None = None
    for count, frame in zip(footage.counts, read_frames(footage)):
        for _ in range(count):
            pixels = convert_pixels(frame, "rgb24")
            yield pixels
        num_yielded += count
    assert pixels is not None  # The first frame is always shown.
    for _ in range(footage.num_model_frames - num_yielded):
        yield pixels
