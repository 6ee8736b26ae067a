"""Line charts for the studies: panels side by side, with error bars and one legend."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 420, 300  # of a panel, px
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 12, 50  # margins of a panel's axes
LEGEND = 36  # height
TEXT_PIXELS = 14
# Okabe and Ito's colours, which the colour-blind can tell apart; grey in place of their yellow.
COLOURS = ("black", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#999999")


class Point(NamedTuple):
    """A mean with its standard error, which is drawn as a bar."""

    x: float
    mean: float
    error: float = 0.0


class Panel(NamedTuple):
    """One chart: names of the axes, and the points of each line by its name."""

    x_name: str
    y_name: str
    lines: dict[str, list[Point]]


class Axes(NamedTuple):
    """The ranges of a panel, and the pixel of its corner at the top left."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    corner: tuple[int, int]

    def pixel(self, x: float, y: float) -> tuple[float, float]:
        """Return the pixel of a value."""
        (x0, x1), (y0, y1), (left, top) = self
        right = (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        down = (y1 - y) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)
        return left + LEFT + right, top + TOP + down


def draw_charts(rows: Sequence[Sequence[Panel]]) -> Image.Image:
    """Draw rows of panels below a legend. A line has the same colour in all panels."""
    names = list(dict.fromkeys(name for row in rows for panel in row for name in panel.lines))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    size = (max(map(len, rows)) * WIDTH, LEGEND + len(rows) * HEIGHT)
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    draw.font = ImageFont.load_default(TEXT_PIXELS)
    draw_legend(draw, colours)
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            draw_panel(draw, panel, colours, (j * WIDTH, LEGEND + i * HEIGHT))
    return page


def draw_legend(draw: ImageDraw.ImageDraw, colours: dict[str, str]) -> None:
    """Draw the name of each line beside its colour."""
    x, y = LEFT, LEGEND // 2
    for name, colour in colours.items():
        draw.line([(x, y), (x + 24, y)], colour, 3)
        draw.text((x + 30, y), name, "black", anchor="lm")
        x += 54 + round(draw.textlength(name))


def draw_panel(
    draw: ImageDraw.ImageDraw, panel: Panel, colours: dict[str, str], corner: tuple[int, int]
) -> None:
    """Draw axes and lines. A panel without points has its names alone."""
    left, top = corner
    middle = left + (LEFT + WIDTH - RIGHT) / 2
    draw.text((middle, top + HEIGHT - 16), panel.x_name, "black", anchor="mm")
    draw.text((left + LEFT + 8, top + TOP + 4), panel.y_name, "black", anchor="lt")
    points = [point for line in panel.lines.values() for point in line]
    if points:
        axes = fit_axes(points, corner)
        draw_axes(draw, axes)
        for name, line in panel.lines.items():
            draw_line(draw, axes, line, colours[name])


def fit_axes(points: Sequence[Point], corner: tuple[int, int]) -> Axes:
    """Return axes that hold all points with their bars: x from 0, y with room for the name."""
    low = min(point.mean - point.error for point in points)
    high = max(point.mean + point.error for point in points)
    height = (high - low) or abs(high) or 1.0
    right = max(point.x for point in points) or 1.0
    return Axes((0.0, 1.04 * right), (low - 0.06 * height, high + 0.16 * height), corner)


def ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers in a range: multiples of 1, 2 or 5 times a power of 10."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def draw_axes(draw: ImageDraw.ImageDraw, axes: Axes) -> None:
    """Draw the two axes, their ticks and faint lines at those of y."""
    (x0, x1), (y0, y1) = axes.x_range, axes.y_range
    for y in ticks(y0, y1):
        draw.line([axes.pixel(x0, y), axes.pixel(x1, y)], "#E0E0E0")
        left, height = axes.pixel(x0, y)
        draw.text((left - 6, height), f"{y:.6g}", "black", anchor="rm")
    for x in ticks(x0, x1):
        middle, bottom = axes.pixel(x, y0)
        draw.line([(middle, bottom), (middle, bottom + 4)], "black")
        draw.text((middle, bottom + 7), f"{x:.6g}", "black", anchor="mt")
    draw.line([axes.pixel(x0, y1), axes.pixel(x0, y0), axes.pixel(x1, y0)], "black")


def draw_line(draw: ImageDraw.ImageDraw, axes: Axes, line: Sequence[Point], colour: str) -> None:
    """Draw the points of a line, their error bars, and the line through them."""
    draw.line([axes.pixel(point.x, point.mean) for point in line], colour, 2)
    for point in line:
        x, y = axes.pixel(point.x, point.mean)
        draw.ellipse([x - 3, y - 3, x + 3, y + 3], colour)
        ends = [axes.pixel(point.x, point.mean + end * point.error) for end in (-1, 1)]
        draw.line(ends, colour)
