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
"""The sound of a clip: which of its tracks a file can hold as they are, and which must be encoded for it."""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

import av
import av.filter

from .decoding import VideoReader, open_video


# Copy tracks that the file can hold and encode the others, encode all of them, or leave them out
AUDIO_MODES = ("copy", "encode", "none")

CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}

# What lossless sound becomes if it must be encoded. Other sound becomes AAC, which all of these files can hold.
LOSSLESS_ENCODERS = {".mp4": "flac", ".mov": "pcm_s24le", ".mkv": "flac"}
LOSSLESS_CODECS = ("flac", "alac", "wavpack", "tta", "truehd", "mlp", "ape", "tak", "shorten")

# In bits a second for each channel
AAC_BIT_RATE = 128_000
AAC_RATES = (48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)

LAYOUTS = {"1 channels": "mono", "2 channels": "stereo", "3 channels": "2.1", "4 channels": "quad"}
LAYOUTS |= {"5 channels": "5.0", "6 channels": "5.1", "8 channels": "7.1"}

# In seconds: how much earlier than the one before it a packet may be
LARGEST_DISORDER = 0.1

# How many packets show whether a file can hold a track
TRIED_PACKETS = 24


@dataclass(frozen=True)
class Track:
    """A track of sound: the index of its stream in the clip, and the encoder for it, or None if it is copied."""

    index: int
    encoder: str | None = None


def usable_tracks(reader: VideoReader) -> tuple[int, ...]:
    """Reads all sound of an open video. Returns the stream indices of the usable tracks, and notes the others."""
    tracks: dict[int, int] = {}
    last: dict[int, float] = {}
    for number, stream in enumerate(reader.container.streams.audio, start=1):
        if stream.codec_context is None:
            reader.note(
                f"Audio track {number} of {reader.path} has a codec that FFmpeg does not know: it is left out."
            )
        else:
            tracks[stream.index] = number
    if tracks:
        for packet in reader.packets(*(reader.container.streams[index] for index in tracks)):
            if packet.dts is None or packet.stream.index not in tracks:
                continue
            index, seconds = packet.stream.index, float(packet.dts * packet.time_base)
            # In recordings, packets may have equal times or be a little out of order, which `_Copier` corrects.
            if seconds < last.get(index, seconds) - LARGEST_DISORDER:
                reader.note(
                    f"Audio track {tracks.pop(index)} of {reader.path} is damaged at {seconds:.2f} seconds: it is "
                    "left out."
                )
            last[index] = max(last.get(index, seconds), seconds)
    for index in [index for index in tracks if index not in last]:
        reader.note(f"Audio track {tracks.pop(index)} of {reader.path} is empty: it is left out.")
    return tuple(tracks)


def plan_sound(
    path: str | os.PathLike, indices: tuple[int, ...], kind: str, audio: str
) -> tuple[tuple[Track, ...], list[str]]:
    """
    Tries to copy or encode each track, and decides by the result which tracks a file gets.

    Args:
        path: the clip.
        indices: the stream indices of its usable tracks, as `usable_tracks` returns them.
        kind: the ending of the file to write, a key of `CONTAINERS`.
        audio: one of `AUDIO_MODES`.

    Returns:
        The tracks that the file gets, and a sentence on each that is left out, damaged, or encoded instead of copied.

    Raises:
        LoomVideoError: if the clip cannot be read.
    """
    tracks: list[Track] = []
    notes: list[str] = []
    if audio == "none":
        return (), notes
    for index in indices:
        with open_video(path) as reader:
            all_tracks = [stream.index for stream in reader.container.streams.audio]
            codec = reader.container.streams[index].codec_context.name
        is_lossless = codec.startswith("pcm_") or codec in LOSSLESS_CODECS
        encoder = LOSSLESS_ENCODERS[kind] if is_lossless else "aac"
        number = f"Audio track {all_tracks.index(index) + 1}" if len(all_tracks) > 1 else "The sound"
        name = f"{number} of {path} ({codec})"
        num_damaged = _try(path, Track(index), kind) if audio == "copy" else None
        if num_damaged is not None:
            tracks.append(Track(index))
            if num_damaged:
                notes.append(f"{name} has {num_damaged} damaged packets: they are left out.")
        elif _try(path, Track(index, encoder), kind) is not None:
            tracks.append(Track(index, encoder))
            if audio == "copy":
                words = encoder.split("_")[0].upper()
                notes.append(f"{name} cannot be copied to {kind}: it is encoded as {words}.")
        else:
            notes.append(f"{name} cannot be read: it is left out.")
    return tuple(tracks), notes


def _try(path: str | os.PathLike, track: Track, kind: str) -> int | None:
    """Writes the beginning of a track, or a recording's whole track. Returns how many packets fail, None if all do."""
    num_written = num_damaged = 0
    try:
        with open_video(path) as reader, av.open(io.BytesIO(), "w", format=CONTAINERS[kind]) as container:
            sound = add_sound(reader, container, (track,), kind)
            tries_all = reader.may_jump and track.encoder is None
            for packet in sound if tries_all else islice(sound, TRIED_PACKETS):
                if write_packet(container, packet):
                    num_written += 1
                else:
                    num_damaged += 1
    except (av.error.FFmpegError, ValueError, OSError):
        return None
    return num_damaged if num_written else None


def seconds_of(packet: av.Packet) -> Fraction:
    """When a packet of sound is decoded, in seconds."""
    assert packet.dts is not None
    return packet.dts * packet.time_base


def write_packet(container: av.container.OutputContainer, packet: av.Packet) -> bool:
    """Writes a packet of sound. Returns whether it is intact; a damaged packet is left out."""
    try:
        container.mux(packet)
    except av.error.InvalidDataError:
        return False
    return True


def add_sound(
    reader: VideoReader, container: av.container.OutputContainer, tracks: tuple[Track, ...], kind: str
) -> Iterator[av.Packet]:
    """Adds streams for tracks of an open video to an open file, and returns an iterator of the packets to write."""
    writers: dict[int, _Copier | _Encoder] = {}
    for track in tracks:
        source = reader.container.streams[track.index]
        assert isinstance(source, av.AudioStream)
        if track.encoder is None:
            writers[track.index] = _Copier(container.add_stream_from_template(source), reader, kind)
        else:
            writers[track.index] = _Encoder(container, source, track.encoder)
    return _packets(reader, writers) if writers else iter(())


def _packets(reader: VideoReader, writers: dict[int, "_Copier | _Encoder"]) -> Iterator[av.Packet]:
    for packet in reader.packets(*(reader.container.streams[index] for index in writers)):
        if packet.dts is not None:
            yield from writers[packet.stream.index].convert(packet)
    for writer in writers.values():
        yield from writer.flush()


class _Copier:
    """Copies packets, from where the clip begins."""

    def __init__(self, stream: av.AudioStream, reader: VideoReader, kind: str):
        self.stream = stream
        # A decoder needs the packet before the first that is heard. These formats can say that it is not heard itself;
        # Matroska can if the source says so, or the codec is Opus.
        is_known = "matroska" in reader.container.format.name or stream.codec_context.name == "opus"
        self.keeps_lead = kind in (".mp4", ".mov") or is_known
        self.lead: av.Packet | None = None
        self.last: int | None = None

    def convert(self, packet: av.Packet) -> Iterator[av.Packet]:
        start = packet.dts if packet.pts is None else packet.pts
        assert start is not None
        is_over = start + (packet.duration or 0) <= 0
        if start < 0 and (is_over or not self.keeps_lead):
            self.lead = packet
            return
        if self.keeps_lead and self.lead is not None:
            yield self._placed(self.lead)
        self.lead = None
        yield self._placed(packet)

    def _placed(self, packet: av.Packet) -> av.Packet:
        # Muxers take a packet only if it is later than the one before it.
        assert packet.dts is not None
        if self.last is not None and packet.dts <= self.last:
            packet.dts = self.last + 1
            packet.pts = packet.dts if packet.pts is None else max(packet.pts, packet.dts)
        self.last = packet.dts
        packet.stream = self.stream
        return packet

    def flush(self) -> Iterator[av.Packet]:
        return iter(())


class _Encoder:
    """Decodes and encodes packets, from where the clip begins; gaps become silence."""

    def __init__(self, container: av.container.OutputContainer, source: av.AudioStream, encoder: str):
        context = source.codec_context
        rate = context.sample_rate
        if encoder == "aac":
            rate = next((known for known in AAC_RATES if known <= rate), AAC_RATES[-1])
        if encoder.startswith("pcm") and (context.format.bits <= 16 and context.name != "pcm_f32le"):
            encoder = "pcm_s16le"
        # Old formats say how many channels there are, but not where each is to be heard.
        layout = LAYOUTS.get(context.layout.name, context.layout.name)
        stream = container.add_stream(encoder, rate=rate, layout=layout)
        assert isinstance(stream, av.AudioStream)
        self.stream = stream
        if encoder == "aac":
            self.stream.codec_context.bit_rate = AAC_BIT_RATE * context.layout.nb_channels
        formats = self.stream.codec_context.codec.audio_formats or []
        depth = "s16" if context.format.bits <= 16 else "s32"
        wanted = [one.name for one in formats if one.name.rstrip("p") == depth] or [formats[0].name]
        self.stream.codec_context.format = wanted[0]
        self.graph = av.filter.Graph()
        last = self.graph.add_abuffer(template=source)
        self.stream.codec_context.open()
        size = self.stream.codec_context.frame_size or 1024
        for name, options in (
            ("aresample", f"{rate}:async=1:min_hard_comp=0.01"),
            ("atrim", "start=0"),
            ("aformat", f"sample_fmts={wanted[0]}:sample_rates={rate}:channel_layouts={layout}"),
            ("asetnsamples", f"n={size}:p=0"),
            ("abuffersink", ""),
        ):
            node = self.graph.add(name, options)
            last.link_to(node)
            last = node
        self.graph.configure()

    def convert(self, packet: av.Packet) -> Iterator[av.Packet]:
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            return  # The filter fills what is missing with silence.
        for frame in frames:
            self.graph.push(frame)
            yield from self._pull()

    def flush(self) -> Iterator[av.Packet]:
        self.graph.push(None)
        yield from self._pull()
        yield from self.stream.encode()

    def _pull(self) -> Iterator[av.Packet]:
        while True:
            try:
                frame = self.graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            assert isinstance(frame, av.AudioFrame)
            yield from self.stream.encode(frame)
