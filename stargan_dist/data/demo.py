"""A small data set of drawn animals: three species, told apart by shape and not by colour.

    python -m stargan_dist.data.demo DEST [--expressions]

writes ``DEST/images/<species>/000000.png`` and so on, and ``DEST/factors.jsonl``, which holds the
factors that each image was drawn from, so that a translation can be measured against the truth.
All these animals are awake. With ``--expressions`` the folders are expressions instead, which the
eyes alone show, and each holds animals of all species: a set that knows something else of them.
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
    """What one image is drawn from: species, pose, two colours (RGB, 0 to 255), expression.

    ``x`` and ``y`` place the centre of the head, as fractions of the width and of the height;
    ``radius`` is the head's, as a fraction of the width; ``tilt`` is clockwise, in radians.
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
    """Draws in the coordinates of a head: origin at its centre, unit its radius, y downwards."""

    def __init__(self, factors: Factors, side: int) -> None:
        self.image = Image.new("RGB", (side, side), factors.background)
        self.fur = factors.fur
        self.expression = factors.expression
        self.outline = _mix(factors.fur, INK, 0.7)
        self._canvas = ImageDraw.Draw(self.image)
        self._centre = np.array([factors.x, factors.y]) * side
        self._radius = factors.radius * side
        cos, sin = math.cos(factors.tilt), math.sin(factors.tilt)
        self._rotation = np.array([[cos, sin], [-sin, cos]])

    def shape(self, points: Points, fill: Colour, outline: float = 0.0) -> None:
        """Fill the polygon ``points`` (N, 2); ``outline`` is the width of the line around it."""
        corners = self._pixels(points)
        self._canvas.polygon(corners, fill=fill)
        if outline:
            # Running on past the first corner gives it a joint like that of the others.
            self._stroke(corners + corners[:2], self.outline, outline)

    def line(self, points: Points, colour: Colour, width: float) -> None:
        """Draw the open line through ``points`` (N, 2)."""
        self._stroke(self._pixels(points), colour, width)

    def _stroke(self, pixels: list[tuple[float, float]], colour: Colour, width: float) -> None:
        thickness = max(1, round(width * self._radius))
        self._canvas.line(pixels, fill=colour, width=thickness, joint="curve")

    def _pixels(self, points: Points) -> list[tuple[float, float]]:
        return [(x, y) for x, y in points @ self._rotation * self._radius + self._centre]


def _mix(a: Colour, b: Colour, share: float) -> Colour:
    """Mix the colour that lies ``share`` (0 to 1) of the way from ``a`` to ``b``."""
    red, green, blue = (round(p + (q - p) * share) for p, q in zip(a, b, strict=True))
    return red, green, blue


def _oval(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> Points:
    """List the corners (N, 2) of an ellipse about (x, y), turned clockwise by ``turn`` radians."""
    angle = np.linspace(0, 2 * math.pi, OVAL_CORNERS, endpoint=False)
    along, across = rx * np.cos(angle), ry * np.sin(angle)
    cos, sin = math.cos(turn), math.sin(turn)
    return np.stack([x + along * cos - across * sin, y + along * sin + across * cos], axis=1)


def _both_sides(points: Points) -> tuple[Points, Points]:
    """``points`` and their mirror image on the other side of the face."""
    return points, points * np.array([-1.0, 1.0])


def _awake(pen: Pen) -> None:
    """Dark eyes with a glint."""
    for eye in _both_sides(_oval(0.42, -0.16, 0.18, 0.23)):
        pen.shape(eye, INK)
    for x in (-0.36, 0.48):
        pen.shape(_oval(x, -0.25, 0.06, 0.07), WHITE)


def _asleep(pen: Pen) -> None:
    """Closed lids: arcs that hang down."""
    for lid in _both_sides(_oval(0.42, -0.2, 0.26, 0.22)[: OVAL_CORNERS // 2 + 1]):
        pen.line(lid, INK, 0.15)


def _surprised(pen: Pen) -> None:
    """Wide eyes, white around small pupils."""
    for white in _both_sides(_oval(0.42, -0.24, 0.34, 0.36)):
        pen.shape(white, WHITE, outline=0.08)
    for pupil in _both_sides(_oval(0.42, -0.24, 0.13, 0.15)):
        pen.shape(pupil, INK)


_EYES: dict[str, Callable[[Pen], None]] = {
    "asleep": _asleep, "awake": _awake, "surprised": _surprised,
}  # fmt: skip
EXPRESSIONS: tuple[str, ...] = tuple(_EYES)


def _face(pen: Pen) -> None:
    """What all species share: the head, the eyes and the cheeks."""
    pen.shape(_oval(0, 0, 1.0, 0.92), pen.fur, outline=0.1)
    _EYES[pen.expression](pen)
    for cheek in _both_sides(_oval(0.66, 0.25, 0.17, 0.12)):
        pen.shape(cheek, _mix(pen.fur, PINK, 0.5))


def _cat(pen: Pen) -> None:
    """Pointed ears and whiskers."""
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
    """Drooping ears and a snout."""
    _face(pen)
    for ear in _both_sides(_oval(1.02, 0.1, 0.32, 0.78, turn=-0.25)):
        pen.shape(ear, _mix(pen.fur, INK, 0.3), outline=0.1)
    pen.shape(_oval(0, 0.72, 0.17, 0.26), PINK, outline=0.06)
    pen.shape(_oval(0, 0.45, 0.52, 0.34), _mix(pen.fur, WHITE, 0.7), outline=0.06)
    pen.shape(_oval(0, 0.3, 0.24, 0.16), INK)
    pen.line(np.array([[0, 0.4], [0, 0.76]]), INK, 0.07)


def _rabbit(pen: Pen) -> None:
    """Long upright ears and teeth."""
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


def sample_factors(seed: int, species: str, i: int) -> Factors:
    """The factors of image ``i`` of a species; they depend on no other image."""
    return _look(np.random.default_rng([seed, SPECIES.index(species), i]), species, "awake")


def sample_expression(seed: int, expression: str, i: int) -> Factors:
    """The factors of image ``i`` with an expression, of any species: none is one of the above."""
    rng = np.random.default_rng([seed, len(SPECIES) + EXPRESSIONS.index(expression), i])
    return _look(rng, SPECIES[rng.integers(len(SPECIES))], expression)


def _look(rng: np.random.Generator, species: str, expression: str) -> Factors:
    """Draw a pose and colours."""
    x, y = rng.uniform(0.32, 0.68), rng.uniform(0.5, 0.74)
    radius, tilt = rng.uniform(0.2, 0.245), rng.uniform(-0.2, 0.2)
    hue = rng.uniform()
    fur = _rgb(hue, rng.uniform(0.45, 0.85), rng.uniform(0.7, 0.95))
    # A hue well away from that of the fur, and pale, so that the outline stands out.
    background = _rgb(hue + rng.uniform(0.25, 0.75), rng.uniform(0.1, 0.35), rng.uniform(0.85, 1))
    return Factors(species, x, y, radius, tilt, fur, background, expression)


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    """A colour from its hue (in turns), saturation and value (both 0 to 1)."""
    red, green, blue = (round(255 * c) for c in colorsys.hsv_to_rgb(hue % 1, saturation, value))
    return red, green, blue


def draw(factors: Factors, size: int) -> Image.Image:
    """Draw the animal as an RGB image of ``size`` x ``size`` pixels."""
    pen = Pen(factors, size * OVERSAMPLING)
    _DRAWINGS[factors.species](pen)
    return pen.image.reduce(OVERSAMPLING)


def write_dataset(
    dest: Path, count: int, size: int, seed: int, *, expressions: bool = False
) -> None:
    """Write ``count`` images of each domain, and their factors, to the new folder ``dest``.

    The domains are the species, or the expressions.
    """
    if count < 1 or size < 1:
        raise UserError(f"count and size must be at least 1, not {count} and {size}")
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UserError(f"{dest} exists already and is not an empty folder")
    domains, sample = (EXPRESSIONS, sample_expression) if expressions else (SPECIES, sample_factors)
    partial = dest.with_name(dest.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for domain in domains:
        (partial / "images" / domain).mkdir(parents=True)
    with (
        (partial / "factors.jsonl").open("w", encoding="utf-8") as lines,
        progress_bar(count * len(domains), "images", description="drawing") as progress,
    ):
        for domain in domains:
            for i in range(count):
                factors = sample(seed, domain, i)
                file = f"{domain}/{i:06d}.png"
                draw(factors, size).save(partial / "images" / file)
                lines.write(json.dumps({"file": file, **asdict(factors)}) + "\n")
                progress.update(1)
    partial.rename(dest)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: where to write, what, and how many images of which size."""
    parser = argparse.ArgumentParser(description="Draw a data set of cats, dogs and rabbits.")
    parser.add_argument("dest", type=Path, help="a folder that is new or empty")
    parser.add_argument("--count", type=int, default=1200, help="images of each domain")
    parser.add_argument("--size", type=int, default=64, help="width and height in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--expressions", action="store_true", help="a folder for each expression, not each species"
    )
    options = parser.parse_args(argv)
    write_dataset(
        options.dest, options.count, options.size, options.seed, expressions=options.expressions
    )


if __name__ == "__main__":
    run_command(main)
