"""Alignment: its transform, its padding, and faces brought back to where the reference has them."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from stargan_dist.data.demo import SPECIES, draw, sample_factors
from stargan_dist.errors import UserError
from stargan_dist.faces import alignment
from stargan_dist.faces.aligner import Aligner, Landmarks, NetworkDetector
from stargan_dist.faces.alignment import WFLW, Face
from tests.helpers.landmarks import REFERENCE, centres, dot_finder, photograph, placed

DOTS = Face((0,), (1,), (2,))


# The transform.


def plain_similarity(points, reference):
    """Return the published transform of WFLW's landmarks, written from its description."""

    def axes(p):
        left = (p[60:68].sum(0) + p[96]) / 9
        right = (p[68:76].sum(0) + p[97]) / 9
        up = (left + right) / 2 - (p[76] + p[82]) / 2
        x_axis = right - left - np.array([up[1], -up[0]])
        x_axis = x_axis / np.sqrt(x_axis @ x_axis)
        return np.array([x_axis, [-x_axis[1], x_axis[0]]])

    mean, target = points.mean(0), reference.mean(0)
    distances = [
        [np.sqrt(((p[i] - p.mean(0)) ** 2).sum()) for i in (96, 97, 76, 82)]
        for p in (points, reference)
    ]
    scale = np.mean([b / a for a, b in zip(*distances, strict=True)])
    # Coordinates along the axes of the face become those along the axes of the reference.
    linear = scale * axes(reference).T @ axes(points)
    return np.column_stack([linear, target - linear @ mean])


def random_face(seed):
    """Return 98 landmarks with eyes and mouth about where a face has them, rotated."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(40, 216, (98, 2))
    for numbers, centre in (((*range(60, 68), 96), (95, 110)), ((*range(68, 76), 97), (160, 112)),
                            ((76, 82), (128, 180))):  # fmt: skip
        points[list(numbers)] = centre + rng.normal(0, 8, (len(numbers), 2))
    angle = rng.uniform(-3, 3)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return rng.uniform(0.2, 3) * points @ turn + rng.normal(0, 100, 2)


@pytest.mark.parametrize("seed", range(5))
def test_the_transform_is_the_published_one(seed):
    points, reference = random_face(seed), random_face(100 + seed)
    transform = alignment.similarity(points, reference, WFLW)
    assert np.abs(transform - plain_similarity(points, reference)).max() < 1e-11
    there_and_back = alignment.apply(
        alignment.invert(transform), alignment.apply(transform, points)
    )
    assert np.abs(there_and_back - points).max() < 1e-10


def test_a_similar_face_is_brought_to_the_reference():
    transform = placed(300, 200, 150, 40)
    points = alignment.apply(alignment.invert(transform), REFERENCE)
    assert np.abs(alignment.similarity(points, REFERENCE, DOTS) - transform).max() < 1e-12


def test_the_eyes_give_the_scale_by_default():
    assert WFLW.scaling == [96, 97, 76, 82]
    stretched = REFERENCE * [1, 2]
    by_eyes = alignment.similarity(stretched, REFERENCE, DOTS)
    by_mouth = alignment.similarity(stretched, REFERENCE, replace(DOTS, scale=(2,)))
    assert by_mouth[0, 0] == pytest.approx(0.5)
    assert 0.5 < by_eyes[0, 0] < 1


@pytest.mark.parametrize("points", [np.zeros((3, 2)), REFERENCE * np.nan, REFERENCE[[2, 2, 2]]])
def test_landmarks_that_coincide_are_no_face(points):
    with pytest.raises(UserError, match="landmarks coincide"):
        alignment.similarity(points, REFERENCE, DOTS)


# Padding.


def test_weights_of_the_padding():
    weights = alignment.border_weights(12, 20, 4)
    ramp = [0, 1 / 4, 2 / 4, 3 / 4]
    rows, columns = [*ramp, *[1] * 4, *ramp[::-1]], [*ramp, *[1] * 12, *ramp[::-1]]
    expected = [[min(r, c) ** 4 for c in columns] for r in rows]
    assert np.array_equal(weights, np.array(expected))


def test_padding_is_a_mirror_image_and_blurred_at_the_border():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    padded = alignment.pad(pixels, 20, 2)
    assert padded.shape == (80, 100, 3)
    assert np.array_equal(padded[20:60, 20:80], pixels)
    mirrored = np.pad(pixels.astype(float), ((20, 20), (20, 20), (0, 0)), "symmetric")
    first = np.abs(padded - mirrored)[19, 30:70]  # beside the picture: 19/20 in the fourth power
    assert first.max() < (1 - 0.95**4) * 255
    assert first.mean() > 0
    assert padded[0].std() < mirrored[0].std() / 3  # a blur of noise
    assert np.abs(padded.mean() - mirrored.mean()) < 3


def test_a_picture_in_its_frame_stays_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    image, transform = Image.fromarray(pixels), alignment.whole_picture(64, 64, 64)
    assert np.array_equal(alignment.view(image, transform, 64), pixels)
    assert np.array_equal(alignment.align(image, transform, 64), pixels)
    shifted = np.asarray(alignment.align(image, transform + np.array([[0, 0, 3], [0, 0, 0]]), 64))
    assert np.array_equal(shifted[:, 3:], pixels[:, :-3])
    assert np.abs(shifted[:, 2].astype(int) - pixels[:, 0]).max() < (1 - (31 / 32) ** 4) * 255


def test_large_photographs_are_reduced_without_aliasing():
    """Of stripes that are finer than the frame's pixels the mean remains, not other stripes."""
    stripes = np.zeros((600, 600, 3), np.uint8)
    stripes[:, ::2] = 200
    transform = alignment.whole_picture(600, 600, 64)
    for frame in (alignment.view(Image.fromarray(stripes), transform, 64),
                  alignment.align(Image.fromarray(stripes), transform, 64)):  # fmt: skip
        inner = np.asarray(frame)[:, 4:-4].astype(int)
        assert np.abs(inner - 100).max() <= 2


def test_far_outside_the_photograph_there_is_no_black():
    frame = alignment.align(Image.new("RGB", (50, 50), "white"), placed(0, 0, 400, 30), 256)
    assert np.asarray(frame).min() == 255


# Faces.


def landmarks_of(factors, side):
    """Return eyes, nose and chin of a drawn animal, in pixels, (4, 2)."""
    cos, sin = np.cos(factors.tilt), np.sin(factors.tilt)
    head = np.array([[-0.42, -0.16], [0.42, -0.16], [0, 0.3], [0, 0.92]])
    rotated = head @ np.array([[cos, sin], [-sin, cos]])
    return side * (factors.radius * rotated + [factors.x, factors.y])


def dark_centres(image, points):
    """Return the centres of what is as dark as an eye, near each point, in pixels."""
    darkness = (90 - np.asarray(image.convert("L")).astype(float)).clip(0)
    y, x = np.indices(darkness.shape) + 0.5
    near = [darkness * (np.hypot(x - column, y - row) < 6) for column, row in points]
    return np.array([[(d * x).sum() / d.sum(), (d * y).sum() / d.sum()] for d in near])


@pytest.mark.parametrize("species", SPECIES)
@pytest.mark.parametrize(
    ("side", "pose"),
    [
        (300, {"x": 0.3, "y": 0.6, "radius": 0.15, "tilt": 1.2}),
        (700, {"x": 0.6, "y": 0.4, "radius": 0.12, "tilt": -2.5}),
        (64, {"x": 0.45, "y": 0.55, "radius": 0.22, "tilt": -0.4}),
    ],
)
def test_drawn_animals_come_back(species, side, pose):
    upright = replace(sample_factors(0, species, 0), x=0.5, y=0.6, radius=0.23, tilt=0.0)
    reference = landmarks_of(upright, 64)
    turned = replace(upright, **pose)
    transform = alignment.similarity(landmarks_of(turned, side), reference, Face((0,), (1,), (3,)))
    aligned, expected = alignment.align(draw(turned, side), transform, 64), draw(upright, 64)
    eyes = [dark_centres(image, reference[:2]) for image in (aligned, expected)]
    assert np.abs(eyes[0] - eyes[1]).max() < 0.5
    difference = np.abs(np.asarray(aligned, float) - np.asarray(expected))
    assert difference[16:].mean() < 6  # but for what is outside the picture


@pytest.fixture(scope="module")
def aligner():
    detector = NetworkDetector(dot_finder().build(), 3)
    return Aligner(detector, 256, REFERENCE, DOTS, size=64, min_heat=0.3)


@pytest.mark.parametrize(("shape", "square"), [
    ((256, 256), (128, 128, 256, 0)),
    ((900, 600), (500, 300, 300, 40)),
    ((400, 900), (100, 300, 300, -70)),
    ((600, 600), (300, 300, 500, 170)),
    ((80, 100), (40, 50, 60, 20)),
    ((500, 500), (250, 60, 260, 0)),  # at the border
    ((900, 300), (130, 150, 250, 0)),  # at the end of a wide one
    ((300, 900), (150, 770, 250, 0)),
])  # fmt: skip
@pytest.mark.parametrize("size", [64, 512])
def test_faces_of_photographs_come_back(aligner, shape, square, size):
    image = replace(aligner, size=size)(photograph(*shape, placed(*square)))
    assert image.size == (size, size)
    assert np.abs(centres(image) - REFERENCE).max() < 256 / 64 / 3  # a third of a pixel of 64


def test_the_aspect_ratio_is_kept(aligner):
    """The head is a circle, and stays one in a frame of a wide photograph."""
    image = replace(aligner, size=256)(photograph(1200, 400, placed(500, 200, 300, 0)))
    head = np.abs(np.asarray(image.convert("L")).astype(int) - 183) > 45
    height, width = (np.ptp(np.flatnonzero(head.any(axis))) + 1 for axis in (1, 0))
    assert abs(width - height) <= 2
    assert abs(width - 180) <= 4


def test_the_second_pass_sees_the_face_alone():
    views = []

    def detect(pixels):
        views.append(pixels)
        return found(pixels)

    found = NetworkDetector(dot_finder().build(), 3)
    image = photograph(900, 600, placed(500, 300, 300, 40))
    Aligner(detect, 256, REFERENCE, DOTS, 256, 0.3)(image)
    assert len(views) == 2
    assert np.abs(centres(Image.fromarray(views[1])) - REFERENCE).max() < 6
    border = views[0][10]  # above the photograph: its border again
    assert np.abs(border.astype(int) - [190, 180, 170]).max() <= 1


@pytest.mark.parametrize(("landmarks", "reason"), [
    (Landmarks(REFERENCE, 0.29), r"heat of landmarks is 0.29 \(--min-heat 0.3\)"),
    (Landmarks(REFERENCE, float("nan")), "heat of landmarks is nan"),
    (Landmarks(np.zeros((3, 2)), 1.0), "landmarks coincide"),
    (Landmarks(REFERENCE / 1e4 + 128, 1.0), "not those of a face"),
    (Landmarks(REFERENCE - 1e6, 1.0), "not those of a face"),
])  # fmt: skip
def test_what_is_no_face(landmarks, reason):
    aligner = Aligner(lambda _: landmarks, 256, REFERENCE, DOTS, 64, 0.3)
    with pytest.raises(UserError, match=f"no face is found: .*{reason}"):
        aligner(Image.new("RGB", (300, 200)))


def test_a_tiny_face_of_a_large_photograph_does_not_take_its_memory():
    """Landmarks far apart: the whole photograph becomes a few pixels."""
    frame = alignment.align(Image.new("RGB", (3000, 10)), placed(1500, 5, 1e9, 10), 256)
    assert np.ptp(np.asarray(frame)) == 0


def test_without_opencv_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(UserError, match=r"pip install 'stargan_dist\[faces\]'"):
        alignment.opencv()
