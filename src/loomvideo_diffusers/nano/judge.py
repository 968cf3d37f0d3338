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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np

from . import SIDE
from .tasks import Example
from .world import (
    BACKGROUNDS,
    COLORS,
    DIRECTIONS,
    SHAPES,
    SIZES,
    TRAVEL,
    Scene,
    Thing,
    background_pixels,
    draw_mask,
    frame_times,
    render,
)


# A pixel that differs more than this from the background, in any channel from 0 to 255, belongs to a thing.
THRESHOLD = 40
# Fewer pixels than this are no thing, and what is left of one that was removed or lies beside one.
SMALLEST_AREA = 40
# What fits no shape better than this, intersection over union, is none. Things as drawn fit theirs to 0.8 and more.
SMALLEST_OVERLAP = 0.75
# How far from its place the center of a thing may be in any frame of an edit, in pixels
PATH_TOLERANCE = 3.0
# How far it may be from the place that words name, along each axis, halfway through the video
PLACE_TOLERANCE = 14.0
# What lies no farther than this from where the pixels of a thing should be belongs to it, in pixels.
REACH = 6.0


@dataclass
class Sight:
    """
    What is seen of a thing in a clip.

    Attributes:
        shape, color, size, direction: of the world's.
        is_outline: whether it is one.
        overlap: how well its pixels fit the shape, intersection over union in [0, 1].
        path: the center in each frame, `[F, 2]` as (column, row).
        constancy: how well its pixels fit those of the next frame, moved, intersection over union in [0, 1].
    """

    shape: str
    color: str
    size: str
    direction: str
    is_outline: bool
    overlap: float
    path: np.ndarray
    constancy: float


def look(frames: np.ndarray) -> tuple[str, Sight | None]:
    """Says what uint8 `[F, H, W, 3]` shows: the background, and the thing if there is one."""
    background = _nearest_background(frames)
    masks = _differs(frames, background)
    return background, _look_at(frames, background, masks)


def judge(example: Example, frames: np.ndarray) -> dict[str, bool | float]:
    """
    Compares a result with what was asked for.

    Args:
        example: what was asked for.
        frames: the result, uint8 `[F, H, W, 3]`.

    Returns:
        What is right of all things (`shape`, `color`, `size`; of an edit `path`, of another result `place` and
        `direction`), `background`, `nothing else`, and `success` if all of that is; and measurements: `overlap`, the
        lowest with a shape; of a video `constancy of filled star` and the like, how well a thing keeps its form over
        time as a share of how well it does if it is drawn; of an edit `path_error`, the farthest in pixels that a
        center strays from where it should be, and `untouched`, the PSNR in dB of what should have stayed as it was.
    """
    source, target = example.source, example.target
    plain = 255 - frames if target.is_inverted else frames
    background = _nearest_background(plain)
    masks = _differs(plain, background)
    regions, elsewhere = _divide(target.things, masks, reach=math.inf if source is None else REACH)
    sights = [_look_at(plain, background, masks & region) for region in regions]
    seen = list(zip(target.things, sights))

    right = {
        "shape": all(
            sight is not None
            and (sight.shape, sight.is_outline) == (thing.shape, thing.is_outline)
            and sight.overlap >= SMALLEST_OVERLAP
            for thing, sight in seen
        ),
        "color": all(sight is not None and sight.color == thing.color for thing, sight in seen),
        "size": all(sight is not None and sight.size == thing.size for thing, sight in seen),
        "background": background == target.background,
        "nothing else": bool((masks & elsewhere).sum(axis=(1, 2)).max() < SMALLEST_AREA),
    }
    measured = {"overlap": min((sight.overlap for sight in sights if sight is not None), default=1.0)}
    if len(frames) > 1:
        for thing, sight, ideal in zip(target.things, sights, drawn_constancies(target, len(frames))):
            name = f"constancy of {'outlined' if thing.is_outline else 'filled'} {thing.shape}"
            measured[name] = (0.0 if sight is None else sight.constancy) / ideal
    if source is None:
        half = len(frames) // 2
        right["place"] = all(
            sight is not None and bool((np.abs(sight.path[half] - thing.middle) <= PLACE_TOLERANCE).all())
            for thing, sight in seen
        )
        if len(frames) > 1:
            right["direction"] = all(sight is not None and sight.direction == thing.direction for thing, sight in seen)
        return right | {"success": all(right.values())} | measured

    times = frame_times(len(frames))
    errors = [
        np.inf if sight is None else float(np.linalg.norm(sight.path - _path(thing, times), axis=1).max())
        for thing, sight in seen
    ]
    measured["path_error"] = max(errors, default=0.0)
    right["path"] = measured["path_error"] <= PATH_TOLERANCE
    before, after = render(source, len(frames)), render(target, len(frames))
    same = (before == after).all(axis=-1)
    if same.any():
        square = np.square(frames[same].astype(np.float32) - before[same]).mean()
        measured["untouched"] = float(10 * np.log10(255**2 / max(square, 1e-3)))
    return right | {"success": all(right.values())} | measured


@lru_cache(maxsize=1024)
def drawn_constancies(scene: Scene, num_frames: int) -> list[float]:
    """How well each thing of a scene keeps its form over time if it is drawn, intersection over union."""
    plain = render(replace(scene, is_inverted=False), num_frames)
    masks = _differs(plain, scene.background)
    regions, _ = _divide(scene.things, masks, REACH)
    sights = [_look_at(plain, scene.background, masks & region) for region in regions]
    return [1.0 if sight is None else sight.constancy for sight in sights]


def _nearest_background(frames: np.ndarray) -> str:
    """The background that most pixels are nearest to."""
    height, width = frames.shape[1:3]
    pixels = frames[:: max(1, len(frames) // 4)].astype(np.float32)
    return min(
        BACKGROUNDS, key=lambda name: np.median(np.abs(pixels - background_pixels(name, width, height)).max(axis=-1))
    )


def _differs(frames: np.ndarray, background: str) -> np.ndarray:
    """The pixels that are no background, bool `[F, H, W]`."""
    height, width = frames.shape[1:3]
    return np.abs(frames.astype(np.float32) - background_pixels(background, width, height)).max(axis=-1) > THRESHOLD


def _divide(things: Sequence[Thing], masks: np.ndarray, reach: float) -> tuple[list[np.ndarray], np.ndarray]:
    """
    Divides frames among things, bool `[F, H, W]`.

    Returns:
        The region of each thing, the pixels that are nearer to its circle than to those of the others and no farther
        than `reach` from it; and the pixels of no region.
    """
    num_frames, height, width = masks.shape
    if not things:
        return [], np.ones_like(masks)
    rows, columns = np.mgrid[:height, :width] + 0.5
    distances = np.stack(
        [
            np.stack(
                [np.hypot(columns - x, rows - y) - thing.radius for x, y in _path(thing, frame_times(num_frames))]
            )
            for thing in things
        ]
    )
    nearest = distances.argmin(axis=0)
    is_near = distances.min(axis=0) <= reach
    return [(nearest == place) & is_near for place in range(len(things))], ~is_near


def _path(thing: Thing, times: np.ndarray) -> np.ndarray:
    return np.array([thing.center(time) for time in times])


def _look_at(frames: np.ndarray, background: str, masks: np.ndarray) -> Sight | None:
    """What is seen of a thing whose pixels are masked, or None if it is not in all frames."""
    if min(mask.sum() for mask in masks) < SMALLEST_AREA:
        return None
    frames = frames.astype(np.float32)
    ground = background_pixels(background, frames.shape[2], frames.shape[1]).astype(np.float32)
    inside = np.concatenate([frame[_core(mask)] for frame, mask in zip(frames, masks)])
    seen_color = np.median(inside, axis=0)
    color = min(COLORS, key=lambda name: np.abs(seen_color - COLORS[name]).sum())
    # On the edge, a pixel belongs to the thing if that covers more than half of it.
    contrast = seen_color - ground
    coverage = ((frames - ground) * contrast).sum(axis=-1) / np.square(contrast).sum(axis=-1)
    masks = masks & (coverage > 0.5)

    chosen = sorted({0, len(masks) // 2, len(masks) - 1})
    fits = {
        (shape, is_outline): [_fit(masks[index], shape, is_outline) for index in chosen]
        for shape in SHAPES
        for is_outline in (False, True)
    }
    overlaps = {form: float(np.mean([overlap for overlap, _, _ in of_form])) for form, of_form in fits.items()}
    shape, is_outline = max(overlaps, key=lambda form: overlaps[form])
    radius = np.median([radius for _, _, radius in fits[shape, is_outline]])
    path = np.array([_fit(mask, shape, is_outline)[1] for mask in masks])
    return Sight(
        shape,
        color,
        min(SIZES, key=lambda name: abs(math.log(SIZES[name] / radius))),
        _direction(path[-1] - path[0]),
        is_outline,
        overlaps[shape, is_outline],
        path,
        _constancy(masks, path),
    )


def _constancy(masks: np.ndarray, path: np.ndarray) -> float:
    """The mean intersection over union of each mask with the next one, moved by whole pixels."""
    overlaps = [1.0] * (len(masks) == 1)
    for mask, following, step in zip(masks, masks[1:], np.diff(path, axis=0)):
        if np.isnan(step).any():
            return 0.0
        moved = np.roll(mask, [round(step[1]), round(step[0])], axis=(0, 1))
        overlaps.append(float((moved & following).sum() / max((moved | following).sum(), 1)))
    return float(np.mean(overlaps))


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


def _fit(mask: np.ndarray, shape: str, is_outline: bool) -> tuple[float, tuple[float, float], float]:
    """How well a shape of the best size fits a mask (intersection over union), and its center and radius then."""
    side, offset_x, offset_y = _measures(shape, is_outline)
    left, top, width, height = _box(mask)
    best = (0.0, (math.nan, math.nan), 2.0)
    rows, columns = mask.shape
    middle = (left + width / 2, top + height / 2)
    estimate = math.sqrt(width * height) / side
    for radius in (estimate - 0.5, estimate, estimate + 0.5):
        radius = round(max(radius, 2) * 4) / 4
        center = (middle[0] - offset_x * radius, middle[1] - offset_y * radius)
        template = draw_mask(shape, radius, center, is_outline, columns, rows) > 0.5
        union = np.count_nonzero(mask | template)
        overlap = np.count_nonzero(mask & template) / union
        best = max(best, (overlap, center, radius))
    return best
