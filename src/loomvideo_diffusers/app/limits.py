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
"""What a visitor of the page may give and ask for."""

from dataclasses import dataclass
from pathlib import Path

import PIL.Image

from ..errors import LoomVideoError
from ..footage import Footage, survey
from ..media import is_animation, is_image, read_image
from ..media.decoding import open_video
from ..media.images import stored_size
from ..progress import Progress, observed_by


# More frames a second than any clip that people have: a clip's frames are counted before its length is known.
MOST_FRAMES_PER_SECOND = 240

# Of photos that are references, in millions: they are scaled down, whatever their size.
MEGAPIXELS_OF_REFERENCE = 64


@dataclass(frozen=True)
class Limits:
    """
    The limits of one visitor.

    Attributes:
        megabytes: of a file.
        seconds: of a clip, and of a video that is generated.
        megapixels: of a frame of a clip, and of an image that is edited.
        references: images with one prompt.
        steps: of denoising.
        runs: that wait or run at the same time.
    """

    megabytes: float = 500.0
    seconds: float = 60.0
    megapixels: float = 9.0
    references: int = 8
    steps: int = 200
    runs: int = 5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise LoomVideoError(f"The limit of {name} must be more than 0, but is {value}.")

    @property
    def num_bytes(self) -> int:
        return int(self.megabytes * 1e6)

    def check_size(self, path: Path) -> None:
        """
        Looks at how large the pictures of a clip or an image are, before any is decoded.

        Raises:
            LoomVideoError: if they are too large, or it is neither.
        """
        if is_image(path) and not is_animation(path):
            size = stored_size(path)
        else:
            with open_video(path) as reader:
                size = reader.stream.codec_context.width, reader.stream.codec_context.height
        check_pixels(path, size, self.megapixels)

    def read_source(self, path: Path) -> Footage | PIL.Image.Image:
        """
        Surveys a clip, or reads an image.

        Raises:
            LoomVideoError: if it is neither, or is over a limit.
        """
        self.check_size(path)
        if is_image(path) and not is_animation(path):
            return read_image(path)
        most = int(self.seconds * MOST_FRAMES_PER_SECOND)

        def stop(progress: Progress) -> None:
            if progress.num_done > most:
                raise self.too_long(path)

        with observed_by(stop):
            footage = survey(path, show_progress=True)
        check_pixels(path, (footage.width, footage.height), self.megapixels)
        if sum(footage.durations) * footage.time_base > self.seconds + 0.5:
            raise self.too_long(path)
        return footage

    def too_long(self, path: Path) -> LoomVideoError:
        return LoomVideoError(
            f"{path.name} is longer than the {self.seconds:g} seconds that are taken here: cut it, and choose the "
            "part again."
        )


def read_reference(path: Path) -> PIL.Image.Image:
    """
    Reads an image.

    Raises:
        LoomVideoError: if it cannot be read, or has too many pixels.
    """
    check_pixels(path, stored_size(path), MEGAPIXELS_OF_REFERENCE)
    return read_image(path)


def check_pixels(path: Path, size: tuple[int, int], megapixels: float) -> None:
    """Raises a LoomVideoError if a picture has more pixels than that, before it is decoded."""
    width, height = size
    if width * height > megapixels * 1e6:
        raise LoomVideoError(
            f"{path.name} has {width} x {height} pixels, but at most {megapixels:g} million are taken here: choose a "
            "smaller one."
        )
