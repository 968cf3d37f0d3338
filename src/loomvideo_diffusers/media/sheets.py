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
"""Contact sheets: one image that shows what happens in several clips."""

from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from .pixels import Frames, to_images


# Of a label above a row, in pixels
LABEL_HEIGHT = 20


def contact_sheet(
    rows: Sequence[Frames], columns: int = 6, height: int = 128, labels: Sequence[str] | None = None
) -> PIL.Image.Image:
    """
    Shows clips below each other, each as a row of frames spread evenly from its first to its last.

    Args:
        rows: clips, as for `write_video`.
        columns: frames in a row; a shorter clip has fewer.
        height: of the frames, in pixels.
        labels: a line of text for each row, written above it.

    Returns:
        An RGB image as wide as its widest row; what is left beside the others is white.

    Raises:
        LoomVideoError: if frames have wrong shapes or values.
    """
    strips = []
    for row in rows:
        frames = to_images(row)
        chosen = np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)
        width = round(frames[0].width * height / frames[0].height)
        pictures = [np.asarray(frames[index].resize((width, height))) for index in chosen]
        strips.append(PIL.Image.fromarray(np.hstack(pictures)))
    label_height = 0 if labels is None else LABEL_HEIGHT
    row_height = label_height + height
    sheet = PIL.Image.new("RGB", (max(strip.width for strip in strips), row_height * len(strips)), "white")
    draw, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default(LABEL_HEIGHT * 2 / 3)
    for index, strip in enumerate(strips):
        if labels is not None:
            place = (LABEL_HEIGHT // 4, index * row_height + LABEL_HEIGHT // 2)
            draw.text(place, labels[index], fill="black", font=font, anchor="lm")
        sheet.paste(strip, (0, index * row_height + label_height))
    return sheet
