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
"""Video files and image sequences, read as a player shows them: their frames, upright, with the times of each."""

import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import av.filter
import av.logging
import numpy as np
from av.video.reformatter import VideoReformatter

from ..errors import LoomVideoError
from . import images
from . import orientation as orientations


# What is read: files that hold their own frames. Playlists, which point elsewhere, and addresses are not.
READ_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,matroska,avi,mpegts,mpeg,flv,gif,apng,ogg,asf,mxf,nut,ivf,h264,hevc,obu,m4v,mpegvideo,dv,"
    "wav,mp3,flac,aac",
}

# FFmpeg's flags of formats: without times; and of recordings and broadcasts, which may break off and go on anywhere
HAS_NO_TIMES = 0x0080
TIMES_MAY_JUMP = 0x0200

# In seconds: times that go back by more, or forward by more, are those of another recording.
SMALLEST_JUMP_BACK = 0.1
SMALLEST_JUMP_FORWARD = 10

# What a frame number is written as in the name of an image sequence
FRAME_NUMBER = re.compile(r"%(?:0(\d+))?d")

# The rate of clips that say nothing of it
USUAL_RATE = Fraction(24)

# Pixels of 8 and of 16 bits, without and with alpha
PIXEL_FORMATS = {(False, False): "rgb24", (False, True): "rgba", (True, False): "rgb48le", (True, True): "rgba64le"}

# What HDR frames say that the encoders of PyAV cannot be told
LOST_SIDE_DATA = {
    "MASTERING_DISPLAY_METADATA": "HDR10 mastering data",
    "CONTENT_LIGHT_LEVEL": "HDR10 light levels",
    "DYNAMIC_HDR_PLUS": "HDR10+ data",
    "DOVI_METADATA": "Dolby Vision data",
}


def is_sequence(path: str | os.PathLike) -> bool:
    """Whether a path is the pattern of an image sequence, such as `frames_%04d.png`."""
    return bool(FRAME_NUMBER.search(Path(path).name)) and not Path(path).exists()


def sequence_files(path: str | os.PathLike) -> list[Path]:
    """
    The files of an image sequence, by number.

    Raises:
        LoomVideoError: if there is none, or one in between is missing.
    """
    path = Path(path)
    before, width, after = FRAME_NUMBER.split(path.name, maxsplit=1)
    width = int(width or 1)
    name = re.compile(rf"{re.escape(before)}(\d{{{width}}}|[1-9]\d{{{width},}}){re.escape(after)}")
    files = os.listdir(path.parent) if path.parent.is_dir() else []
    numbers = {int(match[1]) for file in files if (match := name.fullmatch(file))}
    if not numbers:
        raise LoomVideoError(f"{path} names no files: number them as in {sequence_file(path, 1)}.")
    for number in range(min(numbers), max(numbers)):
        if number not in numbers:
            missing = sequence_file(path, number)
            raise LoomVideoError(f"The image sequence {path} lacks {missing.name}: add it, or leave out the rest.")
    return [sequence_file(path, number) for number in sorted(numbers)]


def sequence_file(path: str | os.PathLike, number: int) -> Path:
    """The file of an image sequence with a number."""
    before, width, after = FRAME_NUMBER.split(Path(path).name, maxsplit=1)
    return Path(path).with_name(f"{before}{number:0{int(width or 1)}d}{after}")


@contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Says in one sentence what is wrong with a file that is being read, if something is."""
    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        reason = error.strerror or type(error).__name__
        raise LoomVideoError(f"{path} cannot be read as a video ({reason}): is it complete, and a video?") from error


def silence_av() -> None:
    """
    Turns off PyAV's logging, which torchvision may have turned on: a decoding thread that logs waits for the lock of
    Python, which the thread that closes the decoder holds while it waits for the first.
    """
    av.logging.set_level(None)


@contextmanager
def open_video(path: str | os.PathLike, rate: Fraction | None = None) -> Iterator["VideoReader"]:
    """
    Opens a video, or an image sequence by its pattern, to read it.

    Args:
        path: the file, or a pattern such as `frames_%04d.png`.
        rate: frames a second of an image sequence, by default 24.

    Raises:
        LoomVideoError: if it cannot be read, or holds no video.
    """
    silence_av()
    source, options, file_format = os.fspath(path), READ_OPTIONS, None
    if is_sequence(path):
        file_format = "image2"
        before, _, after = FRAME_NUMBER.split(Path(path).name, maxsplit=1)
        first = sequence_files(path)[0].name
        pattern = FRAME_NUMBER.search(Path(path).name)[0]
        # Any other percent sign stands for itself.
        source = os.path.join(Path(path).parent, before).replace("%", "%%") + pattern + after.replace("%", "%%")
        options = {
            "protocol_whitelist": "file",
            "format_whitelist": file_format,
            "framerate": str(rate or USUAL_RATE),
            "start_number": re.match(r"\d+", first[len(before) :])[0],
        }
    elif images.is_animated_webp(path):
        # FFmpeg cannot read these.
        source = io.BytesIO(images.animation_as_png(path))
    with reading(path):
        container = av.open(source, format=file_format, options=dict(options), metadata_errors="replace")
    with container:
        yield VideoReader(path, container, rate)


class VideoReader:
    """
    An open video; made by `open_video`.

    Attributes:
        path: the file.
        container: PyAV's.
        stream: the one that a player shows, which is not the cover.
        declared_rate: frames a second as the file has it, which may be wrong; None if it does not say.
        origin: the time of the file, in seconds, at which a player begins.
        orientation: of the frames, see `orientation`; known once the first is decoded.
        size: width and height of the stored frames; likewise.
        notes: what a person should know of it, a sentence each; complete when all has been read.
    """

    def __init__(self, path: str | os.PathLike, container: av.container.InputContainer, rate: Fraction | None = None):
        self.path = path
        self.container = container
        self.notes = []
        self.stream = self._find_stream()
        flags = int(container.format.flags)
        # Streams without a container say it within.
        known_rates = (rate, self.stream.average_rate, self.stream.guessed_rate)
        known_rates = (rate, self.stream.guessed_rate) if flags & HAS_NO_TIMES else known_rates
        self.declared_rate = next((known for known in known_rates if known), None)
        self.origin = Fraction(container.start_time or 0, av.time_base)
        self.orientation = orientations.UPRIGHT
        self.size = None
        self.may_jump = bool(flags & TIMES_MAY_JUMP)
        self._reformatter = VideoReformatter()  # takes longer to make than to use

    def _find_stream(self) -> av.VideoStream:
        streams = [
            stream
            for stream in self.container.streams.video
            if not stream.disposition & av.stream.Disposition.attached_pic
        ]
        if not streams:
            what = "but a cover picture" if self.container.streams.video else "at all"
            raise LoomVideoError(f"{self.path} has no video {what}: choose a video file.")
        best = self.container.streams.best("video")
        known = [stream for stream in streams if stream.codec_context is not None]
        if not known:
            raise LoomVideoError(f"{self.path} is in a format that cannot be decoded: choose another video.")
        stream = best if best in known else known[0]
        if len(streams) > 1:
            number = streams.index(stream) + 1
            self.note(f"{self.path} has {len(streams)} tracks of video: number {number} is used.")
        return stream

    @property
    def time_base(self) -> Fraction:
        return self.stream.time_base or 1 / (self.declared_rate or USUAL_RATE)

    @property
    def frame_seconds(self) -> Fraction:
        """How long a frame lasts, as the file has it."""
        return 1 / Fraction(self.declared_rate or USUAL_RATE)

    def note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def packets(self, *streams: av.stream.Stream) -> Iterator[av.Packet]:
        """
        Yields the packets of some streams, whose times begin where a player begins.

        The parts of a recording that was joined go on after each other. What is lost of a recording is noted; packets
        of other files must be complete.
        """
        # Of each part of a recording, what is added to its times; the part that each stream is in; where it ends
        shifts, parts, ends = [-self.origin], {}, {}
        # Where another recording begins is the same whatever is read.
        demuxed = self.container.demux(*(self._known_streams() if self.may_jump else streams))
        while True:
            with reading(self.path):
                packet = next(demuxed, None)
            if packet is None:
                return
            if packet.is_corrupt and not self.may_jump:
                raise LoomVideoError(f"{self.path} is truncated: choose a complete file.")
            if packet.dts is not None and self.may_jump:
                stream = packet.stream.index
                part = parts.setdefault(stream, 0)
                begin = packet.dts * packet.time_base + shifts[part]
                end = ends.get(stream, begin)
                if begin < end - SMALLEST_JUMP_BACK or begin > end + SMALLEST_JUMP_FORWARD:
                    parts[stream] = part = part + 1
                    if part == len(shifts):
                        shifts.append(max(ends.values()) - packet.dts * packet.time_base)
                        self.note(f"{self.path} is several recordings, one after the other: they are taken as one.")
                    begin = packet.dts * packet.time_base + shifts[part]
                ends[stream] = begin + (packet.duration or 0) * packet.time_base
                if packet.is_corrupt:
                    self._note_loss(float(begin))
            if packet.stream not in streams:
                continue
            shift = round(shifts[parts.get(packet.stream.index, 0)] / packet.time_base) if packet.time_base else 0
            if packet.dts is not None:
                packet.dts += shift
            if packet.pts is not None:
                packet.pts += shift
            yield packet

    def _note_loss(self, seconds: float) -> None:
        if not any("is missing" in note for note in self.notes):
            self.note(f"{self.path}: a part of the recording is missing at {seconds:.1f} seconds; the rest is used.")

    def frames(self) -> Iterator[tuple[av.VideoFrame, int]]:
        """
        Yields all frames, deinterlaced, each with the time that it is shown at, in units of `time_base`, ascending.

        Raises:
            LoomVideoError: if a frame is damaged, or the file ends before it should.
        """
        graph, last = None, None
        step = max(1, round(self.frame_seconds / self.time_base))
        for frame in self._decoded():
            if self.size is None:
                self.size = (frame.width, frame.height)
                self.orientation = orientations.of_frame(frame)
            if (frame.width, frame.height) != self.size:
                self.note(f"The frames of {self.path} change their size: all are scaled to that of the first.")
                pts = frame.pts
                frame = frame.reformat(*self.size)
                frame.pts = pts
            if frame.pts is None:
                last = 0 if last is None else last + step
            else:
                # Damaged files have any times.
                last = frame.pts if last is None else max(frame.pts, last + 1)
            frame.pts, frame.time_base = last, self.time_base
            if frame.interlaced_frame and graph is None:
                self.note(f"{self.path} is interlaced: it is deinterlaced.")
                graph = _deinterlacer(frame)
            if graph is None:
                yield frame, last
            else:
                graph.push(frame)
                yield from self._pull(graph)
        if graph is not None:
            graph.push(None)
            yield from self._pull(graph)

    def _pull(self, graph: av.filter.Graph) -> Iterator[tuple[av.VideoFrame, int]]:
        while True:
            try:
                frame = graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            yield frame, round(frame.pts * frame.time_base / self.time_base)

    def _decoded(self) -> Iterator[av.VideoFrame]:
        stream = self.stream
        # With a thread for each frame, these decoders give out what they failed to decode.
        stream.thread_type = "SLICE" if stream.codec_context.name in ("vp8", "vp9") else "AUTO"
        if stream.codec_context.name == "hevc" and not self.may_jump:
            # This decoder does not mark the frames that are damaged, but drops them, if it is not told to stop there.
            stream.codec_context.options = {"err_detect": "explode"}
        is_matroska, end, num_frames, last_sent = "matroska" in self.container.format.name, 0.0, 0, 0
        for packet in self.packets(*(self._known_streams() if is_matroska else [stream])):
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream is not stream:
                continue
            if packet.pts is not None and not packet.is_discard:
                last_sent = max(last_sent, packet.pts)
            try:
                with reading(self.path):
                    frames = packet.decode()
            except ValueError:
                if not self.may_jump:
                    raise
                self._note_loss(end)
                continue
            for frame in frames:
                if frame.is_corrupt:
                    if not self.may_jump:
                        raise LoomVideoError(f"{self.path} is damaged at {end:.2f} seconds: choose an intact file.")
                    self._note_loss(end)
                num_frames += 1
                last_shown = frame.pts if frame.pts is not None else last_sent
                yield frame
        # Decoders with a thread for each frame say nothing of the last ones that they fail to decode.
        if (
            num_frames
            and not self.may_jump
            and (last_sent - last_shown) * stream.time_base > 0.75 * self.frame_seconds
        ):
            raise LoomVideoError(f"{self.path} is damaged at its end: choose an intact file.")
        # Matroska and WebM say how long they are, and can end anywhere. A last frame may last where the rate varies.
        length = float(Fraction(self.container.duration or 0, av.time_base) - self.origin)
        declares_length = is_matroska and num_frames and self._declares_constant_rate()
        if declares_length and end + 1.5 / float(self.declared_rate) < length:
            raise LoomVideoError(f"{self.path} is truncated: choose a complete file.")

    def _known_streams(self) -> list[av.stream.Stream]:
        streams = [*self.container.streams.video, *self.container.streams.audio]
        return [stream for stream in streams if stream.codec_context is not None]

    def _declares_constant_rate(self) -> bool:
        return self.declared_rate is not None and self.stream.base_rate in (None, self.stream.average_rate)

    def seconds(self, until: float) -> list[float]:
        """The times of the frames up to a moment, from the packets alone; empty where these have none."""
        times = []
        for packet in self.packets(self.stream):
            time = packet.pts if packet.pts is not None else packet.dts
            if time is None or packet.is_discard:
                continue
            times.append(float(time * packet.time_base))
            # Frames that are shown before others may come after them.
            if times[-1] > until + 1:
                break
        times = sorted({time for time in times if time <= until})
        return times if len(times) > 1 else []

    @property
    def num_bits(self) -> int:
        """Of its colors."""
        return max(component.bits for component in self._format.components)

    @property
    def may_have_alpha(self) -> bool:
        return self._format.has_palette or any(component.is_alpha for component in self._format.components)

    @property
    def _format(self) -> av.VideoFormat:
        return av.VideoFormat(self.stream.codec_context.pix_fmt or "rgb24")

    def to_pixels(self, frame: av.VideoFrame, pixel_format: str) -> np.ndarray:
        """Converts a frame to upright `[H, W, C]`, uint8 or uint16, in one of `PIXEL_FORMATS`."""
        pixels = self._reformatter.reformat(frame, format=pixel_format).to_ndarray()
        return orientations.to_upright(pixels, self.orientation)

    def to_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """Converts a frame to upright uint8 `[H, W, 3]`; what is transparent is composed on white."""
        return convert_pixels(self.to_pixels(frame, PIXEL_FORMATS[False, self.may_have_alpha]), "rgb24")

    def note_losses(self, frame: av.VideoFrame) -> None:
        """Notes what a frame says that cannot be written."""
        lost = []
        for name, words in LOST_SIDE_DATA.items():
            try:
                lost += [words] if frame.side_data.get(name) is not None else []
            except ValueError:  # side data that PyAV has no name for
                break
        if self.stream.metadata.get("alpha_mode") == "1" and not self.may_have_alpha:
            lost.append("transparency, which this decoder does not read")
        if lost:
            self.note(f"{self.path}: the result will be without its {', '.join(lost)}.")


def convert_pixels(pixels: np.ndarray, pixel_format: str) -> np.ndarray:
    """
    Brings pixels `[H, W, 3 or 4]` of uint8 or uint16 to one of `PIXEL_FORMATS` that has no more than they do.

    Alpha that is left out is composed on white.
    """
    is_deep, has_alpha = next(key for key, name in PIXEL_FORMATS.items() if name == pixel_format)
    if pixels.shape[2] == 4 and not has_alpha:
        colors, alpha = pixels[..., :3], pixels[..., 3:]
        most = np.iinfo(pixels.dtype).max
        if alpha.min() < most:
            share = alpha.astype(np.float32) / most
            colors = (colors * share + most * (1 - share)).round().astype(pixels.dtype)
        pixels = np.ascontiguousarray(colors)
    return (pixels // 257).astype(np.uint8) if pixels.dtype == np.uint16 and not is_deep else pixels


def measure_rate(seconds: Sequence[float], declared: Fraction | None) -> tuple[Fraction, bool]:
    """
    How many frames a second a clip has, by the times of its frames, and whether it has them evenly.

    Pauses do not count, and times may jitter. What the file declares is taken where it agrees within a percent, as it
    is exact where times are rounded.
    """
    if len(seconds) < 2:
        return declared or USUAL_RATE, True
    intervals = np.diff(seconds)
    usual = np.abs(intervals / np.median(intervals) - 1) < 0.15
    usual = intervals[usual if usual.mean() > 0.7 else intervals <= 3 * np.median(intervals)]
    rate = Fraction(1 / usual.mean()).limit_denominator(1001) or Fraction(1, round(usual.mean()))
    if declared and abs(rate / declared - 1) < 0.01:
        rate = declared
    even = seconds[0] + np.arange(len(seconds)) / float(rate)
    return rate, bool(np.abs(np.asarray(seconds) - even).max() < 0.75 / float(rate))


def _deinterlacer(frame: av.VideoFrame) -> av.filter.Graph:
    """Makes one frame of the two fields of each interlaced frame, and leaves the others as they are."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    filtered = graph.add("bwdif", "mode=send_frame:deint=interlaced")
    source.link_to(filtered)
    filtered.link_to(graph.add("buffersink"))
    graph.configure()
    return graph
