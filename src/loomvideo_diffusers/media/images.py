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
Image files: reading photos of all kinds upright, as RGB of 8 bits, and writing images.

The content of a file says what it is, not its ending. Of the metadata of a photo, only its orientation and its color
profile are read, because what cameras and programs write there is often broken.
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
from PIL.TiffImagePlugin import TiffImageFile

from ..errors import LoomVideoError
from . import orientation as orientations
from .files import check_output_path, write_whole
from .pixels import Picture, gray_to_8_bits, to_image, to_rgb


# Endings of files that are read as images, and of those that are written
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

# A larger image is refused, since it would take more than a gigabyte. Photos have up to 200 million pixels.
MAX_PIXELS = 2**28

# A larger image is scaled down to a half, a quarter, ... of its sides when it is read, to save memory.
MAX_PIXELS_KEPT = 50_000_000

# The brands that tell images from videos in the file format that they share (ISO 14496-12)
AVIF_BRANDS = {b"avif", b"avis"}
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"heif", b"mif1", b"mif2", b"msf1"}

# The chunks of a PNG that pixels depend on. Others are left out: text can be of any size.
PNG_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT"}

# The tag of TIFF files that are raw photos
DNG_VERSION = 50706

# Pillow's limit for large images and Python's filters of warnings are shared by the whole process.
_LOCK = threading.RLock()


class ImageError(LoomVideoError):
    """A file cannot be read as an image."""


def read_image(path: str | os.PathLike) -> PIL.Image.Image:
    """
    Reads an image file, or the first picture of an animation.

    It is turned upright and converted to sRGB, and what is transparent is laid on white. An image of more than 50
    million pixels is scaled down to a half, a quarter, ... of its sides.

    Args:
        path: a png, jpg, webp, avif, tif, bmp or gif, whatever its ending; or a heic, which needs `pillow-heif`.

    Returns:
        `PIL.Image.Image`: of mode RGB.

    Raises:
        LoomVideoError: if the file cannot be read, is damaged, or has more than 268 million pixels.
    """
    with _open_image(path) as image:
        return _read_picture(path, image)


def read_mask_image(path: str | os.PathLike) -> np.ndarray:
    """
    Reads an image file as a mask: how opaque each pixel is, or how light it is if all are opaque.

    Returns:
        `np.ndarray`: uint8 `[H, W]`.

    Raises:
        LoomVideoError: as `read_image`.
    """
    with _open_image(path) as image:
        picture = _read_picture(path, image)
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        if alpha is None or alpha.getextrema()[0] == 255:
            return np.asarray(picture.convert("L"))
        return np.ascontiguousarray(orientations.to_upright(np.asarray(alpha), _orientation(image)))


def probe_image(path: str | os.PathLike) -> tuple[int, int]:
    """
    Returns the width and the height, in pixels, of the image that `read_image` returns, without decoding it.

    Raises:
        LoomVideoError: if the file cannot be read as an image.
    """
    with _open_image(path) as image:
        factor = _reduction(image.size)
        width, height = (-(-side // factor) for side in image.size)
        return (height, width) if orientations.swaps_sides(_orientation(image)) else (width, height)


def stored_size(path: str | os.PathLike) -> tuple[int, int]:
    """
    Returns the width and the height, in pixels, that an image is stored with: what it takes to decode it.

    Raises:
        LoomVideoError: if the file cannot be read as an image.
    """
    with _open_image(path) as image:
        return image.size


def is_image(path: str | os.PathLike) -> bool:
    """Whether a file holds a still image, by its content, or by its ending if it cannot be opened."""
    try:
        with _open_image(path) as image:
            # A gif is a clip, even if it has one picture.
            return image.format != "GIF" and not _is_animated(image)
    except ImageError:
        try:
            kind = _kind_of(path)
        except OSError:
            kind = None
        suffixes = [suffix for suffix in READ_SUFFIXES if suffix != ".gif"]
        return kind not in ("GIF", "video") and (kind is not None or Path(path).suffix.lower() in suffixes)


def is_animation(path: str | os.PathLike) -> bool:
    """Whether a file is an animation: a gif, png, webp or avif of several pictures."""
    try:
        with _open_image(path) as image:
            return _is_animated(image)
    except ImageError:
        return False


def is_animated_webp(path: str | os.PathLike) -> bool:
    """Whether a file is a webp of several pictures, by the flags in its header."""
    try:
        with open(path, "rb") as file:
            start = file.read(21)
        return start[:4] == b"RIFF" and start[8:16] == b"WEBPVP8X" and bool(start[20] & 2)
    except OSError:
        return False


def animation_as_png(path: str | os.PathLike) -> bytes:
    """
    Converts an animation to an animated png, each picture as `read_image` would return it.

    Pictures are shown for as long as in the animation, or for a tenth of a second, as in browsers, where it says 0 or
    nothing.

    Raises:
        LoomVideoError: if the file cannot be read as an image.
    """

    def pictures() -> Iterator[PIL.Image.Image]:
        # A png may begin with a picture for viewers that cannot show animations.
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


def write_image(path: str | os.PathLike, image: Picture, comment: str = "") -> None:
    """
    Writes a png, jpg or webp. The file appears when all of it is written.

    Args:
        path: ends in `.png`, `.jpg`, `.jpeg` or `.webp`; folders are made if needed.
        image: a PIL image, or an array or tensor `[H, W, 3]` or `[3, H, W]` of uint8, or of floats in [0, 1].
        comment: text to store in the file, which `read_comment` returns.

    Raises:
        LoomVideoError: if the image or the file's ending are wrong, or there can be no file at `path`.
        DiskFullError: if there is no room for the file.
    """
    check_output_path(path, IMAGE_SUFFIXES)
    picture = to_image(image)
    image_format = PIL.Image.registered_extensions()[Path(path).suffix.lower()]
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.ImageDescription] = comment
    write_whole(path, lambda file: picture.save(file, format=image_format, exif=exif if comment else b""))


def read_image_comment(path: str | os.PathLike) -> str:
    """
    Returns the comment that an image holds, or "" if it holds none.

    Raises:
        LoomVideoError: if the file cannot be read as an image.
    """
    with _open_image(path) as image:
        if image.format == "GIF":
            return image.info.get("comment", b"").decode(errors="replace")
        exif = PIL.Image.Exif()
        try:
            exif.load(image.info.get("exif", b""))
            return str(exif.get(PIL.ExifTags.Base.ImageDescription, ""))
        except Exception:  # Pillow raises errors of all kinds at broken EXIF.
            return ""


@contextmanager
def _open_image(path: str | os.PathLike) -> Iterator[PIL.Image.Image]:
    """Opens an image, whose pixels are decoded when they are used. All errors within are ImageErrors."""
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
        # At damaged files, decoders raise errors of all kinds.
        except Exception as error:
            raise ImageError(
                f"{path} cannot be read as an image, since it is damaged or incomplete: choose a complete file."
            ) from error
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = limit


def _check_kind(path: str | os.PathLike) -> str:
    """Returns the format of an image, or raises an ImageError that says what the file is instead."""
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
    """Returns the format of an image by its first bytes, "video" for a video, or None for any other file."""
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
        # `PIL.Image.open` would look for more pictures in the metadata, and may fail at it.
        return JpegImageFile(io.BytesIO(data))
    if kind == "HEIF":
        from pillow_heif import HeifImageFile

        return HeifImageFile(io.BytesIO(data))
    if kind == "PNG":
        data = _without_texts(data)
    if kind == "AVIF":
        # Pillow applies the orientation in the EXIF of such files too, which does not count: give it another name.
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
    # In other formats, several pictures are pages, or further shots and depth maps of a phone.
    return image.format in ("GIF", "PNG", "WEBP", "AVIF") and getattr(image, "is_animated", False)


def _reduction(size: tuple[int, int]) -> int:
    """By how much the sides of an image are divided when it is read: 1, 2, 4, ..."""
    factor = 1
    while size[0] * size[1] > MAX_PIXELS_KEPT * factor**2:
        factor *= 2
    return factor


def _orientation(image: PIL.Image.Image) -> int:
    """The orientation of an open image; decoders turn TIFF and HEIF images upright themselves."""
    if image.format in ("TIFF", "HEIF"):
        return orientations.UPRIGHT
    return orientation_of_exif(image.info.get("exif", b""))


def orientation_of_exif(exif: bytes) -> int:
    """Returns the orientation that EXIF data holds, or `UPRIGHT`. Nothing else is read, since it may be broken."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2], ">")
    try:
        (place,) = struct.unpack_from(f"{order}I", exif, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", exif, place)
        for index in range(num_entries):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", exif, place + 2 + 12 * index)
            if tag == PIL.ExifTags.Base.Orientation and count == 1:
                # The value has two bytes, but four in some files.
                value = struct.unpack_from(f"{order}I", exif, place + 10 + 12 * index)[0] if kind == 4 else value
                return value if value in orientations.MATRICES else orientations.UPRIGHT
    except struct.error:
        pass
    return orientations.UPRIGHT


def _read_picture(path: str | os.PathLike, image: PIL.Image.Image) -> PIL.Image.Image:
    """Decodes the current picture of an open image."""
    orientation, factor = _orientation(image), _reduction(image.size)
    if factor > 1 and image.format == "JPEG":
        # The decoder scales it down, which takes less time and memory.
        image.draft(None, (image.width // factor, image.height // factor))
        factor = 1
    picture: PIL.Image.Image = image
    profile = image.info.get("icc_profile")
    if image.format == "TIFF":
        assert isinstance(image, TiffImageFile)
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


def _read_tiff(path: str | os.PathLike, image: TiffImageFile) -> PIL.Image.Image:
    tags = image.tag_v2
    if tags.get(DNG_VERSION) is not None or tags.get(PIL.ExifTags.Base.NewSubfileType) == 1:
        raise ImageError(f"{path} is a raw photo, of which only a preview could be read: develop it to tif or jpg.")
    _load_tiff(path, image)
    is_unsigned = tags.get(PIL.ExifTags.Base.SampleFormat, (1,))[0] == 1
    if image.mode == "I" and is_unsigned and tags.get(PIL.ExifTags.Base.BitsPerSample) == (32,):
        values = np.asarray(image).view(np.uint32)
        return PIL.Image.fromarray(gray_to_8_bits(values, str(path)))
    return image


def _load_tiff(path: str | os.PathLike, image: PIL.Image.Image) -> None:
    """Decodes a TIFF image, and refuses it if libtiff prints an error to stderr, after which it would go on."""
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
    """Converts an image to RGB, with its color profile if that can be used."""
    try:
        picture = to_rgb(image, name)
    except LoomVideoError as error:
        raise ImageError(str(error)) from error
    if not profile:
        return picture
    try:
        source = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        colors = {"RGB": picture, "GRAY": picture.convert("L"), "CMYK": image}[space]
        if PIL.ImageCms.getProfileDescription(source).startswith("sRGB") or (space == "CMYK" and image.mode != "CMYK"):
            return picture
        srgb = PIL.ImageCms.createProfile("sRGB")
        return PIL.ImageCms.profileToProfile(colors, source, srgb, outputMode="RGB") or picture
    except Exception:  # The profile may be broken in any way.
        return picture
