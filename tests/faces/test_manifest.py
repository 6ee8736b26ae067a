"""Manifests of landmarks: where points lie in stored images, and what is refused."""

import numpy as np
import pytest

from stargan_dist.errors import UserError
from stargan_dist.faces import manifest
from tests.helpers.manifests import write_rows

ROWS = [("a/0.png", [[10, 20], [40, 30]]), ("b/1.png", [[0, 0], [80, 40.5]])]


def fractions(tmp_path, row, stored, encoding=None):
    return manifest.read(str(write_rows(tmp_path / "m", [row]))).fractions("a", stored, encoding)


def test_points_are_fractions_of_the_stored_image(tmp_path):
    read = manifest.read(str(write_rows(tmp_path / "m", ROWS)))
    assert (read.num_landmarks, read.rows.keys()) == (2, {"a/0.png", "b/1.png"})
    found = read.fractions("a/0.png", (80, 40), None)
    np.testing.assert_allclose(found, [[0.125, 0.5], [0.5, 0.75]])


def test_points_of_cropped_and_reduced_images_are_those_of_the_stored_ones(tmp_path):
    row = {"file": "a", "points": [[100, 60], [50, 0]], "size": [200, 100]}
    encoding = {"crop": 80, "size": 32}
    # The crop begins at 60, 10 and has 80 × 80 pixels.
    found = fractions(tmp_path, row, (32, 32), encoding)
    np.testing.assert_allclose(found, [[0.5, 0.625], [-0.125, -0.125]])
    found = fractions(tmp_path, row, (100, 100), {"crop": 300, "size": 0})  # from 50, 0
    np.testing.assert_allclose(found, [[0.5, 0.6], [0, 0]])
    found = fractions(tmp_path, row, (64, 32), {"crop": 0, "size": 32})
    np.testing.assert_allclose(found, [[0.5, 0.6], [0.25, 0]])


@pytest.mark.parametrize(("text", "message"), [
    ("", "is empty"),
    ("\n \n", "is empty"),
    ("[]", "line 1, is invalid"),
    ('{"file": "a"}', "missing required field `points`"),
    ('{"file": "a", "points": []}', "line 1, is invalid: .*length >= 1"),
    ('{"file": "a", "points": [[1, 2, 3]]}', "Expected `array` of length 2"),
    ('{"file": "a", "points": [[1, NaN]]}', "line 1, .*not a number"),
    ('{"file": "a", "points": [[1, Infinity]]}', "line 1, .*not a number"),
    ('{"file": "a", "points": [[1, 1e999]]}', "line 1, is invalid"),
    ('{"file": "a", "points": [[1, -1]]}', "line 1, is invalid: .*>= 0"),
    ('{"file": "a", "points": [[1, 1]], "x": 1}', "unknown field `x`"),
    ('{"file": "a", "points": [[1, 1]]}\n\n{"file": "b", "points": [[1, 1], [2, 2]]}',
     "line 3: 2 landmarks, but 1 in the lines before"),
    ('{"file": "a", "points": [[1, 1]]}\n{"file": "a", "points": [[1, 1]]}', "line 2: a has"),
])  # fmt: skip
def test_invalid_manifests_are_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "m").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        manifest.read(str(tmp_path / "m"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("row", "stored", "encoding", "message"), [
    (("b", [[1, 1]]), (9, 9), None, "has no landmarks of a"),
    (("a", [[9.5, 1]]), (9, 9), None, "lie outside the image, which has 9 × 9"),
    (("a", [[1, 9.5]]), (19, 9), None, "lie outside"),
    (("a", [[1, 1]]), (9, 9), {"crop": 9, "size": 0}, 'needs the original\'s "size"'),
    ({"file": "a", "points": [[1, 1]], "size": [8, 9]}, (9, 9), {"format": "png"}, "not 8 × 9"),
])  # fmt: skip
def test_images_without_usable_landmarks_are_refused(tmp_path, row, stored, encoding, message):
    with pytest.raises(UserError, match=message):
        fractions(tmp_path, row, stored, encoding)
