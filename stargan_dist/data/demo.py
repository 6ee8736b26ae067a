"""A small synthetic dataset of cats, dogs and rabbits, which differ in shape but not in colour.

    python -m stargan_dist.data.demo DEST [--expressions]

writes ``DEST/images/<species>/000000.png`` and so on, ``DEST/factors.jsonl`` with the factors of
variation of each image, so that translations can be compared with the truth, and
``DEST/landmarks.jsonl`` with the places of the eyes and other parts of the head in each image. All
these animals are awake. With ``--expressions`` there is a folder for each expression instead, with
animals of all species. Expressions differ in the eyes only: the result is a dataset with other
labels for similar images.
"""

import argparse
import colorsys
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from stargan_dist.console.arguments import integer
from stargan_dist.console.progress import progress_bar
from stargan_dist.errors import UserError, run_command

Colour = tuple[int, int, int]
Points = NDArray[np.float64]

OVERSAMPLING = 4
OVAL_CORNERS = 40
WHITE: Colour = (255, 255, 255)
INK: Colour = (38, 30, 36)
PINK: Colour = (244, 158, 170)


@dataclass(frozen=True)
class Factors:
    """The factors of variation of one image.

    Attributes:
        species: one of ``SPECIES``.
        x: horizontal position of the centre of the head, as a fraction of the width.
        y: vertical position of the centre of the head, as a fraction of the height.
        radius: radius of the head, as a fraction of the width.
        tilt: clockwise rotation of the head, in radians.
        fur: RGB, 0 to 255.
        background: RGB, 0 to 255.
        expression: one of ``EXPRESSIONS``.
    """

    species: str
    x: float
    y: float
    radius: float
    tilt: float
    fur: Colour
    background: Colour
    expression: str = "awake"


class Pen:
    """A pen in head coordinates: origin at the head's centre, unit its radius, y downwards."""

    def __init__(self, factors: Factors, side: int) -> None:
        self.image = Image.new("RGB", (side, side), factors.background)
        self.fur = factors.fur
        self.expression = factors.expression
        self.outline = _mix(factors.fur, INK, 0.7)
        self._canvas = ImageDraw.Draw(self.image)
        self._radius = factors.radius * side
        self._factors, self._side = factors, side

    def shape(self, points: Points, fill: Colour, outline: float = 0.0) -> None:
        """Fill the polygon ``points`` (N, 2), with an outline of the given width."""
        corners = self._pixels(points)
        self._canvas.polygon(corners, fill=fill)
        if outline:
            # Continuing past the first corner gives it the same joint as the others.
            self._stroke(corners + corners[:2], self.outline, outline)

    def line(self, points: Points, colour: Colour, width: float) -> None:
        """Draw the open line through ``points`` (N, 2)."""
        self._stroke(self._pixels(points), colour, width)

    def _stroke(self, pixels: list[tuple[float, float]], colour: Colour, width: float) -> None:
        thickness = max(1, round(width * self._radius))
        self._canvas.line(pixels, fill=colour, width=thickness, joint="curve")

    def _pixels(self, points: Points) -> list[tuple[float, float]]:
        return [(x, y) for x, y in to_pixels(self._factors, points, self._side)]


def to_pixels(factors: Factors, points: Points, side: int) -> Points:
    """Return points (N, 2) of head coordinates as x, y in pixels of an image of `side` pixels."""
    cos, sin = math.cos(factors.tilt), math.sin(factors.tilt)
    rotation = np.array([[cos, sin], [-sin, cos]])
    return points @ rotation * (factors.radius * side) + np.array([factors.x, factors.y]) * side


def _mix(a: Colour, b: Colour, weight: float) -> Colour:
    """Interpolate from ``a`` (weight 0) to ``b`` (weight 1)."""
    red, green, blue = (round(p + (q - p) * weight) for p, q in zip(a, b, strict=True))
    return red, green, blue


def _oval(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> Points:
    """Return the corners (N, 2) of an ellipse around (x, y).

    It is rotated clockwise by ``turn`` radians.
    """
    angle = np.linspace(0, 2 * math.pi, OVAL_CORNERS, endpoint=False)
    along, across = rx * np.cos(angle), ry * np.sin(angle)
    cos, sin = math.cos(turn), math.sin(turn)
    return np.stack([x + along * cos - across * sin, y + along * sin + across * cos], axis=1)


def _both_sides(points: Points) -> tuple[Points, Points]:
    """Return ``points`` and their mirror image on the other side of the face."""
    return points, points * np.array([-1.0, 1.0])


def _awake(pen: Pen) -> None:
    """Draw dark eyes with a glint."""
    for eye in _both_sides(_oval(0.42, -0.16, 0.18, 0.23)):
        pen.shape(eye, INK)
    for x in (-0.36, 0.48):
        pen.shape(_oval(x, -0.25, 0.06, 0.07), WHITE)


def _asleep(pen: Pen) -> None:
    """Draw closed lids as arcs that hang down."""
    for lid in _both_sides(_oval(0.42, -0.2, 0.26, 0.22)[: OVAL_CORNERS // 2 + 1]):
        pen.line(lid, INK, 0.15)


def _surprised(pen: Pen) -> None:
    """Draw wide eyes, white around small pupils."""
    for white in _both_sides(_oval(0.42, -0.24, 0.34, 0.36)):
        pen.shape(white, WHITE, outline=0.08)
    for pupil in _both_sides(_oval(0.42, -0.24, 0.13, 0.15)):
        pen.shape(pupil, INK)


_EYES: dict[str, Callable[[Pen], None]] = {
    "asleep": _asleep, "awake": _awake, "surprised": _surprised,
}  # fmt: skip
EXPRESSIONS: tuple[str, ...] = tuple(_EYES)


def _face(pen: Pen) -> None:
    """Draw the parts that all species share: the head, the eyes and the cheeks."""
    pen.shape(_oval(0, 0, 1.0, 0.92), pen.fur, outline=0.1)
    _EYES[pen.expression](pen)
    for cheek in _both_sides(_oval(0.66, 0.25, 0.17, 0.12)):
        pen.shape(cheek, _mix(pen.fur, PINK, 0.5))


def _cat(pen: Pen) -> None:
    """Draw pointed ears and whiskers."""
    for ear in _both_sides(np.array([[0.98, -0.15], [0.95, -1.5], [0.12, -0.88]])):
        pen.shape(ear, pen.fur, outline=0.1)
    for ear in _both_sides(np.array([[0.82, -0.5], [0.82, -1.2], [0.4, -0.85]])):
        pen.shape(ear, PINK)
    _face(pen)
    for slope in (-0.12, 0.06, 0.24):
        for whisker in _both_sides(np.array([[0.5, 0.38 + slope / 2], [1.4, 0.35 + 1.4 * slope]])):
            pen.line(whisker, pen.outline, 0.07)
    pen.shape(np.array([[-0.14, 0.2], [0.14, 0.2], [0, 0.36]]), INK)
    for smile in _both_sides(np.array([[0, 0.34], [0.07, 0.5], [0.2, 0.54], [0.32, 0.44]])):
        pen.line(smile, INK, 0.07)


def _dog(pen: Pen) -> None:
    """Draw drooping ears and a snout."""
    _face(pen)
    for ear in _both_sides(_oval(1.02, 0.1, 0.32, 0.78, turn=-0.25)):
        pen.shape(ear, _mix(pen.fur, INK, 0.3), outline=0.1)
    pen.shape(_oval(0, 0.72, 0.17, 0.26), PINK, outline=0.06)
    pen.shape(_oval(0, 0.45, 0.52, 0.34), _mix(pen.fur, WHITE, 0.7), outline=0.06)
    pen.shape(_oval(0, 0.3, 0.24, 0.16), INK)
    pen.line(np.array([[0, 0.4], [0, 0.76]]), INK, 0.07)


def _rabbit(pen: Pen) -> None:
    """Draw long upright ears and teeth."""
    for ear in _both_sides(_oval(0.45, -1.3, 0.3, 0.78, turn=0.12)):
        pen.shape(ear, pen.fur, outline=0.1)
    for ear in _both_sides(_oval(0.45, -1.25, 0.14, 0.55, turn=0.12)):
        pen.shape(ear, PINK)
    _face(pen)
    for tooth in _both_sides(np.array([[0, 0.42], [0.23, 0.42], [0.2, 0.82], [0, 0.82]])):
        pen.shape(tooth, WHITE, outline=0.06)
    pen.line(np.array([[-0.42, 0.38], [-0.2, 0.46], [0.2, 0.46], [0.42, 0.38]]), INK, 0.07)
    pen.shape(_oval(0, 0.26, 0.17, 0.12), PINK, outline=0.06)


_DRAWINGS: dict[str, Callable[[Pen], None]] = {"cat": _cat, "dog": _dog, "rabbit": _rabbit}
SPECIES: tuple[str, ...] = tuple(_DRAWINGS)


# Landmarks, in head coordinates; left is left in the image. Those of the ears are their middles:
# the tips may be outside the image.
_EYE_PLACES = ((-0.42, -0.16), (0.42, -0.16))
_CHIN_AND_JAW = ((0.0, 0.92), (-0.5, 0.8), (0.5, 0.8))
_NOSES = {"cat": (0.0, 0.27), "dog": (0.0, 0.3), "rabbit": (0.0, 0.26)}
_EARS = {"cat": (0.68, -0.84), "dog": (1.02, 0.1), "rabbit": (0.45, -1.3)}
LANDMARKS = (
    "left eye", "right eye", "nose", "chin", "left jaw", "right jaw", "left ear", "right ear",
)  # fmt: skip


def landmarks(factors: Factors, size: int) -> Points:
    """Return the landmarks (8, 2) of an image of `size` pixels as x, y, in their order."""
    x, y = _EARS[factors.species]
    points = [*_EYE_PLACES, _NOSES[factors.species], *_CHIN_AND_JAW, (-x, y), (x, y)]
    return to_pixels(factors, np.array(points), size)


def sample_factors(seed: int, species: str, i: int) -> Factors:
    """Return the factors of image ``i`` of a species, independent of all other images."""
    return _draw_factors(np.random.default_rng([seed, SPECIES.index(species), i]), species, "awake")


def sample_expression(seed: int, expression: str, i: int) -> Factors:
    """Return the factors of image ``i`` with an expression, of a random species.

    No such image is one of ``sample_factors``.
    """
    rng = np.random.default_rng([seed, len(SPECIES) + EXPRESSIONS.index(expression), i])
    return _draw_factors(rng, SPECIES[rng.integers(len(SPECIES))], expression)


def _draw_factors(rng: np.random.Generator, species: str, expression: str) -> Factors:
    """Draw a random pose and random colours."""
    x, y = rng.uniform(0.32, 0.68), rng.uniform(0.5, 0.74)
    radius, tilt = rng.uniform(0.2, 0.245), rng.uniform(-0.2, 0.2)
    hue = rng.uniform()
    fur = _rgb(hue, rng.uniform(0.45, 0.85), rng.uniform(0.7, 0.95))
    # The hue is far from that of the fur, and pale, so that the outline stands out.
    background = _rgb(hue + rng.uniform(0.25, 0.75), rng.uniform(0.1, 0.35), rng.uniform(0.85, 1))
    return Factors(species, x, y, radius, tilt, fur, background, expression)


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    """Convert hue (in turns), saturation and value (both 0 to 1) to RGB, 0 to 255."""
    red, green, blue = (round(255 * c) for c in colorsys.hsv_to_rgb(hue % 1, saturation, value))
    return red, green, blue


def draw(factors: Factors, size: int) -> Image.Image:
    """Draw an animal as an RGB image of ``size`` × ``size`` pixels."""
    pen = Pen(factors, size * OVERSAMPLING)
    _DRAWINGS[factors.species](pen)
    return pen.image.reduce(OVERSAMPLING)


def write_dataset(
    dest: Path, count: int, size: int, seed: int, *, expressions: bool = False
) -> None:
    """Write ``count`` images of each domain, factors and landmarks to the new folder ``dest``.

    The domains are the species, or with ``expressions`` the expressions.

    Raises:
        UserError: ``dest`` exists and is not an empty folder.
    """
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UserError(f"{dest} exists already and is not an empty folder: name another one")
    domains, sample = (EXPRESSIONS, sample_expression) if expressions else (SPECIES, sample_factors)
    partial = dest.with_name(dest.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for domain in domains:
        (partial / "images" / domain).mkdir(parents=True)
    with (
        (partial / "factors.jsonl").open("w", encoding="utf-8") as lines,
        (partial / "landmarks.jsonl").open("w", encoding="utf-8") as landmark_lines,
        progress_bar(count * len(domains), "images", description="drawing") as progress,
    ):
        for domain in domains:
            for i in range(count):
                factors = sample(seed, domain, i)
                file = f"{domain}/{i:06d}.png"
                draw(factors, size).save(partial / "images" / file)
                lines.write(json.dumps({"file": file, **asdict(factors)}) + "\n")
                points = landmarks(factors, size).round(3).tolist()
                landmark_lines.write(json.dumps({"file": file, "points": points}) + "\n")
                progress.update(1)
    partial.rename(dest)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m stargan_dist.data.demo",
        description="Draw a synthetic dataset of cats, dogs and rabbits: a folder of PNG images "
        "for each domain, DEST/images/DOMAIN, and the factors and landmarks of each image, "
        "DEST/factors.jsonl and DEST/landmarks.jsonl.",
    )
    parser.add_argument(
        "dest", metavar="DEST", type=Path, help="output folder, which must be new or empty"
    )
    parser.add_argument(
        "--count",
        type=integer(1),
        default=1200,
        help="images per domain (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        type=integer(1),
        default=64,
        help="width and height, in pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=integer(0),
        default=0,
        help="seed of all random factors (default: %(default)s)",
    )
    parser.add_argument(
        "--expressions",
        action="store_true",
        help=f"use expressions as domains ({', '.join(EXPRESSIONS)}), with animals of all species, "
        f"instead of species ({', '.join(SPECIES)})",
    )
    options = parser.parse_args(argv)
    write_dataset(
        options.dest, options.count, options.size, options.seed, expressions=options.expressions
    )


if __name__ == "__main__":
    run_command(main)
