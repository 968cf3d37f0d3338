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
"""Photos and other images as people have them."""

import io
import random
import re
import struct
import warnings
import zlib

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageCms
import PIL.PngImagePlugin
import PIL.TiffImagePlugin
import pytest
from conftest import FIXTURES
from oriented import make_oriented_photo, upright_picture

from loomvideo_diffusers import nano
from loomvideo_diffusers.cli import main
from loomvideo_diffusers.errors import LoomVideoError
from loomvideo_diffusers.media import images, read_comment, read_video
from loomvideo_diffusers.media.images import is_animation, is_image, probe_image, read_image, write_image
from loomvideo_diffusers.pipelines import loomvideo_frames


FIELD = FIXTURES / "field"
GRAY = np.arange(0, 240, 10, np.uint8).reshape(4, 6)


def pixels_of(path):
    image = read_image(path)
    assert image.mode == "RGB"
    assert probe_image(path) == image.size
    assert is_image(path)
    return np.asarray(image).astype(int)


def check_refused(path, reason):
    for read in (read_image, probe_image):
        with pytest.raises(LoomVideoError, match=reason) as error:
            read(path)
        message = str(error.value)
        assert str(path) in message
        assert "\n" not in message


def exif_entry(tag, kind, count, value):
    return struct.pack(">HHII", tag, kind, count, value)


def exif(*entries, rest=b""):
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + b"".join(entries) + b"\0\0\0\0" + rest


ORIENTATION_6 = exif_entry(0x0112, 3, 1, 6 << 16)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "avif", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(suffix, orientation, tmp_path):
    path = make_oriented_photo(tmp_path / f"photo.{suffix}", orientation)
    assert np.abs(pixels_of(path) - upright_picture()).mean() < 3


def test_heic(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    picture = PIL.Image.fromarray(upright_picture())
    heif = pillow_heif.from_pillow(picture)
    for suffix in ("heic", "heif"):
        path = tmp_path / f"photo.{suffix}"
        heif.save(path)
        assert np.abs(pixels_of(path) - upright_picture()).mean() < 3


def test_heic_without_the_extra(tmp_path, monkeypatch):
    path = tmp_path / "photo.heic"
    path.write_bytes(b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(100))
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    assert is_image(path)
    check_refused(path, r"HEIC image: run `pip install loomvideo-diffusers\[heif\]`")


def test_rational_without_denominator():
    # 96 x 64 pixels, with orientation 6
    assert pixels_of(FIELD / "neg_rational.jpg").shape == (96, 64, 3)


def test_tiles():
    pixels = pixels_of(FIELD / "grid.avif")
    assert pixels.shape == (512, 512, 3)
    # Each tile differs from the others.
    tiles = [pixels[row : row + 256, column : column + 256] for row in (0, 256) for column in (0, 256)]
    assert len({tile.tobytes() for tile in tiles}) == 4


@pytest.mark.parametrize(
    "data",
    [
        exif(exif_entry(0x011A, 5, 1, 1 << 20), ORIENTATION_6),
        exif(exif_entry(0x010E, 2, 1 << 30, 0xFFFFFFF0), ORIENTATION_6),
        exif(exif_entry(0x011A, 5, 1, 50), ORIENTATION_6, rest=b"\xff\xff\xff\xff\0\0\0\0" * 4),
        exif(ORIENTATION_6, exif_entry(0x8769, 4, 1, 8)),
        exif(exif_entry(0x010F, 77, 3, 9), ORIENTATION_6, exif_entry(0x8769, 2, 9, 0)),
        exif(exif_entry(0x0112, 4, 1, 6)),
        exif(ORIENTATION_6, rest=bytes(60000)),
        exif(ORIENTATION_6)[:-4],
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0",
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_strange_exif(data, suffix, tmp_path):
    """The orientation is found whatever stands beside it."""
    path = tmp_path / f"photo.{suffix}"
    PIL.Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(path, exif=b"Exif\0\0" + data if suffix == "jpg" else data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels_of(path).shape == (6, 4, 3)
        assert read_comment(path) in ("", "\0" * 9)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"M",
        b"no EXIF",
        exif(),
        exif(ORIENTATION_6)[:12],
        exif(exif_entry(0x0112, 3, 1, 9 << 16)),
        b"MM\0*" + b"\xff" * 8,
    ],
)
def test_no_orientation_in_exif(data):
    assert images.orientation_of_exif(data) == 1
    assert images.orientation_of_exif(b"Exif\0\0" + data) == 1


def test_texts_of_megabytes(tmp_path):
    text = PIL.PngImagePlugin.PngInfo()
    for name in ("workflow", "prompt"):
        text.add_text(name, name * (1 << 20), zip=True)
        text.add_itxt(name, name * (1 << 20), zip=True)
    path = tmp_path / "photo.png"
    PIL.Image.fromarray(GRAY).save(path, pnginfo=text)
    with pytest.raises(ValueError, match="too large"):
        PIL.Image.open(path).load()
    assert np.array_equal(pixels_of(path)[..., 0], GRAY)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def write_png(path, width, height, kind, rows):
    header = struct.pack(">IIBBBBB", width, height, *kind, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    path.write_bytes(data)
    return path


def zeros_of(num_bytes):
    squeeze = zlib.compressobj(1)
    pieces = [squeeze.compress(bytes(1 << 20)) for _ in range(num_bytes >> 20)]
    return b"".join([*pieces, squeeze.compress(bytes(num_bytes % (1 << 20))), squeeze.flush()])


def test_large(tmp_path):
    """200 million pixels, as some phones have them, are read at half of the size, and without a warning."""
    path = write_png(tmp_path / "phone.png", 16320, 12240, (8, 0), zeros_of(16321 * 12240))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert probe_image(path) == (8160, 6120)
        image = read_image(path)
    assert (image.size, image.getpixel((0, 0))) == ((8160, 6120), (0, 0, 0))
    assert PIL.Image.MAX_IMAGE_PIXELS is not None


def test_large_jpeg(tmp_path):
    # Odd, so that halves are rounded
    picture = PIL.Image.new("L", (9001, 6001), 80)
    picture.save(tmp_path / "photo.jpg", exif=b"Exif\0\0" + exif(ORIENTATION_6))
    assert read_image(tmp_path / "photo.jpg").size == probe_image(tmp_path / "photo.jpg") == (3001, 4501)


def test_too_large(tmp_path):
    path = write_png(tmp_path / "bomb.png", 60000, 60000, (8, 2), b"")
    check_refused(path, "60000 x 60000 pixels, more than 268 million: scale it down")


@pytest.mark.parametrize(
    ("values", "suffix", "expected"),
    [
        (GRAY.astype(np.uint16) * 257, "png", GRAY),
        (GRAY.astype(np.uint16) * 257, "tif", GRAY),
        (GRAY.astype(np.int32), "tif", GRAY),
        (GRAY.astype(np.int32) * 257, "tif", GRAY),
        (GRAY.astype(np.float32) / 255, "tif", GRAY),
        (GRAY.astype(np.float32), "tif", GRAY),
        (GRAY.astype(np.float32) * 257, "tif", GRAY),
        (np.zeros((4, 6), np.float32), "tif", np.zeros((4, 6))),
        (GRAY.astype(np.int32) * 8421504, "tif", GRAY),
    ],
)
def test_deep_gray(values, suffix, expected, tmp_path):
    path = tmp_path / f"gray.{suffix}"
    image = PIL.Image.fromarray(values)
    image.save(path)
    assert np.abs(pixels_of(path) - expected[..., None]).max() <= 1
    assert np.abs(np.asarray(loomvideo_frames.to_image(image, "image")).astype(int) - expected[..., None]).max() <= 1


def test_unsigned_gray_of_32_bits(tmp_path):
    values = (GRAY.astype(np.uint64) * 16843009).astype(np.uint32)
    path = tmp_path / "gray.tif"
    PIL.Image.fromarray(values.view(np.int32)).save(path)
    # Pillow writes them as signed.
    signed, unsigned = (struct.pack("<HHIHH", PIL.ExifTags.Base.SampleFormat, 3, 1, sign, 0) for sign in (2, 1))
    assert path.read_bytes().count(signed) == 1
    path.write_bytes(path.read_bytes().replace(signed, unsigned))
    assert np.abs(pixels_of(tmp_path / "gray.tif") - GRAY[..., None]).max() <= 1


@pytest.mark.parametrize("values", [-GRAY.astype(np.int32), GRAY * np.float32(1.5 / 255), GRAY * np.float32(np.nan)])
def test_gray_without_a_white(values, tmp_path):
    PIL.Image.fromarray(values).save(tmp_path / "gray.tif")
    with pytest.raises(LoomVideoError, match=r"gray.tif` holds a gray image with values from .*: scale them"):
        read_image(tmp_path / "gray.tif")


def half_transparent():
    image = PIL.Image.new("RGBA", (6, 4), (200, 0, 0, 255))
    image.paste((10, 20, 30, 0), (0, 0, 3, 4))
    image.putpixel((5, 0), (0, 0, 0, 127))
    return image


def palette_with_transparency(bytes_too):
    image = PIL.Image.new("P", (6, 4), 1)
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.paste(0, (0, 0, 3, 4))
    image.info["transparency"] = bytes([0, 255]) if bytes_too else 0
    return image


def other_transparencies():
    gray = PIL.Image.fromarray(GRAY)
    gray.info["transparency"] = 10
    deep = PIL.Image.fromarray(GRAY.astype(np.uint16) * 257)
    deep.info["transparency"] = 2570
    colors = PIL.Image.fromarray(GRAY).convert("RGB")
    colors.info["transparency"] = (10, 10, 10)
    return [gray, deep, colors]


def test_transparency(tmp_path):
    """What is transparent lies on white, in files and in images that callers pass."""
    picture = half_transparent()
    for suffix in ("png", "webp", "tif", "avif"):
        picture.save(tmp_path / f"image.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
        pixels = pixels_of(tmp_path / f"image.{suffix}")
        assert np.abs(pixels[:, :2] - 255).max() <= 8
        assert np.abs(pixels[2:, 4:] - (200, 0, 0)).max() <= 40
    assert read_image(tmp_path / "image.png").getpixel((5, 0)) == (128, 128, 128)
    for image in [picture, palette_with_transparency(True), palette_with_transparency(False), picture.convert("RGBa")]:
        read = loomvideo_frames.to_image(image, "image")
        assert read.getpixel((0, 0)) == (255, 255, 255)
        assert read.getpixel((4, 2)) == (200, 0, 0)
    gray = loomvideo_frames.to_image(picture.convert("LA"), "image")
    assert (gray.getpixel((0, 0)), gray.getpixel((4, 2))) == ((255, 255, 255), (60, 60, 60))
    for image in other_transparencies():
        image.save(tmp_path / "key.png")
        for read in (loomvideo_frames.to_image(image, "image"), read_image(tmp_path / "key.png")):
            assert np.asarray(read)[0, :3, 0].tolist() == [0, 255, 20]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_modes(mode, tmp_path):
    picture = PIL.Image.fromarray((upright_picture(8, 8) > 127).astype(np.uint8) * 255)
    read = loomvideo_frames.to_image(picture.convert(mode), "image")
    assert np.abs(np.asarray(read).astype(int) - np.asarray(picture)).max() <= 2


def test_cmyk(tmp_path):
    """As Photoshop writes it: inverted. Pillow does so too, with Adobe's marker."""
    PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    assert b"Adobe" in (tmp_path / "print.jpg").read_bytes()
    assert np.abs(pixels_of(tmp_path / "print.jpg") - (255, 0, 0)).max() <= 2


def with_primaries_swapped(profile):
    """sRGB with red and blue in each other's place, which a reader that knows profiles puts right."""
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    data = bytearray(profile)
    data[red : red + 4], data[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(data)


def test_color_profile(tmp_path):
    srgb = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    swapped = with_primaries_swapped(srgb).replace(b"s\0R\0G\0B", b"s\0W\0A\0P")
    picture = PIL.Image.new("RGB", (8, 8), (200, 30, 10))
    transparent = picture.convert("RGBA")
    for image, profile, expected in [
        (picture, srgb, (200, 30, 10)),
        (picture, swapped, (10, 30, 200)),
        (transparent, swapped, (10, 30, 200)),
        (picture, srgb[:100], (200, 30, 10)),
        (picture, b"no profile", (200, 30, 10)),
        (PIL.Image.new("L", (8, 8), 70), swapped, (70, 70, 70)),
    ]:
        image.save(tmp_path / "photo.png", icc_profile=profile)
        assert np.abs(pixels_of(tmp_path / "photo.png") - expected).max() <= 2


@pytest.mark.parametrize("suffix", ["webp", "png", "avif", "gif"])
def test_animations(suffix, tmp_path):
    """They are clips; where an image is wanted, the first picture."""
    frames = [PIL.Image.new("RGB", (64, 48), (level, level, level)) for level in range(0, 200, 20)]
    path = tmp_path / f"animation.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=[100, 50] * 5, loop=0, **options)
    assert is_animation(path)
    assert not is_image(path)
    assert read_image(path).getpixel((5, 5)) == (0, 0, 0)
    # 0.75 seconds at 24 a second, of which 17 are 4k + 1
    video = read_video(path)
    assert video.shape == (17, 48, 64, 3)
    levels = [0, 20, 20, 40, 40, 60, 60, 80, 80, 100, 100, 120, 120, 140, 140, 160, 180]
    assert np.abs(video[:, 0, 0, 0].astype(int) - levels).max() <= 2
    still = tmp_path / f"still.{suffix}"
    frames[1].save(still)
    assert not is_animation(still)
    assert is_image(still) == (suffix != "gif")


def test_pictures_without_a_time_are_shown_for_a_tenth_of_a_second(tmp_path):
    frames = [PIL.Image.new("RGB", (8, 8), (level, 0, 0)) for level in (0, 90, 180)]
    frames[0].save(tmp_path / "clip.webp", save_all=True, append_images=frames[1:], duration=[0, 0, 50], lossless=True)
    with PIL.Image.open(io.BytesIO(images.animation_as_png(tmp_path / "clip.webp"))) as animation:
        durations = []
        for index in range(animation.n_frames):
            animation.seek(index)
            durations.append(animation.info["duration"])
    assert durations == [100, 100, 50]


@pytest.mark.parametrize(("most", "size"), [(24, (6, 4)), (23, (3, 2)), (6, (3, 2)), (5, (2, 1))])
def test_how_far_large_images_are_scaled_down(most, size, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS_KEPT", most)
    PIL.Image.fromarray(GRAY).save(tmp_path / "photo.png")
    assert read_image(tmp_path / "photo.png").size == probe_image(tmp_path / "photo.png") == size


def test_pages_are_no_animation(tmp_path):
    page = PIL.Image.fromarray(upright_picture())
    for name in ("pages.tif", "phone.mpo"):
        page.save(tmp_path / name, save_all=True, append_images=[page.rotate(180)])
        assert not is_animation(tmp_path / name)
        assert np.abs(pixels_of(tmp_path / name) - upright_picture()).mean() < 3


def test_wrong_names(tmp_path):
    """What a file holds counts, not its name."""
    for name, origin in [("photo.png", FIXTURES / "coffee.jpg"), ("clip.mp4", FIXTURES / "coffee.jpg")]:
        (tmp_path / name).write_bytes(origin.read_bytes())
        assert pixels_of(tmp_path / name).shape == (200, 300, 3)
    (tmp_path / "video.jpg").write_bytes((FIXTURES / "cat.mp4").read_bytes())
    assert not is_image(tmp_path / "video.jpg")
    check_refused(tmp_path / "video.jpg", "since it is a video: choose a png, jpg")


def test_no_images(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.png").write_text("<!doctype html>")
    (tmp_path / "folder.webp").mkdir()
    coffee = (FIXTURES / "coffee.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(coffee[: len(coffee) // 2])
    check_refused(tmp_path / "empty.jpg", "since it is empty: choose a complete file")
    check_refused(tmp_path / "text.png", "since it is of another kind: choose a png, jpg")
    check_refused(tmp_path / "folder.webp", "is a folder: choose a png, jpg")
    check_refused(tmp_path / "missing.avif", r"\(No such file or directory\): choose another file")
    with pytest.raises(LoomVideoError, match=r"half\.jpg .* damaged or incomplete"):
        read_image(tmp_path / "half.jpg")
    for name in ("empty.jpg", "text.png", "folder.webp", "missing.avif", "half.jpg"):
        assert is_image(tmp_path / name)
    for name in ("missing.mp4", "missing", "missing.gif"):
        assert not is_image(tmp_path / name)


def test_raw_photo(tmp_path):
    """Only the preview of a raw photo could be read."""
    tags = PIL.TiffImagePlugin.ImageFileDirectory_v2()
    tags[50706] = b"\1\4\0\0"
    PIL.Image.fromarray(upright_picture()).save(tmp_path / "photo.dng", format="TIFF", tiffinfo=tags)
    with pytest.raises(LoomVideoError, match="raw photo, of which only a preview could be read: develop it"):
        read_image(tmp_path / "photo.dng")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_an_image_without_a_comment_has_no_exif(suffix, tmp_path):
    write_image(tmp_path / f"a.{suffix}", GRAY[..., None].repeat(3, axis=2))
    with PIL.Image.open(tmp_path / f"a.{suffix}") as image:
        assert not image.info.get("exif")
    assert read_comment(tmp_path / f"a.{suffix}") == ""


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_the_same_file(suffix, tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.{suffix}", read_image(FIXTURES / "coffee.jpg"), "what made it")
        assert read_comment(tmp_path / f"{name}.{suffix}") == "what made it"
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_edit(tmp_path, capfd):
    """The command line takes such files for images, and as references."""
    command = ["edit", str(FIELD / "grid.avif"), "make it blue", "--reference", str(FIELD / "neg_rational.jpg")]
    assert main([*command, "-o", str(tmp_path / "out.png"), "--steps", "1"]) == 0, capfd.readouterr().err
    assert read_image(tmp_path / "out.png").size == (nano.SIDE, nano.SIDE)


def damaged(data, rng):
    data = bytearray(data)
    kind = rng.randrange(3)
    if kind == 0:
        return bytes(data[: rng.randrange(len(data))])
    if kind == 1:
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(min(len(data), rng.choice([300, len(data)])))] = rng.randrange(256)
        return bytes(data)
    start = rng.randrange(len(data))
    del data[start : start + rng.randint(1, 200)]
    return bytes(data)


KINDS = {
    "jpg": {},
    "png": {},
    "webp": {},
    "avif": {},
    "bmp": {},
    "gif": {},
    "tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
    "fax.tif": {"compression": "group4"},
    "jpeg.tif": {"compression": "jpeg"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged(kind, tmp_path, capfd):
    """A picture, or one sentence; and nothing that a library prints."""
    with PIL.Image.open(FIXTURES / "coffee.jpg") as image:
        picture = image.resize((96, 64)).convert("1" if kind == "fax.tif" else "RGB")
    path = tmp_path / f"photo.{kind}"
    picture.save(path, exif=exif(ORIENTATION_6), **KINDS[kind])
    whole, rng, sentences = path.read_bytes(), random.Random(0), set()
    assert read_image(path).size in ((64, 96), (96, 64))
    capfd.readouterr()
    for _ in range(60):
        path.write_bytes(damaged(whole, rng))
        for read in (read_image, probe_image, images.read_image_comment, images.animation_as_png):
            try:
                read(path)
            except LoomVideoError as error:
                sentences.add(str(error).replace(str(path), "FILE"))
        is_image(path)
        is_animation(path)
    assert capfd.readouterr() == ("", "")
    assert sentences
    for sentence in sentences:
        assert re.fullmatch(r"`?FILE`? [^\n]*[:,] [^\n]*\.", sentence)
