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
"""
Image files: reading photos of all kinds upright, in 8 bits and without transparency, and writing images.

A file is taken for what it holds, whatever its name ends in. Of what a photo says of itself, its orientation and its
color profile count; nothing else is read, so that nothing else can be wrong.
"""

import io
import os
import re
import struct
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageCms
from PIL.JpegImagePlugin import JpegImageFile

from ..errors import LoomVideoError
from ..pipelines import loomvideo_frames
from . import orientation as orientations
from .files import check_output_path, write_whole


# What is read as an image, and of that what is written
READ_SUFFIXES = (
    ".png",
    ".apng",
    ".jpg",
    ".jpeg",
    ".jfif",
    ".webp",
    ".avif",
    ".heic",
    ".heif",
    ".tif",
    ".tiff",
    ".bmp",
    ".gif",
)
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

# A larger image is refused: it would take more than a gigabyte. Photos have up to 200 million pixels.
MAX_PIXELS = 2**28

# A larger image is scaled down to half, a quarter, ... when it is read: the model knows no more than 2048 on a side.
MAX_PIXELS_KEPT = 50_000_000

# Brands of files of boxes, by which images are told from videos
AVIF_BRANDS = {b"avif", b"avis"}
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"heif", b"mif1", b"mif2", b"msf1"}

# The parts of a PNG that say how its pixels look; texts and the like can be of any size.
PNG_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT"}

# The tag of a tif that is a raw photo
DNG_VERSION = 50706

# Pillow's switch for large images, and the warnings of Python, are those of the whole process.
_LOCK = threading.RLock()


class ImageError(LoomVideoError):
    """Says in one sentence why a file cannot be read as an image."""


def read_image(path: str | os.PathLike) -> PIL.Image.Image:
    """
    Reads an image file upright, as sRGB of 8 bits; of an animation, the first picture.

    What is transparent is laid on white. Images of more than `MAX_PIXELS_KEPT` are scaled down.

    Raises:
        LoomVideoError: if it cannot be read, with the reason in one sentence.
    """
    with _open_image(path) as image:
        return _read_picture(path, image)


def probe_image(path: str | os.PathLike) -> tuple[int, int]:
    """Returns the width and the height that `read_image` gives, decoding no pixels, or raises ValueError."""
    with _open_image(path) as image:
        factor = _reduction(image.size)
        width, height = (-(-side // factor) for side in image.size)
        return (height, width) if orientations.swaps_sides(_orientation(image)) else (width, height)


def is_image(path: str | os.PathLike) -> bool:
    """Whether a file holds a still image, by its content; of one that cannot be opened, its name decides."""
    try:
        with _open_image(path) as image:
            # A gif is a clip, however short.
            return image.format != "GIF" and not _is_animated(image)
    except ValueError:
        try:
            kind = _kind_of(path)
        except OSError:
            kind = None
        suffixes = [suffix for suffix in READ_SUFFIXES if suffix != ".gif"]
        return kind not in ("GIF", "video") and (kind is not None or Path(path).suffix.lower() in suffixes)


def is_animation(path: str | os.PathLike) -> bool:
    """Whether a file holds an image that moves: a gif, png, webp or avif of several pictures."""
    try:
        with _open_image(path) as image:
            return _is_animated(image)
    except ValueError:
        return False


def is_animated_webp(path: str | os.PathLike) -> bool:
    """Whether a file is a webp of several pictures."""
    try:
        with open(path, "rb") as file:
            # The flags of the file say so.
            start = file.read(21)
        return start[:4] == b"RIFF" and start[8:16] == b"WEBPVP8X" and bool(start[20] & 2)
    except OSError:
        return False


def animation_as_png(path: str | os.PathLike) -> bytes:
    """
    Reads an animation and returns it as an animated png of the pictures that `read_image` would give, with their
    times. A picture that says nothing of its time, or 0, is shown for a tenth of a second, as browsers do.

    Raises:
        LoomVideoError: if it cannot be read.
    """

    def pictures() -> Iterator[PIL.Image.Image]:
        # A png may begin with a picture for viewers that know no animations.
        for index in range(int(getattr(image, "default_image", False)), getattr(image, "n_frames", 1)):
            image.seek(index)
            picture = _read_picture(path, image)
            picture.info["duration"] = image.info.get("duration") or 100
            yield picture

    whole = io.BytesIO()
    with _open_image(path) as image:
        first, *others = pictures()
        first.save(whole, format="PNG", save_all=True, append_images=others, compress_level=1)
    return whole.getvalue()


def write_image(path: str | os.PathLike, image: loomvideo_frames.Image, comment: str = "") -> None:
    """Writes a png, jpg or webp, which says of itself what `comment` says. It appears when all of it is written."""
    check_output_path(path, IMAGE_SUFFIXES)
    picture = loomvideo_frames.to_image(image, "image")
    image_format = PIL.Image.registered_extensions()[Path(path).suffix.lower()]
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.ImageDescription] = comment
    write_whole(path, lambda file: picture.save(file, format=image_format, exif=exif if comment else b""))


def read_image_comment(path: str | os.PathLike) -> str:
    """Returns what an image says of itself, which may be nothing, or raises ValueError."""
    with _open_image(path) as image:
        if image.format == "GIF":
            return image.info.get("comment", b"").decode(errors="replace")
        exif = PIL.Image.Exif()
        try:
            exif.load(image.info.get("exif", b""))
            return str(exif.get(PIL.ExifTags.Base.ImageDescription, ""))
        except Exception:  # whatever Pillow meets in what a camera wrote
            return ""


@contextmanager
def _open_image(path: str | os.PathLike) -> Iterator[PIL.Image.Image]:
    """Opens an image, whose pixels are decoded when they are used. All that goes wrong until then is a ValueError."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
        try:
            kind = _check_kind(path)
            image = _open(kind, Path(path).read_bytes())
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(
                    f"{path} has {image.width} x {image.height} pixels, more than {MAX_PIXELS // 10**6} million: "
                    "scale it down."
                )
            with image:
                yield image
        except ImageError:
            raise
        # Decoders raise whatever they meet in damaged files.
        except Exception as error:
            raise ImageError(
                f"{path} cannot be read as an image, since it is damaged or incomplete: choose a complete file."
            ) from error
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = limit


def _check_kind(path: str | os.PathLike) -> str:
    """The format of an image, or a ValueError that says what the file is instead."""
    advice = "choose a png, jpg, webp, avif, heic, tif, bmp or gif"
    if os.path.isdir(path):
        raise ImageError(f"{path} is a folder: {advice}.")
    try:
        kind = _kind_of(path)
        is_empty = not os.path.getsize(path)
    except OSError as error:
        raise ImageError(f"{path} cannot be read as an image ({error.strerror}): choose another file.") from error
    if is_empty:
        raise ImageError(f"{path} cannot be read as an image, since it is empty: choose a complete file.")
    if kind in (None, "video"):
        what = "a video" if kind else "of another kind"
        raise ImageError(f"{path} cannot be read as an image, since it is {what}: {advice}.")
    if kind == "HEIF" and find_spec("pillow_heif") is None:
        raise ImageError(f"{path} is a HEIC image: run `pip install loomvideo-diffusers[heif]` to read such files.")
    return kind


def _kind_of(path: str | os.PathLike) -> str | None:
    """The format of an image by its first bytes, `video` for a video, None for all else. Raises OSError."""
    with open(path, "rb") as file:
        start = file.read(512)
    if start[4:8] == b"ftyp":
        length = min(int.from_bytes(start[:4], "big"), len(start))
        brands = {start[8:12], *(start[place : place + 4] for place in range(16, length - 3, 4))}
        return "AVIF" if brands & AVIF_BRANDS else "HEIF" if brands & HEIF_BRANDS else "video"
    for kind, signature in (
        ("JPEG", rb"\xff\xd8\xff"),
        ("PNG", rb"\x89PNG\r\n\x1a\n"),
        ("GIF", rb"GIF8[79]a"),
        ("WEBP", rb"RIFF....WEBP"),
        ("TIFF", rb"II\*\0|MM\0\*|II\+\0|MM\0\+"),
        ("BMP", rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"),
        (
            "video",
            rb"RIFF....AVI |\x1aE\xdf\xa3|OggS|FLV\x01|....(?:moov|mdat|wide|free|skip)|\0\0\x01\xba|\x47.{187}\x47",
        ),
    ):
        if re.match(signature, start, re.DOTALL):
            return kind
    return None


def _open(kind: str, data: bytes) -> PIL.Image.Image:
    if kind == "JPEG":
        # Not `PIL.Image.open`, which looks for further pictures in what the file says of itself.
        return JpegImageFile(io.BytesIO(data))
    if kind == "HEIF":
        from pillow_heif import HeifImageFile

        return HeifImageFile(io.BytesIO(data))
    if kind == "PNG":
        data = _without_texts(data)
    if kind == "AVIF":
        # The orientation of such files is not in their EXIF, which Pillow reads all the same: it gets another name.
        data = re.sub(rb"(infe\x02\0\0.{5})Exif", rb"\1none", data, flags=re.DOTALL)
    return PIL.Image.open(io.BytesIO(data), formats=[kind])


def _without_texts(png: bytes) -> bytes:
    kept, place = [png[:8]], 8
    while place + 8 <= len(png):
        length, name = struct.unpack_from(">I4s", png, place)
        if name in PNG_CHUNKS:
            kept.append(png[place : place + 12 + length])
        place += 12 + length
    return b"".join(kept)


def _is_animated(image: PIL.Image.Image) -> bool:
    # Others hold pages, or what a phone took besides.
    return image.format in ("GIF", "PNG", "WEBP", "AVIF") and getattr(image, "is_animated", False)


def _reduction(size: tuple[int, int]) -> int:
    factor = 1
    while size[0] * size[1] > MAX_PIXELS_KEPT * factor**2:
        factor *= 2
    return factor


def _orientation(image: PIL.Image.Image) -> int:
    """The orientation that is still to be applied; a tif's or a heic's is by those who decode them."""
    if image.format in ("TIFF", "HEIF"):
        return orientations.UPRIGHT
    return orientation_of_exif(image.info.get("exif", b""))


def orientation_of_exif(exif: bytes) -> int:
    """Finds the orientation among the first entries of EXIF data, of which nothing else is read."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2], ">")
    try:
        (place,) = struct.unpack_from(f"{order}I", exif, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", exif, place)
        for index in range(num_entries):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", exif, place + 2 + 12 * index)
            if tag == PIL.ExifTags.Base.Orientation and count == 1:
                # Of two bytes as a rule, of four in some files
                value = struct.unpack_from(f"{order}I", exif, place + 10 + 12 * index)[0] if kind == 4 else value
                return value if value in orientations.MATRICES else orientations.UPRIGHT
    except struct.error:
        pass
    return orientations.UPRIGHT


def _read_picture(path: str | os.PathLike, image: PIL.Image.Image) -> PIL.Image.Image:
    """Decodes an open image, or the picture of it that it is at."""
    orientation, factor = _orientation(image), _reduction(image.size)
    if factor > 1 and image.format == "JPEG":
        # Decodes less
        image.draft(None, (image.width // factor, image.height // factor))
        factor = 1
    picture, profile = image, image.info.get("icc_profile")
    if image.format == "TIFF":
        picture = _read_tiff(path, image)
    image.load()
    if factor > 1 and picture.mode in ("RGB", "RGBA", "CMYK", "L", "LA"):
        picture, factor = picture.reduce(factor), 1
    picture = _to_srgb(picture, profile, str(path))
    if factor > 1:
        picture = picture.reduce(factor)
    if orientation != orientations.UPRIGHT:
        picture = PIL.Image.fromarray(orientations.to_upright(np.asarray(picture), orientation))
    return picture


def _read_tiff(path: str | os.PathLike, image: PIL.Image.Image) -> PIL.Image.Image:
    tags = image.tag_v2
    if tags.get(DNG_VERSION) is not None or tags.get(PIL.ExifTags.Base.NewSubfileType) == 1:
        raise ImageError(f"{path} is a raw photo, of which only a preview could be read: develop it to tif or jpg.")
    _load_tiff(path, image)
    is_unsigned = tags.get(PIL.ExifTags.Base.SampleFormat, (1,))[0] == 1
    if image.mode == "I" and is_unsigned and tags.get(PIL.ExifTags.Base.BitsPerSample) == (32,):
        values = np.asarray(image).view(np.uint32)
        return PIL.Image.fromarray(loomvideo_frames.gray_to_8_bits(values, str(path)))
    return image


def _load_tiff(path: str | os.PathLike, image: PIL.Image.Image) -> None:
    """Decodes a tif. What libtiff finds wrong it only prints, and goes on: that refuses the file."""
    with tempfile.TemporaryFile() as printed, _stderr_to(printed):
        image.load()
        printed.seek(0)
        errors = [line for line in printed.read().splitlines() if b"Warning, " not in line]
    if errors:
        raise ImageError(f"{path} cannot be read as an image, since it is damaged: choose a complete file.")


@contextmanager
def _stderr_to(file: IO[bytes]) -> Iterator[None]:
    kept = os.dup(2)
    try:
        os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _to_srgb(image: PIL.Image.Image, profile: bytes | None, name: str) -> PIL.Image.Image:
    """Converts an image as `loomvideo_frames.to_image` does, by its color profile if that is of any use."""
    try:
        picture = loomvideo_frames.to_image(image, name)
    except ValueError as error:
        raise ImageError(str(error)) from error
    if not profile:
        return picture
    try:
        source = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        colors = {"RGB": picture, "GRAY": picture.convert("L"), "CMYK": image}[space]
        if PIL.ImageCms.getProfileDescription(source).startswith("sRGB") or (space == "CMYK" and image.mode != "CMYK"):
            return picture
        return PIL.ImageCms.profileToProfile(colors, source, PIL.ImageCms.createProfile("sRGB"), outputMode="RGB")
    except Exception:  # what a camera wrote may be anything
        return picture
