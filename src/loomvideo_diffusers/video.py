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

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import av.logging
import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps
from av.video.reformatter import Colorspace, VideoReformatter
from diffusers.utils import logging
from tqdm import tqdm

from .files import check_writable, write_whole
from .pipelines import loomvideo_frames


logger = logging.get_logger(__name__)

FRAMES_PER_SECOND = 24
MAX_FRAMES = loomvideo_frames.MAX_SOURCE_FRAMES

VIDEO_SUFFIXES = (".mp4", ".gif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

# What is read: files that hold their own frames. Playlists, which point elsewhere, and addresses are not.
READ_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,matroska,avi,mpegts,mpeg,flv,gif,apng,ogg,asf,mxf,nut,ivf,h264,hevc,obu,m4v,mpegvideo,dv,"
    "wav,mp3,flac,aac",
}

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


def read_video(path: str | os.PathLike, show_progress: bool = False, max_frames: int = MAX_FRAMES) -> np.ndarray:
    """
    Reads the beginning of a video, by default the first 5 seconds, or all of a shorter one, at 24 frames a second.

    Rotation is applied; of a variable frame rate, each moment's nearest frame is taken; any pixel format will do.
    Decoding stops after the last frame that is needed.

    Args:
        path: a file in any format that FFmpeg reads.
        show_progress: whether to show a progress bar.
        max_frames: the result's greatest length, 4k + 1.

    Returns:
        `np.ndarray`: uint8 `[F, H, W, 3]`, F = 4k + 1 and at most `max_frames`.

    Raises:
        ValueError: if the file cannot be read, is truncated or has no frames.
    """
    with open_video(path) as container:
        frames = list(tqdm(_read_frames(container, max_frames), desc="Reading frames", disable=not show_progress))
    if not frames:
        raise ValueError(f"{path} has no frames: choose another video.")
    return np.stack(frames[: (len(frames) - 1) // 4 * 4 + 1])


def probe_video(path: str | os.PathLike, max_frames: int = MAX_FRAMES) -> tuple[int, int, int]:
    """
    Returns the width, the height and the number of frames that `read_video` is expected to give, of which only the
    first is decoded. Where a file does not say how long it is, the number is `max_frames`.

    Raises:
        ValueError: if the file cannot be read or has no frames.
    """
    with open_video(path) as container:
        stream = container.streams.video[0]
        frame = next((frame for frame, _ in decode(container, FRAMES_PER_SECOND) if frame is not None), None)
        if frame is None:
            raise ValueError(f"{path} has no frames: choose another video.")
        height, width = (frame.width, frame.height) if round(frame.rotation / 90) % 2 else (frame.height, frame.width)
        fps = float(stream.average_rate or stream.guessed_rate or FRAMES_PER_SECOND)
        seconds = stream.frames / fps if stream.frames else (container.duration or 0) / av.time_base
    if not seconds:
        return width, height, max_frames
    num_frames = len(sample_frame_indices(max(round(seconds * fps), 1), fps, max_frames=max_frames))
    return width, height, num_frames


@contextmanager
def open_video(path: str | os.PathLike) -> Iterator[av.container.InputContainer]:
    """Opens a video to read it, and says in one line what is wrong with it if something is."""
    _silence_av()
    try:
        with av.open(os.fspath(path), options=READ_OPTIONS, metadata_errors="replace") as container:
            if not container.streams.video:
                raise ValueError(f"{path} has no video: choose a video file.")
            if container.streams.video[0].codec_context is None:
                raise ValueError(f"{path} is in a format that cannot be decoded: choose another video.")
            yield container
    except (av.error.FFmpegError, OSError) as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(f"{path} cannot be read as a video ({reason}): is it complete, and a video?") from error


def _silence_av() -> None:
    """
    Turns off PyAV's logging, which torchvision may have turned on: a decoding thread that logs waits for the lock of
    Python, which the thread that closes the decoder holds while it waits for the first.
    """
    av.logging.set_level(None)


def _read_frames(container: av.container.InputContainer, max_frames: int) -> Iterator[np.ndarray]:
    """Yields the frames that are nearest to the moments of the result."""
    stream = container.streams.video[0]
    fps = float(stream.average_rate or stream.guessed_rate or FRAMES_PER_SECOND)
    if _has_constant_rate(stream):
        # With a constant rate, the frame that is nearest to a position is the one with its number.
        moments = (position / fps for position in sample_positions(fps, max_frames=max_frames))
    else:
        moments = (index / FRAMES_PER_SECOND for index in range(max_frames))
    moment = next(moments)
    reformatter = VideoReformatter()  # takes longer to make than to use
    previous, previous_time = None, 0.0
    for frame, time in decode(container, fps):
        pixels = None
        while previous is not None and moment <= (previous_time + time) / 2:
            pixels = to_pixels(previous, reformatter) if pixels is None else pixels
            yield pixels
            moment = next(moments, None)
            if moment is None:
                if frame is not None:
                    logger.warning(f"{container.name} is longer than {time:.1f} seconds: using only its beginning.")
                return
        previous, previous_time = frame, time


def decode(container: av.container.InputContainer, fps: float) -> Iterator[tuple[av.VideoFrame | None, float]]:
    """Yields frames with their seconds from the first, and in the end None with the time when the last is over."""
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    if stream.codec_context.name == "hevc":
        # This decoder does not mark the frames that are damaged, but drops them, if it is not told to stop there.
        stream.codec_context.options = {"err_detect": "explode"}
    start, time, end = None, 0.0, 0.0
    is_matroska = "matroska" in container.format.name
    for packet in container.demux() if is_matroska else container.demux(stream):
        if packet.is_corrupt:
            raise ValueError(f"{container.name} is truncated: choose a complete file.")
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream is not stream:
            continue
        for frame in packet.decode():
            # Some formats have no times.
            frame_time = frame.time if frame.time is not None else 0.0 if start is None else start + time + 1 / fps
            start = frame_time if start is None else start
            time = frame_time - start
            if frame.is_corrupt:
                raise ValueError(f"{container.name} is damaged at {time:.2f} seconds: choose an intact file.")
            yield frame, time
    # Matroska and WebM say how long they are, and can end anywhere. A last frame may last where the rate varies.
    declares_length = is_matroska and container.duration and _has_constant_rate(stream)
    if declares_length and end + 1.5 / fps < container.duration / av.time_base:
        raise ValueError(f"{container.name} is truncated: choose a complete file.")
    yield None, time + 1 / fps


def _has_constant_rate(stream: av.VideoStream) -> bool:
    return stream.base_rate is None or stream.base_rate == stream.average_rate


def to_pixels(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """Converts a frame to upright uint8 `[H, W, 3]`."""
    pixels = reformatter.reformat(frame, format="rgb24").to_ndarray()
    # The angle is counterclockwise, as NumPy's turns are.
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


def read_image(path: str | os.PathLike) -> PIL.Image.Image:
    """Reads an image file upright, as RGB. Raises ValueError if it cannot be read."""
    with _open_image(path) as image:
        return loomvideo_frames.read_image(PIL.ImageOps.exif_transpose(image), str(path))


def probe_image(path: str | os.PathLike) -> tuple[int, int]:
    """Returns the width and the height of an upright image, reading none of its pixels, or raises ValueError."""
    with _open_image(path) as image:
        is_turned = image.getexif().get(PIL.ExifTags.Base.Orientation, 1) >= 5
        return image.size[::-1] if is_turned else image.size


@contextmanager
def _open_image(path: str | os.PathLike) -> Iterator[PIL.Image.Image]:
    try:
        with PIL.Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: choose a complete image file.") from error


def check_output_path(path: str | os.PathLike, suffixes: tuple[str, ...]) -> None:
    """Raises ValueError if a file of one of these kinds could not be written there."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path} must end in {' or '.join(suffixes)}.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: choose the name of a file.")
    check_writable(path)


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
        ValueError: if the frames or the ending are wrong, or the file cannot be written.
    """
    check_output_path(path, VIDEO_SUFFIXES)
    images = loomvideo_frames.read_video(frames, "frames")
    if Path(path).suffix.lower() == ".gif":
        times = [index / fps for index in range(len(images) + 1)]
        write_whole(path, lambda file: write_gif(file, images, times, comment))
        return
    width, height = images[0].size
    if width % 2 or height % 2:
        raise ValueError(f"An mp4 needs even sides, but the frames are {width} x {height}: crop them or write a gif.")
    write_whole(path, lambda file: _write_mp4(file, images, fps, show_progress, comment))


def write_gif(file: str, images: list[PIL.Image.Image], times: list[float], comment: str = "") -> None:
    """Writes images as a gif, given the seconds when each is shown and when the last is over."""
    # Hundredths of a second are all that a gif counts in, and whole ones at that.
    durations = [10 * (round(100 * end) - round(100 * begin)) for begin, end in pairwise(times)]
    options = {"append_images": images[1:], "duration": durations, "loop": 0, "comment": comment.encode()}
    images[0].save(file, format="GIF", save_all=True, **options)


def _write_mp4(file: str, images: list[PIL.Image.Image], fps: float, show_progress: bool, comment: str) -> None:
    _silence_av()
    with av.open(file, "w", format="mp4", options={"movflags": "faststart"}) as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "17"})
        stream.width, stream.height = images[0].size
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        # BT.709, and luma from 16 to 235, in the numbers of H.273: players guess what is not written down.
        context.color_primaries = context.color_trc = context.colorspace = context.color_range = 1
        reformatter = VideoReformatter()
        for image in tqdm(images, desc="Writing frames", disable=not show_progress):
            frame = av.VideoFrame.from_image(image)
            frame = reformatter.reformat(frame, format="yuv420p", dst_colorspace=Colorspace.ITU709)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_image(path: str | os.PathLike, image: loomvideo_frames.Image, comment: str = "") -> None:
    """Writes a png, jpg or webp, which says of itself what `comment` says. It appears when all of it is written."""
    check_output_path(path, IMAGE_SUFFIXES)
    picture = loomvideo_frames.read_image(image, "image")
    image_format = PIL.Image.registered_extensions()[Path(path).suffix.lower()]
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.ImageDescription] = comment
    write_whole(path, lambda file: picture.save(file, format=image_format, exif=exif if comment else b""))


def read_comment(path: str | os.PathLike) -> str:
    """Returns what a video or an image says of itself, which may be nothing, or raises ValueError."""
    if Path(path).suffix.lower() in IMAGE_SUFFIXES:
        with _open_image(path) as image:
            return image.getexif().get(PIL.ExifTags.Base.ImageDescription, "")
    if Path(path).suffix.lower() == ".gif":
        with _open_image(path) as image:
            return image.info.get("comment", b"").decode(errors="replace")
    with open_video(path) as container:
        # Matroska writes the names of its tags in capitals.
        return {name.lower(): value for name, value in container.metadata.items()}.get("comment", "")


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
        frames = loomvideo_frames.read_video(row, "frames")
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
