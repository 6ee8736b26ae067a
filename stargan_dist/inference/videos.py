"""Videos of translations that change their style: a frame at a time, of any length.

Keyframes are vectors that G is conditioned on: styles of references, of latents, or of several
domains. The frames between two keyframes interpolate them. Sources are encoded once.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from stargan_dist.inference.pictures import Fitted, to_image_of_output
from stargan_dist.inference.translator import Translator

EASINGS: dict[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "smooth": lambda t: t * t * (3 - 2 * t),
}


def linear(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Interpolate vectors (dim,) linearly."""
    return torch.lerp(a, b, weight)


def spherical(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Interpolate directions of vectors (dim,) along a great circle, and lengths linearly."""
    lengths = a.norm(), b.norm()
    if not all(lengths):
        return linear(a, b, weight)
    cosine = (a / lengths[0] @ (b / lengths[1])).clamp(-1, 1)
    angle = torch.arccos(cosine)
    if angle.sin() < 1e-4:  # the same or the opposite direction
        return linear(a, b, weight)
    parts = torch.sin((1 - weight) * angle), torch.sin(weight * angle)
    direction = (parts[0] * a / lengths[0] + parts[1] * b / lengths[1]) / angle.sin()
    return direction * torch.lerp(*lengths, weight)


INTERPOLATIONS = {"linear": linear, "spherical": spherical}


@dataclass(frozen=True)
class Motion:
    """How a video moves between its keyframes.

    Attributes:
        frames: from a keyframe to the next, without the next.
        hold: further frames on each keyframe.
        easing: a key of `EASINGS`.
        interpolation: a key of `INTERPOLATIONS`.
        loop: the last keyframe is followed by the first.
    """

    frames: int = 30
    hold: int = 0
    easing: str = "smooth"
    interpolation: str = "linear"
    loop: bool = False

    def weights(self) -> list[float]:
        """Return the weight of the second keyframe in each frame of a transition."""
        eased = [EASINGS[self.easing](i / self.frames) for i in range(self.frames)]
        return [0.0] * self.hold + eased


# The authors' transition: its easing begins and ends near 0 and 1, then the style rests.
AUTHORS_WEIGHTS = [0.0, *(1 / (1 + math.exp(5 - i / 2)) for i in range(20)), *[1.0] * 10]
AUTHORS_REST = 10  # frames on the last style
AUTHORS_MARGIN = 32  # px, right of the references


class Frame(NamedTuple):
    """A moment of a video.

    Attributes:
        begin: number of the keyframe that it comes from.
        end: number of the keyframe that it goes to.
        weight: of the latter.
    """

    begin: int
    end: int
    weight: float


def plan(count: int, motion: Motion) -> list[Frame]:
    """Return the moments of a video of `count` keyframes.

    It ends on the last one, or in a loop on the first.
    """
    order = [*range(count), *[0] * motion.loop]
    frames = [Frame(*pair, weight) for pair in pairwise(order) for weight in motion.weights()]
    return frames + [Frame(order[-1], order[-1], 0.0)] * (motion.hold + 1)


def plan_of_authors(domains: Sequence[int]) -> list[Frame]:
    """Return the moments of the authors' video of references; a change of domain is a cut."""
    pairs = [(i, i + 1) for i in range(len(domains) - 1) if domains[i] == domains[i + 1]]
    frames = [Frame(*pair, weight) for pair in pairs for weight in AUTHORS_WEIGHTS]
    return frames + frames[-1:] * AUTHORS_REST


Layout = Callable[[Frame, Sequence[Image.Image], Sequence[Image.Image]], Image.Image]


def grid_layout(
    _frame: Frame, sources: Sequence[Image.Image], outputs: Sequence[Image.Image]
) -> Image.Image:
    """Draw the sources, and below each its output."""
    return _rows([sources, outputs])


def _rows(rows: Sequence[Sequence[Image.Image]], left: int = 0) -> Image.Image:
    """Draw rows of images of one size, right of an empty column."""
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (left + width * len(rows[0]), height * len(rows)))
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            sheet.paste(image, (left + column * width, row * height))
    return sheet


def column_of_authors(size: int) -> int:
    """Return the width of the references and their margin in the authors' layout, in pixels."""
    return size + AUTHORS_MARGIN


def layout_of_authors(references: Sequence[Image.Image]) -> Layout:
    """Return the authors' layout: two references slide upwards, left of sources and outputs."""

    def draw(
        frame: Frame, sources: Sequence[Image.Image], outputs: Sequence[Image.Image]
    ) -> Image.Image:
        width, height = sources[0].size
        sheet = _rows([sources, outputs], left=column_of_authors(width))
        top = int(height * (1 - frame.weight))
        sheet.paste(references[frame.begin], (0, top))
        sheet.paste(references[frame.end], (0, top + height))
        return sheet

    return draw


def to_picture(fitted: Fitted) -> Image.Image:
    """Return a fitted picture as an image."""
    return Image.fromarray(fitted.pixels.permute(1, 2, 0).contiguous().numpy())


def between(keyframes: Tensor, frame: Frame, style_dim: int, interpolation: str) -> Tensor:
    """Return what G is conditioned on in a frame, (conditioning_dim,).

    Args:
        keyframes: (K, conditioning_dim): a label of any length, then a style.
        frame: the moment.
        style_dim: length of the style; 0: the label alone.
        interpolation: of the styles, a key of `INTERPOLATIONS`. Labels are interpolated linearly.
    """
    begin, end = keyframes[frame.begin], keyframes[frame.end]
    label_dim = len(begin) - style_dim
    label = linear(begin[:label_dim], end[:label_dim], frame.weight)
    style = INTERPOLATIONS[interpolation](begin[label_dim:], end[label_dim:], frame.weight)
    return torch.cat([label, style])


def render(
    translator: Translator,
    sources: Sequence[Fitted],
    keyframes: Tensor,
    frames: Sequence[Frame],
    *,
    interpolation: str = "linear",
    layout: Layout = grid_layout,
) -> Iterator[Image.Image]:
    """Yield the frames of a video. Only one is in memory, beside the encoded sources.

    `Translator.batch_size` sources are computed at a time. The outputs of a frame are those of
    `Translator.translate_fitted` for its vector, bit for bit; another batch size may change the
    last bits of floats.

    Args:
        sources: pictures that are translated, side by side.
        keyframes: what G is conditioned on, (K, conditioning_dim) (`Translator.conditioning`).
        frames: from `plan`.
        interpolation: a key of `INTERPOLATIONS`.
        layout: draws a frame from sources and outputs.
    """
    images = [to_picture(source) for source in sources]
    encoded = translator.encode_batches(sources)
    for frame in frames:
        vector = between(keyframes, frame, translator.model.style_dim, interpolation)
        outputs = [
            to_image_of_output(output)
            for batch in encoded
            for output in translator.model.decode(batch, vector.repeat(len(batch.bottleneck), 1))
        ]
        yield layout(frame, images, outputs)
