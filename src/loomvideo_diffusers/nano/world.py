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
"""The world that LoomVideo-nano knows: coloured shapes that move over a background, drawn from a description."""

import math
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np
import PIL.Image
import PIL.ImageDraw

from . import NUM_FRAMES, SIDE


SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
COLORS = {
    "red": (222, 36, 36),
    "orange": (245, 140, 20),
    "yellow": (250, 220, 40),
    "green": (40, 165, 60),
    "turquoise": (40, 200, 200),
    "blue": (35, 75, 220),
    "purple": (135, 50, 185),
    "pink": (250, 120, 190),
}
BACKGROUNDS = ("white", "black", "striped", "checkered")
STYLES = ("filled", "outline", "inverted")

# The radius of the circle around a shape, in pixels
SIZES = {"small": 15, "medium": 19, "large": 23}

# Which way a shape moves, rows counted downwards
DIRECTIONS = {
    "right": (1, 0),
    "left": (-1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up-right": (1, -1),
    "up-left": (-1, -1),
    "down-right": (1, 1),
    "down-left": (-1, 1),
    "still": (0, 0),
}

# How far a shape moves in a clip, along each axis on which it moves, in pixels
TRAVEL = 24

# How far, along each axis, the middle of a path may lie from the middle of the frame, in pixels. It is little, so that
# words alone say much of how a clip looks: they are learned sooner the more they foretell.
SPREAD = 8

# Where a second shape can be, which does not move
CORNERS = {"top left": (15, 15), "top right": (81, 15), "bottom left": (15, 81), "bottom right": (81, 81)}
CORNER_RADIUS = 11

# Shapes are drawn so many times larger, and placed to such a fraction of a pixel.
SUPERSAMPLING = 4
OUTLINE_WIDTH = 4


@dataclass(frozen=True)
class Thing:
    """
    A shape and its path.

    Attributes:
        shape, color: of `SHAPES` and `COLORS`.
        radius: of the circle around it, in pixels.
        direction: of `DIRECTIONS`.
        start: the center in the first frame, (column, row) in pixels.
    """

    shape: str
    color: str
    radius: int
    direction: str
    start: tuple[float, float]

    def center(self, time: float) -> tuple[float, float]:
        """Where the center is at a time from 0, the first frame, to 1, the last."""
        step = DIRECTIONS[self.direction]
        return self.start[0] + TRAVEL * step[0] * time, self.start[1] + TRAVEL * step[1] * time


@dataclass(frozen=True)
class Scene:
    """Things on a background, the later ones in front, in a style of `STYLES`."""

    things: tuple[Thing, ...]
    background: str
    style: str = "filled"


def is_held_out(shape: str, color: str) -> bool:
    """Whether a shape is never seen in a color while training: of each shape, one of the colors."""
    return (3 * SHAPES.index(shape) + list(COLORS).index(color)) % len(COLORS) == 0


def render(scene: Scene, num_frames: int = NUM_FRAMES) -> np.ndarray:
    """Draws a scene as uint8 `[num_frames, SIDE, SIDE, 3]`; a lone frame shows the middle of the motion."""
    return np.stack([draw_frame(scene, time) for time in frame_times(num_frames)])


def frame_times(num_frames: int) -> np.ndarray:
    """The times of the frames of a clip, from 0 to 1."""
    return np.linspace(0, 1, num_frames) if num_frames > 1 else np.array([0.5])


def draw_frame(scene: Scene, time: float) -> np.ndarray:
    """Draws a scene at a time from 0 to 1 as uint8 `[SIDE, SIDE, 3]`."""
    frame = background_pixels(scene.background).astype(np.float32)
    for thing in scene.things:
        mask = draw_mask(thing.shape, thing.radius, thing.center(time), scene.style == "outline")[..., None]
        frame = frame * (1 - mask) + np.array(COLORS[thing.color], np.float32) * mask
    frame = frame.round().astype(np.uint8)
    return 255 - frame if scene.style == "inverted" else frame


@cache
def background_pixels(name: str) -> np.ndarray:
    """A background as uint8 `[SIDE, SIDE, 3]`."""
    cells = np.arange(SIDE) // 16 % 2
    choice, first, second = {
        "white": (np.zeros((SIDE, SIDE), int), (248, 248, 248), (248, 248, 248)),
        "black": (np.zeros((SIDE, SIDE), int), (14, 14, 18), (14, 14, 18)),
        "striped": (np.repeat(cells[:, None], SIDE, 1), (226, 226, 226), (196, 196, 196)),
        "checkered": (cells[:, None] ^ cells[None], (50, 54, 64), (82, 88, 102)),
    }[name]
    return np.where(choice[..., None], np.array(second, np.uint8), np.array(first, np.uint8))


def draw_mask(shape: str, radius: float, center: tuple[float, float], is_outline: bool = False) -> np.ndarray:
    """How much of each pixel a shape covers: float32 `[SIDE, SIDE]` in [0, 1]."""
    large = _draw_large(shape, radius, is_outline)
    side = large.shape[0]
    left, top = (round(position * SUPERSAMPLING) - side // 2 for position in center)
    # The shape on a canvas of whole pixels, which is then put into the frame
    first_column, first_row = left // SUPERSAMPLING, top // SUPERSAMPLING
    cells = side // SUPERSAMPLING + 2
    canvas = np.zeros((cells * SUPERSAMPLING, cells * SUPERSAMPLING), np.float32)
    row, column = top - first_row * SUPERSAMPLING, left - first_column * SUPERSAMPLING
    canvas[row : row + side, column : column + side] = large
    coverage = canvas.reshape(cells, SUPERSAMPLING, cells, SUPERSAMPLING).mean(axis=(1, 3))
    frame = np.zeros((SIDE + 2 * cells, SIDE + 2 * cells), np.float32)
    row, column = (int(np.clip(first + cells, 0, SIDE + cells)) for first in (first_row, first_column))
    frame[row : row + cells, column : column + cells] = coverage
    return frame[cells:-cells, cells:-cells]


@lru_cache(maxsize=1024)
def _draw_large(shape: str, radius: float, is_outline: bool) -> np.ndarray:
    """The shape alone in the middle of a square that holds it, supersampled."""
    scale = radius * SUPERSAMPLING
    half = math.ceil(scale) + SUPERSAMPLING
    points = [(half + scale * x - 0.5, half + scale * y - 0.5) for x, y in _polygon(shape)]
    image = PIL.Image.new("L", (2 * half, 2 * half))
    PIL.ImageDraw.Draw(image).polygon(points, fill=255)
    mask = np.asarray(image)
    if is_outline:
        width = 2 * OUTLINE_WIDTH * SUPERSAMPLING  # one half of it lies outside
        PIL.ImageDraw.Draw(image).line([*points, *points[:2]], fill=0, width=width, joint="curve")
        mask = mask - np.asarray(image)
    return mask.astype(np.float32) / 255


def _polygon(shape: str) -> list[tuple[float, float]]:
    """The corners of a shape within the unit circle, rows counted downwards, with the middle of its area at 0."""
    if shape == "circle":
        points = [(math.cos(angle), math.sin(angle)) for angle in np.linspace(0, 2 * math.pi, 65)[:-1]]
        return [(0.95 * x, 0.95 * y) for x, y in points]
    if shape == "square":
        return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    if shape == "triangle":
        return [(0, -1.1), (1, 0.55), (-1, 0.55)]
    if shape == "star":
        radii = [1.12, 0.56] * 5
        turns = [math.pi * (index / 5 - 0.5) for index in range(10)]
        return [(radius * math.cos(turn), radius * math.sin(turn)) for radius, turn in zip(radii, turns)]
    if shape == "heart":
        angles = np.linspace(0, 2 * math.pi, 65)[:-1]
        x = np.sin(angles) ** 3
        y = -(13 * np.cos(angles) - 5 * np.cos(2 * angles) - 2 * np.cos(3 * angles) - np.cos(4 * angles)) / 16
        return list(zip(x.tolist(), (y + 0.03).tolist()))
    arm, width = 1.0, 0.38
    return [
        (-width, -arm),
        (width, -arm),
        (width, -width),
        (arm, -width),
        (arm, width),
        (width, width),
        (width, arm),
        (-width, arm),
        (-width, width),
        (-arm, width),
        (-arm, -width),
        (-width, -width),
    ]


def sample_thing(
    rng: np.random.Generator,
    held_out: bool = False,
    shape: str | None = None,
    color: str | None = None,
    size: str | None = None,
    direction: str | None = None,
) -> Thing:
    """Draws what is not given of a thing that stays within the frame, of the pairs held out or of the others."""
    pairs = [
        (a_shape, a_color)
        for a_shape in SHAPES
        for a_color in COLORS
        if is_held_out(a_shape, a_color) == held_out and shape in (None, a_shape) and color in (None, a_color)
    ]
    shape, color = pairs[rng.integers(len(pairs))]
    radius = SIZES[size or str(rng.choice(list(SIZES)))]
    direction = direction or str(rng.choice(list(DIRECTIONS)))
    start = []
    for step in DIRECTIONS[direction]:
        middle = SIDE / 2 + rng.integers(-SPREAD * SUPERSAMPLING, SPREAD * SUPERSAMPLING + 1) / SUPERSAMPLING
        start.append(float(middle - TRAVEL * step / 2))
    return Thing(shape, color, radius, direction, (start[0], start[1]))


def sample_scene(rng: np.random.Generator, held_out: bool = False, **given: str | None) -> Scene:
    """Draws a scene of one thing, on any background."""
    return Scene((sample_thing(rng, held_out, **given),), str(rng.choice(BACKGROUNDS)))


def add_thing(scene: Scene, rng: np.random.Generator) -> tuple[Scene, str]:
    """Puts a still thing of another shape and color into the corner that is farthest from the first thing's path."""
    first = scene.things[0]
    path = [first.center(time) for time in (0, 0.5, 1)]
    corner = max(CORNERS, key=lambda name: min(math.dist(CORNERS[name], center) for center in path))
    while True:
        thing = sample_thing(rng, direction="still")
        if thing.shape != first.shape and thing.color != first.color:
            thing = replace(thing, radius=CORNER_RADIUS, start=CORNERS[corner])
            return replace(scene, things=(*scene.things, thing)), corner
