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
"""Decoding videos and image sequences as a player shows them: upright frames, and the time of each."""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction

import av
import av.filter
import av.logging
import numpy as np
from av.video.reformatter import VideoReformatter

from ..errors import LoomVideoError
from . import images
from . import orientation as orientations
from .sequences import ffmpeg_pattern, is_sequence, sequence_numbers


# Only files that hold their own frames are read: no addresses, and no playlists, which point to other files.
READ_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,matroska,avi,mpegts,mpeg,flv,gif,apng,ogg,asf,mxf,nut,ivf,h264,hevc,obu,m4v,mpegvideo,dv,"
    "wav,mp3,flac,aac",
}

# FFmpeg's flags of a format: that it has no times; that it is one of recordings and broadcasts, which may break off
# and start again anywhere.
HAS_NO_TIMES = 0x0080
TIMES_MAY_JUMP = 0x0200

# In seconds: if times go back or forward by more, another recording begins.
SMALLEST_JUMP_BACK = 0.1
SMALLEST_JUMP_FORWARD = 10

# In frames a second, for clips that do not say
USUAL_RATE = Fraction(24)

# FFmpeg's names of pixels, by whether they have 16 bits (or 8) and whether they have alpha
PIXEL_FORMATS = {(False, False): "rgb24", (False, True): "rgba", (True, False): "rgb48le", (True, True): "rgba64le"}

# Side data of HDR frames that PyAV cannot pass on to an encoder
LOST_SIDE_DATA = {
    "MASTERING_DISPLAY_METADATA": "HDR10 mastering data",
    "CONTENT_LIGHT_LEVEL": "HDR10 light levels",
    "DYNAMIC_HDR_PLUS": "HDR10+ data",
    "DOVI_METADATA": "Dolby Vision data",
}


@contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Turns errors of FFmpeg and of the system into a LoomVideoError that names the file."""
    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        reason = error.strerror or type(error).__name__
        raise LoomVideoError(f"{path} cannot be read as a video ({reason}): is it complete, and a video?") from error


def silence_av() -> None:
    """
    Turns off PyAV's logging, which torchvision may have turned on, because it can lock up: a decoding thread that logs
    waits for Python's lock, which the thread that closes the decoder holds while it waits for that thread.
    """
    av.logging.set_level(None)


@contextmanager
def open_video(path: str | os.PathLike, rate: Fraction | None = None) -> Iterator["VideoReader"]:
    """
    Opens a video or an image sequence to read it.

    Args:
        path: a file, or the pattern of an image sequence, such as `frames_%04d.png`.
        rate: frames a second of an image sequence, by default 24.

    Raises:
        LoomVideoError: if it cannot be read, has no video, or is of a format that cannot be decoded.
    """
    silence_av()
    source: str | io.BytesIO = os.fspath(path)
    options, file_format = READ_OPTIONS, None
    if is_sequence(path):
        source, file_format = ffmpeg_pattern(path), "image2"
        options = {
            "protocol_whitelist": "file",
            "format_whitelist": file_format,
            "framerate": str(rate or USUAL_RATE),
            "start_number": str(sequence_numbers(path)[0]),
        }
    elif images.is_animated_webp(path):
        # FFmpeg cannot read them.
        source = io.BytesIO(images.animation_as_png(path))
    with reading(path):
        container = av.open(source, "r", format=file_format, options=dict(options), metadata_errors="replace")
    with container:
        yield VideoReader(path, container, rate)


class VideoReader:
    """
    An open video, made by `open_video`.

    Attributes:
        path: the file, or the pattern of an image sequence.
        container: the file, opened by PyAV.
        stream: the stream of frames that a player shows, which is not that of a cover picture.
        declared_rate: frames a second according to the file, which may be wrong; None if it does not say.
        origin: the time in the file, in seconds, at which a player begins.
        orientation: of the stored frames, as in `orientation`; known when the first frame is decoded.
        size: width and height of the stored frames in pixels; None until the first frame is decoded.
        may_jump: whether the file may be broken off, damaged or joined, as recordings and broadcasts may be.
        notes: what a person should know of the video, a sentence each; complete when all of it has been read.
    """

    def __init__(self, path: str | os.PathLike, container: av.container.InputContainer, rate: Fraction | None = None):
        self.path = path
        self.container = container
        self.notes: list[str] = []
        self.stream = self._find_stream()
        flags = int(container.format.flags)
        # In formats without times, FFmpeg makes up the average rate; the encoded frames say what it is.
        average_rate = None if flags & HAS_NO_TIMES else self.stream.average_rate
        self.declared_rate = rate or average_rate or self.stream.guessed_rate or None
        self.origin = Fraction(container.start_time or 0, av.time_base)
        self.orientation = orientations.UPRIGHT
        self.size: tuple[int, int] | None = None
        self.may_jump = bool(flags & TIMES_MAY_JUMP)
        self._reformatter = VideoReformatter()  # kept, because making one takes longer than using it

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
            self.note(f"{self.path} has {len(streams)} video tracks: track {number} is used.")
        return stream

    @property
    def time_base(self) -> Fraction:
        """The unit of the times of frames, in seconds."""
        return self.stream.time_base or 1 / (self.declared_rate or USUAL_RATE)

    @property
    def frame_seconds(self) -> Fraction:
        """How long a frame is shown at the declared rate."""
        return 1 / Fraction(self.declared_rate or USUAL_RATE)

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height of an upright frame, in pixels; known when the first frame is decoded."""
        assert self.size is not None
        width, height = self.size
        return (height, width) if orientations.swaps_sides(self.orientation) else (width, height)

    def note(self, sentence: str) -> None:
        """Adds a sentence to the notes, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def packets(self, *streams: av.stream.Stream) -> Iterator[av.Packet]:
        """
        Yields the packets of some streams, with times that count from where a player begins.

        If several recordings were joined, each begins when the one before it ends. What is missing of a recording is
        noted.

        Raises:
            LoomVideoError: if a packet cannot be read, or is incomplete in a file that is no recording.
        """
        # In seconds: what is added to the times of each joined recording; and, by the index of a stream, which
        # recording it is in and when its last packet ends.
        shifts: list[Fraction] = [-self.origin]
        parts: dict[int, int] = {}
        ends: dict[int, Fraction] = {}
        # All streams tell where another recording begins, whichever are asked for.
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
                        self.note(f"{self.path} is several recordings, one after the other: they are read as one.")
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
            self.note(f"{self.path}: part of the recording is missing at {seconds:.1f} seconds; the rest is used.")

    def frames(self) -> Iterator[tuple[av.VideoFrame, int]]:
        """
        Yields all frames, deinterlaced, each with the time at which it is shown, in units of `time_base`, ascending.

        Raises:
            LoomVideoError: if a frame is damaged, or the file is truncated.
        """
        graph, last = None, None
        step = max(1, round(self.frame_seconds / self.time_base))
        for frame in self._decoded():
            if self.size is None:
                self.size = (frame.width, frame.height)
                self.orientation = orientations.of_frame(frame)
            if (frame.width, frame.height) != self.size:
                self.note(f"The frames of {self.path} change in size: all are scaled to the size of the first.")
                pts = frame.pts
                frame = frame.reformat(*self.size)
                frame.pts = pts
            if frame.pts is None:
                last = 0 if last is None else last + step
            else:
                # In damaged files, times may repeat or go back.
                last = frame.pts if last is None else max(frame.pts, last + 1)
            frame.pts, frame.time_base = last, self.time_base
            if frame.interlaced_frame and graph is None:
                self.note(f"{self.path} is interlaced: its frames are deinterlaced.")
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
            assert isinstance(frame, av.VideoFrame)
            assert frame.pts is not None
            assert frame.time_base is not None
            yield frame, round(frame.pts * frame.time_base / self.time_base)

    def _decoded(self) -> Iterator[av.VideoFrame]:
        stream = self.stream
        context = stream.codec_context
        # With a thread for each frame, these decoders return frames that they failed to decode.
        stream.thread_type = "SLICE" if context.name in ("vp8", "vp9") else "AUTO"
        if context.name == "hevc" and not self.may_jump:
            # Unless this decoder is told to stop at damaged frames, it drops them and does not say so.
            context.options = {"err_detect": "explode"}
        # In seconds, when the last packet of any stream ends; and, in units of the stream, the times of the last frame
        # that was sent to the decoder and of the last that it returned
        end, last_sent, last_shown = 0.0, 0, None
        for packet in self.packets(*(self._known_streams() if self._is_matroska else [stream])):
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream is not stream:
                continue
            if packet.pts is not None and not packet.is_discard:
                last_sent = max(last_sent, packet.pts)
            for frame in self._decode(packet, end):
                last_shown = frame.pts if frame.pts is not None else last_sent
                yield frame
        if last_shown is not None:
            self._check_end(end, (last_sent - last_shown) * self.time_base)

    def _decode(self, packet: av.Packet, end: float) -> Iterator[av.VideoFrame]:
        """Yields the frames of a packet that ends after so many seconds; refuses damage, or notes it in recordings."""
        try:
            with reading(self.path):
                frames = packet.decode()
        except ValueError:
            if not self.may_jump:
                raise
            self._note_loss(end)
            return
        for frame in frames:
            if frame.is_corrupt:
                if not self.may_jump:
                    raise LoomVideoError(f"{self.path} is damaged at {end:.2f} seconds: choose an intact file.")
                self._note_loss(end)
            yield frame

    def _check_end(self, end: float, not_shown: Fraction) -> None:
        """Refuses a file whose packets end too early, or whose last frames, of so many seconds, were not decoded."""
        # With a thread for each frame, decoders say nothing of the last frames if they fail to decode them.
        if not self.may_jump and not_shown > 0.75 * self.frame_seconds:
            raise LoomVideoError(f"{self.path} is damaged at its end: choose an intact file.")
        # Matroska and WebM files can end anywhere, but say how long they are. If the rate varies, so may the time of
        # the last frame.
        length = float(Fraction(self.container.duration or 0, av.time_base) - self.origin)
        if self._is_matroska and self._declares_constant_rate() and end + 1.5 * float(self.frame_seconds) < length:
            raise LoomVideoError(f"{self.path} is truncated: choose a complete file.")

    @property
    def _is_matroska(self) -> bool:
        return "matroska" in self.container.format.name

    def _known_streams(self) -> list[av.stream.Stream]:
        streams = [*self.container.streams.video, *self.container.streams.audio]
        return [stream for stream in streams if stream.codec_context is not None]

    def _declares_constant_rate(self) -> bool:
        return self.declared_rate is not None and self.stream.base_rate in (None, self.stream.average_rate)

    def seconds(self, until: float) -> list[float]:
        """
        Returns when the frames up to a moment are shown, in ascending seconds, without decoding them.

        The list is empty if the packets do not say, or there are fewer than two frames.
        """
        times: list[float] = []
        for packet in self.packets(self.stream):
            time = packet.pts if packet.pts is not None else packet.dts
            if time is None or packet.is_discard:
                continue
            times.append(float(time * packet.time_base))
            # Packets are in the order of decoding: frames that are shown earlier may still follow.
            if times[-1] > until + 1:
                break
        times = sorted({time for time in times if time <= until})
        return times if len(times) > 1 else []

    @property
    def num_bits(self) -> int:
        """Bits of each color of the stored frames."""
        return max(component.bits for component in self._format.components)

    @property
    def may_have_alpha(self) -> bool:
        """Whether the format of the stored frames can hold transparency."""
        return self._format.has_palette or any(component.is_alpha for component in self._format.components)

    @property
    def _format(self) -> av.VideoFormat:
        return av.VideoFormat(self.stream.codec_context.pix_fmt or "rgb24")

    def to_pixels(self, frame: av.VideoFrame, pixel_format: str) -> np.ndarray:
        """Converts a frame to upright pixels `[H, W, 3 or 4]` of uint8 or uint16, in one of `PIXEL_FORMATS`."""
        pixels = self._reformatter.reformat(frame, format=pixel_format).to_ndarray()
        return orientations.to_upright(pixels, self.orientation)

    def to_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """Converts a frame to upright pixels, uint8 `[H, W, 3]`; what is transparent is laid on white."""
        return convert_pixels(self.to_pixels(frame, PIXEL_FORMATS[False, self.may_have_alpha]), "rgb24")

    def note_losses(self, frame: av.VideoFrame) -> None:
        """Notes what a frame holds besides its pixels that cannot be written."""
        lost = []
        for name, words in LOST_SIDE_DATA.items():
            try:
                lost += [words] if frame.side_data.get(name) is not None else []
            except ValueError:  # PyAV has no name for some of the side data, and then reads none of it.
                break
        if self.stream.metadata.get("alpha_mode") == "1" and not self.may_have_alpha:
            lost.append("transparency, which cannot be decoded")
        if lost:
            self.note(f"{self.path}: the result will lack its {', '.join(lost)}.")


def convert_pixels(pixels: np.ndarray, pixel_format: str) -> np.ndarray:
    """
    Converts pixels to a format with as many bits or fewer, and with alpha only if they have it.

    Args:
        pixels: `[H, W, 3 or 4]` of uint8 or uint16.
        pixel_format: one of `PIXEL_FORMATS`.

    Returns:
        `[H, W, 3 or 4]` of uint8 or uint16. If alpha is removed, what is transparent is laid on white.
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
    Measures how many frames a second a clip has, without its pauses.

    Args:
        seconds: when each frame is shown, ascending.
        declared: frames a second according to the file. This is exact where times are rounded, so it is returned if it
            agrees with the times to within 1 %.

    Returns:
        Frames a second, and whether all frames are shown at that rate, to within three quarters of a frame.
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
    """A filter that makes one frame of the two fields of each interlaced frame, and leaves other frames alone."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    filtered = graph.add("bwdif", "mode=send_frame:deint=interlaced")
    source.link_to(filtered)
    filtered.link_to(graph.add("buffersink"))
    graph.configure()
    return graph
