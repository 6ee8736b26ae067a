"""Finding the face of a photograph, and its alignment."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image

from stargan_dist.data.batch import to_unit
from stargan_dist.errors import UserError
from stargan_dist.faces import alignment
from stargan_dist.faces.alignment import REFERENCE_SIZE, Array, Face, Points
from stargan_dist.faces.points import points_of
from stargan_dist.nets.fan import FAN

PASSES = 2  # the first sees the whole photograph, the second the face


class Landmarks(NamedTuple):
    """Landmarks in a square image.

    Attributes:
        points: x, y in pixels, (L, 2).
        heat: mean of the maxima of their heat maps: about 1 for a face that the network knows.
    """

    points: Points
    heat: float


Detector = Callable[[Array], Landmarks]  # of images, uint8 (S, S, 3)


@dataclass(frozen=True)
class NetworkDetector:
    """Landmarks by a network in evaluation mode.

    Args:
        network: the landmark network.
        number: of its heat maps, the first ones, that are landmarks.
    """

    network: FAN
    number: int

    @torch.no_grad()
    def __call__(self, pixels: Array) -> Landmarks:
        """Find the landmarks of an image, uint8 (S, S, 3)."""
        x = to_unit(torch.tensor(pixels).permute(2, 0, 1))[None]
        maps = self.network(x)[:, : self.number]
        points = points_of(maps, len(pixels))[0].double().numpy()
        return Landmarks(points, maps.amax((2, 3)).mean().item())


@dataclass(frozen=True)
class Aligner:
    """Brings photographs to the frame of a training set.

    Args:
        detect: finds landmarks.
        detector_size: pixels of the images that it is given.
        reference: landmarks in the frame of 256 px, (L, 2).
        face: the landmarks that the alignment goes by.
        size: width and height of the outputs, in pixels.
        min_heat: below it there is no face.
    """

    detect: Detector
    detector_size: int
    reference: Points
    face: Face
    size: int
    min_heat: float

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the aligned face of an upright RGB photograph. The aspect ratio is kept.

        The network sees the whole photograph first, then the face as the first pass aligns it. So
        the photograph need not be cropped beforehand, and the face may be rotated.

        Raises:
            UserError: no face is found.
        """
        transform = alignment.whole_picture(*image.size, self.detector_size)
        try:
            for _ in range(PASSES):
                transform, heat = self._refined(image, transform)
            if not heat >= self.min_heat:
                raise UserError(f"the heat of landmarks is {heat:.2f} (--min-heat {self.min_heat})")
            scale = self.size / self.detector_size
            return alignment.align(image, scale * transform, self.size)
        except UserError as error:
            raise UserError(f"no face is found: {error}") from error

    def _refined(
        self, image: Image.Image, transform: alignment.Transform
    ) -> tuple[alignment.Transform, float]:
        """Return a transform by the landmarks in a view of the photograph, and their heat."""
        pixels = alignment.view(image, transform, self.detector_size)
        found = self.detect(pixels)
        points = alignment.apply(alignment.invert(transform), found.points)
        reference = self.reference * (self.detector_size / REFERENCE_SIZE)
        return alignment.similarity(points, reference, self.face), found.heat
