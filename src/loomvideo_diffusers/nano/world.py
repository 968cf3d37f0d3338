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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TypeVar

import numpy as np
import PIL.Image
import PIL.ImageDraw

from . import NUM_FRAMES, SIDE


Choice = TypeVar("Choice")

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
# By name, the colors of the two kinds of cells that a background is made of
CELLS = {
    "white": ((248, 248, 248), (248, 248, 248)),
    "black": ((14, 14, 18), (14, 14, 18)),
    "striped": ((226, 226, 226), (196, 196, 196)),
    "checkered": ((50, 54, 64), (82, 88, 102)),
}
CELLS |= {name: (color, color) for name, color in COLORS.items()}
BACKGROUNDS = tuple(CELLS)
CELL_SIDE = 16

# The radius of the circle around a shape, in pixels
SIZES = {"small": 12, "medium": 15, "large": 21}

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

# Where in a frame, as shares of its width and height
PLACES = {
    "top left": (0.2, 0.2),
    "top": (0.5, 0.2),
    "top right": (0.8, 0.2),
    "left": (0.2, 0.5),
    "middle": (0.5, 0.5),
    "right": (0.8, 0.5),
    "bottom left": (0.2, 0.8),
    "bottom": (0.5, 0.8),
    "bottom right": (0.8, 0.8),
}

# How far a shape moves in a clip, along each axis on which it moves, in pixels
TRAVEL = 20

# How far, along each axis, the middle of a path may lie from its place, in pixels. It is little, so that words alone
# say much of how a clip looks: they are learned sooner the more they foretell.
SPREAD = 5

# What is always free around a thing, in pixels
CLEARANCE = 3

# Width, height and frames of clips, and of every hundred how many have them
FORMATS = {(SIDE, SIDE, NUM_FRAMES): 70, (128, 96, NUM_FRAMES): 18, (SIDE, SIDE, 33): 8, (128, 96, 33): 4}

# Of every hundred scenes, how many have so many things
NUM_THINGS = {1: 60, 2: 27, 3: 13}

# How often a lone thing is elsewhere than in the middle
ELSEWHERE = 0.3

# Shapes are drawn so many times larger, and placed to such a fraction of a pixel.
SUPERSAMPLING = 4
OUTLINE_WIDTH = 4


@dataclass(frozen=True)
class Thing:
    """
    A shape and its path.

    Attributes:
        shape, color, size, direction: of `SHAPES`, `COLORS`, `SIZES` and `DIRECTIONS`.
        middle: the center halfway through the clip, (column, row) in pixels.
        is_outline: whether it is drawn as an outline.
    """

    shape: str
    color: str
    size: str
    direction: str
    middle: tuple[float, float]
    is_outline: bool = False

    @property
    def radius(self) -> int:
        """Of the circle around it, in pixels."""
        return SIZES[self.size]

    def center(self, time: float) -> tuple[float, float]:
        """Where the center is at a time from 0, the first frame, to 1, the last."""
        step = DIRECTIONS[self.direction]
        return self.middle[0] + TRAVEL * step[0] * (time - 0.5), self.middle[1] + TRAVEL * step[1] * (time - 0.5)


@dataclass(frozen=True)
class Scene:
    """
    Things on a background.

    Attributes:
        things: none of which touches another.
        background: of `BACKGROUNDS`.
        width, height: in pixels.
        is_inverted: whether all colors are those of a negative.
    """

    things: tuple[Thing, ...]
    background: str
    width: int = SIDE
    height: int = SIDE
    is_inverted: bool = False


def is_held_out(shape: str, color: str) -> bool:
    """Whether a shape is never seen in a color while training: of each shape, one of the colors."""
    return (3 * SHAPES.index(shape) + list(COLORS).index(color)) % len(COLORS) == 0


# By whether they are held out
PAIRS = {
    held_out: [(shape, color) for shape in SHAPES for color in COLORS if is_held_out(shape, color) == held_out]
    for held_out in (False, True)
}


def render(scene: Scene, num_frames: int = NUM_FRAMES) -> np.ndarray:
    """Draws a scene as uint8 `[num_frames, height, width, 3]`; a lone frame shows the middle of the motion."""
    return np.stack([draw_frame(scene, time) for time in frame_times(num_frames)])


def frame_times(num_frames: int) -> np.ndarray:
    """The times of the frames of a clip, from 0 to 1."""
    return np.linspace(0, 1, num_frames) if num_frames > 1 else np.array([0.5])


def draw_frame(scene: Scene, time: float) -> np.ndarray:
    """Draws a scene at a time from 0 to 1 as uint8 `[height, width, 3]`."""
    frame = background_pixels(scene.background, scene.width, scene.height).astype(np.float32)
    for thing in scene.things:
        mask = draw_mask(thing.shape, thing.radius, thing.center(time), thing.is_outline, scene.width, scene.height)
        frame += (np.array(COLORS[thing.color], np.float32) - frame) * mask[..., None]
    frame = frame.round().astype(np.uint8)
    return 255 - frame if scene.is_inverted else frame


@cache
def background_pixels(name: str, width: int = SIDE, height: int = SIDE) -> np.ndarray:
    """A background as uint8 `[height, width, 3]`."""
    columns, rows = (np.arange(side) // CELL_SIDE % 2 for side in (width, height))
    is_second = rows[:, None] ^ (columns[None] if name == "checkered" else np.zeros_like(columns)[None])
    first, second = np.array(CELLS[name], np.uint8)
    return np.where(is_second[..., None], second, first)


def draw_mask(
    shape: str,
    radius: float,
    center: tuple[float, float],
    is_outline: bool = False,
    width: int = SIDE,
    height: int = SIDE,
) -> np.ndarray:
    """How much of each pixel a shape covers: float32 `[height, width]` in [0, 1]."""
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
    frame = np.zeros((height + 2 * cells, width + 2 * cells), np.float32)
    row = int(np.clip(first_row + cells, 0, height + cells))
    column = int(np.clip(first_column + cells, 0, width + cells))
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


def sample_format(rng: np.random.Generator) -> tuple[int, int, int]:
    """Draws the width, the height and the number of frames of a clip."""
    return _weighted(rng, FORMATS)


def sample_scene(
    rng: np.random.Generator,
    held_out: bool = False,
    num_things: int | None = None,
    width: int = SIDE,
    height: int = SIDE,
) -> tuple[Scene, list[str]]:
    """
    Draws a scene of one thing or several, each of another shape and another color.

    Args:
        rng: the randomness.
        held_out: whether the first thing's shape and color are a pair held out; those of the others never are.
        num_things: how many things; by default one to three.
        width, height: of the frames, in pixels.

    Returns:
        The scene, and the place of each thing, of `PLACES`.
    """
    number = num_things or _weighted(rng, NUM_THINGS)
    while True:
        things: list[Thing] = []
        places: list[str] = []
        for _ in range(20):
            is_anywhere = number > 1 or rng.random() < ELSEWHERE
            thing, place = sample_thing(rng, held_out and not things, is_anywhere, width, height)
            is_other = all(thing.shape != other.shape and thing.color != other.color for other in things)
            if is_other and place not in places and keeps_clear(thing, things):
                things.append(thing)
                places.append(place)
            if len(things) == number:
                background = sample_background(rng, things)
                return Scene(tuple(things), background, width, height), places


def sample_thing(
    rng: np.random.Generator, held_out: bool, is_anywhere: bool, width: int, height: int
) -> tuple[Thing, str]:
    """Draws a thing and its place, of the pairs of shape and color held out or of the others."""
    pairs = PAIRS[held_out]
    shape, color = pairs[rng.integers(len(pairs))]
    size, direction = str(rng.choice(list(SIZES))), str(rng.choice(list(DIRECTIONS)))
    place = str(rng.choice(list(PLACES))) if is_anywhere else "middle"
    return Thing(shape, color, size, direction, place_middle(rng, place, size, direction, width, height)), place


def sample_background(rng: np.random.Generator, things: Sequence[Thing]) -> str:
    """Draws a background that none of the things has the color of; half of them are no plain color."""
    others = [name for name in BACKGROUNDS if name not in {thing.color for thing in things}]
    if rng.random() < 0.5:
        others = [name for name in others if name not in COLORS]
    return others[rng.integers(len(others))]


def place_middle(
    rng: np.random.Generator, place: str, size: str, direction: str, width: int = SIDE, height: int = SIDE
) -> tuple[float, float]:
    """Draws the middle of a path near a place, such that the thing stays within the frame."""
    middle = []
    for share, step, side in zip(PLACES[place], DIRECTIONS[direction], (width, height)):
        margin = _margin(size, step)
        position = side * share + rng.integers(-SPREAD * SUPERSAMPLING, SPREAD * SUPERSAMPLING + 1) / SUPERSAMPLING
        middle.append(float(np.clip(position, margin, side - margin)))
    return middle[0], middle[1]


def stays_inside(thing: Thing, width: int, height: int) -> bool:
    """Whether a thing stays within the frame."""
    return all(
        _margin(thing.size, step) <= middle <= side - _margin(thing.size, step)
        for middle, step, side in zip(thing.middle, DIRECTIONS[thing.direction], (width, height))
    )


def _margin(size: str, step: int) -> float:
    """How far from an edge of the frame the middle of a path must be, in pixels, with a pixel to spare."""
    return 1.12 * SIZES[size] + TRAVEL / 2 * abs(step) + 1


def keeps_clear(thing: Thing, others: Sequence[Thing]) -> bool:
    """Whether a thing never comes near one of the others."""
    return all(
        math.dist(thing.center(time), other.center(time)) > thing.radius + other.radius + CLEARANCE
        for other in others
        for time in np.linspace(0, 1, 9)
    )


def _weighted(rng: np.random.Generator, weights: dict[Choice, int]) -> Choice:
    """Draws a key by the weights, of which 100 are given out."""
    return list(weights)[rng.choice(len(weights), p=np.array(list(weights.values())) / 100)]
