"""Tables of the parts of masks as files."""

import json
from pathlib import Path

import pytest

from stargan_dist.data.demo import LANDMARKS
from stargan_dist.errors import UserError
from stargan_dist.faces import parts
from stargan_dist.nets.masks import WFLW, Move, Part

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"


def test_a_table_is_read(tmp_path):
    rows = [{"landmarks": [0, 2], "moves": [{"rows": 8, "power": 3}, {}]},
            {"landmarks": [1], "inner": False}]  # fmt: skip
    (tmp_path / "p").write_text(json.dumps(rows))
    expected = (Part((0, 2), (Move(8, 3), Move())), Part((1,), inner=False))
    assert parts.read(str(tmp_path / "p"), 3) == expected


def test_the_table_of_the_animals_has_eyes_and_nose_in_both_masks_and_no_ears():
    table = parts.read(str(CONFIGS / "animals_parts.json"), len(LANDMARKS))
    inner = {LANDMARKS[i] for part in table if part.inner for i in part.landmarks}
    outer = {LANDMARKS[i] for part in table if not part.inner for i in part.landmarks}
    assert inner == {"left eye", "right eye", "nose"}
    assert outer == {"chin", "left jaw", "right jaw"}


@pytest.mark.parametrize(("text", "message"), [
    ("[]", "length >= 1"),
    ('[{"landmarks": []}]', "length >= 1"),
    ('[{"landmarks": [3]}]', r"has the landmarks \[3\], which are not among 0 to 2"),
    ('[{"landmarks": [-1]}]', "not among"),
    ('[{"landmarks": [0], "moves": []}]', "length >= 1"),
    ('[{"landmarks": [0], "moves": [{"power": 0}]}]', "powers of a part are 1 to 16"),
    ('[{"landmarks": [0], "iner": false}]', "unknown field `iner`"),
    ("{", "is invalid"),
])  # fmt: skip
def test_invalid_tables_are_refused(tmp_path, text, message):
    (tmp_path / "p").write_text(text)
    with pytest.raises(UserError, match=message):
        parts.read(str(tmp_path / "p"), 3)


def test_without_a_file_the_table_is_that_of_wflw():
    assert parts.choose(None, 98) == parts.choose(None, 99) == WFLW
    with pytest.raises(UserError, match=r"--parts: .* 98 landmarks of WFLW, not for 8"):
        parts.choose(None, 8)
