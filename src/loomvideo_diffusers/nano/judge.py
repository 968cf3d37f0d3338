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
"""Measures on pixels whether a result shows what it was to show: no model is asked, and no result is looked up."""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from . import SIDE
from .tasks import Example
from .world import (
    BACKGROUNDS,
    COLORS,
    CORNER_RADIUS,
    DIRECTIONS,
    SHAPES,
    TRAVEL,
    background_pixels,
    draw_mask,
    frame_times,
    render,
)


# A pixel that differs more than this from the background, in any channel from 0 to 255, belongs to a thing.
THRESHOLD = 40
# Fewer pixels than this are no thing.
SMALLEST_AREA = 40
# What fits no shape better than this, intersection over union, is none. Things as drawn fit theirs to 0.8 and more.
SMALLEST_OVERLAP = 0.75
# How far from its place the center of a thing may be in any frame, in pixels
PATH_TOLERANCE = 3.0


@dataclass
class Sight:
    """
    What is seen in a clip, None where nothing is.

    Attributes:
        background: the background that most pixels are nearest to.
        shape, color: of the thing.
        is_outline: whether the thing is one.
        overlap: how well the thing's pixels fit the shape, intersection over union in [0, 1].
        path: the center in each frame, `[F, 2]` as (column, row), NaN where there is no thing.
        direction: of `DIRECTIONS`.
    """

    background: str
    shape: str | None = None
    color: str | None = None
    is_outline: bool = False
    overlap: float = 0.0
    path: np.ndarray | None = None
    direction: str | None = None


def look(frames: np.ndarray, region: np.ndarray | None = None) -> Sight:
    """Says what uint8 `[F, SIDE, SIDE, 3]` shows, if only in a region, bool `[SIDE, SIDE]`."""
    frames = frames.astype(np.float32)
    differences = {name: np.abs(frames - background_pixels(name)).max(axis=-1) for name in BACKGROUNDS}
    background = min(BACKGROUNDS, key=lambda name: np.median(differences[name]))
    masks = differences[background] > THRESHOLD
    if region is not None:
        masks = masks & region
    present = [index for index, mask in enumerate(masks) if mask.sum() >= SMALLEST_AREA]
    if len(present) < len(masks):
        return Sight(background)
    inside = np.concatenate([frame[_core(mask)] for frame, mask in zip(frames, masks)])
    seen_color = np.median(inside, axis=0)
    color = min(COLORS, key=lambda name: np.abs(seen_color - COLORS[name]).sum())
    # On the edge, a pixel belongs to the thing if that covers more than half of it.
    contrast = seen_color - background_pixels(background).astype(np.float32)
    coverage = ((frames - background_pixels(background)) * contrast).sum(axis=-1) / np.square(contrast).sum(axis=-1)
    masks &= coverage > 0.5

    chosen = sorted({0, len(masks) // 2, len(masks) - 1})
    overlaps = {
        (shape, is_outline): np.mean([_fit(masks[index], shape, is_outline)[0] for index in chosen])
        for shape in SHAPES
        for is_outline in (False, True)
    }
    shape, is_outline = max(overlaps, key=lambda each: overlaps[each])
    path = np.array([_fit(mask, shape, is_outline)[1] for mask in masks])
    return Sight(
        background, shape, color, is_outline, float(overlaps[shape, is_outline]), path, _direction(path[-1] - path[0])
    )


def _core(mask: np.ndarray) -> np.ndarray:
    """The pixels whose neighbours belong to the thing too, which have no share of the background; all if none do."""
    padded = np.pad(mask, 1)
    core = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return core if core.any() else mask


def _direction(step: np.ndarray) -> str:
    """The direction that a way of so many columns and rows is nearest to."""
    ways = {name: np.array(way) * TRAVEL for name, way in DIRECTIONS.items()}
    if math.hypot(*step) < TRAVEL / 4:
        return "still"
    moving = [name for name in ways if name != "still"]
    return max(moving, key=lambda name: step @ ways[name] / np.linalg.norm(ways[name]))


@cache
def _measures(shape: str, is_outline: bool) -> tuple[float, float, float]:
    """Of a shape of radius 1: the side of its box, and how far the box's middle is from the center."""
    radius = 30.0
    mask = draw_mask(shape, radius, (SIDE / 2, SIDE / 2), is_outline) > 0.5
    left, top, width, height = _box(mask)
    offset = (left + width / 2 - SIDE / 2, top + height / 2 - SIDE / 2)
    return math.sqrt(width * height) / radius, offset[0] / radius, offset[1] / radius


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, width and height of the box around a mask, without the last few pixels that stand alone."""
    columns, rows = (np.flatnonzero(mask.sum(axis=axis) > 1) for axis in (0, 1))
    if len(columns) == 0 or len(rows) == 0:
        return 0, 0, 1, 1
    return columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1


def _fit(mask: np.ndarray, shape: str, is_outline: bool) -> tuple[float, tuple[float, float]]:
    """How well a shape of the best size fits a mask (intersection over union), and where its center is then."""
    side, offset_x, offset_y = _measures(shape, is_outline)
    left, top, width, height = _box(mask)
    best = (0.0, (math.nan, math.nan))
    middle = (left + width / 2, top + height / 2)
    estimate = math.sqrt(width * height) / side
    for radius in (estimate - 0.5, estimate, estimate + 0.5):
        radius = round(max(radius, 2) * 4) / 4
        center = (middle[0] - offset_x * radius, middle[1] - offset_y * radius)
        template = draw_mask(shape, radius, center, is_outline) > 0.5
        union = np.count_nonzero(mask | template)
        overlap = np.count_nonzero(mask & template) / union
        best = max(best, (overlap, center))
    return best


def judge(example: Example, frames: np.ndarray) -> dict[str, bool | float]:
    """
    Compares a result with what was asked for.

    Args:
        example: what was asked for.
        frames: the result, uint8 `[F, SIDE, SIDE, 3]`.

    Returns:
        What is right (`shape`, `color`, `background`; of an edit `path`, of another video `direction`; of a second
        thing `other`), `success` if all of that is, and measurements: `overlap` with the shape; of an edit
        `path_error`, the farthest in pixels that the center strays from where it should be, and `untouched`, the PSNR
        in dB of what should have stayed as it was.
    """
    source, target = example.source, example.target
    main = target.things[0]
    # A second thing, which was to be added or removed, stands in a corner of its own.
    second = next((scene.things[1] for scene in (target, source) if scene is not None and len(scene.things) > 1), None)
    corner = np.zeros((SIDE, SIDE), bool) if second is None else _square(second.start)
    seen = look(255 - frames if target.style == "inverted" else frames, ~corner)
    right = {
        "shape": (
            seen.shape == main.shape
            and seen.is_outline == (target.style == "outline")
            and seen.overlap >= SMALLEST_OVERLAP
        ),
        "color": seen.color == main.color,
        "background": seen.background == target.background,
    }
    measured = {"overlap": seen.overlap}
    if second is not None:
        expected = (second.shape, second.color) if second in target.things else (None, None)
        other = look(frames, corner)
        right["other"] = (other.shape, other.color) == expected
    if source is not None:
        path = np.array([main.center(time) for time in frame_times(len(frames))])
        error = np.inf if seen.path is None else np.linalg.norm(seen.path - path, axis=1).max()
        measured["path_error"] = float(error)
        right["path"] = bool(error <= PATH_TOLERANCE)
        before, ideal = render(source, len(frames)), render(target, len(frames))
        same = (before == ideal).all(axis=-1)
        if same.any():
            square = np.square(frames[same].astype(np.float32) - before[same]).mean()
            measured["untouched"] = float(10 * np.log10(255**2 / max(square, 1e-3)))
    elif len(frames) > 1:
        right["direction"] = seen.direction == main.direction
    return right | {"success": all(right.values())} | measured


def _square(corner: tuple[float, float]) -> np.ndarray:
    """The pixels around a corner's place, as a region."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    reach = CORNER_RADIUS + 4
    return (np.abs(columns - corner[0]) <= reach) & (np.abs(rows - corner[1]) <= reach)
