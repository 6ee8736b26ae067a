"""JSON files: parsed into types, and with a hash of themselves."""

import json

import pytest

from stargan_dist import storage
from stargan_dist.errors import UserError

FIELDS = {"name": "größe", "number": 1.5, "list": [1, None, True]}


def test_a_sealed_object_is_accepted_in_any_layout():
    for options in ({}, {"indent": 1, "ensure_ascii": False}, {"sort_keys": True}):
        storage.check_seal(json.dumps(storage.sealed(FIELDS), **options).encode(), "x", "")


@pytest.mark.parametrize("change", [{"name": "grösse"}, {"more": 0}, {"sha256": "0" * 64}])
def test_a_changed_object_is_rejected(change):
    data = json.dumps(storage.sealed(FIELDS) | change).encode()
    with pytest.raises(UserError, match=r"^x is damaged: its hash is wrong; remedy$"):
        storage.check_seal(data, "x", "remedy")


def test_an_object_without_a_hash_is_rejected():
    with pytest.raises(UserError, match="its hash is wrong"):
        storage.check_seal(json.dumps(FIELDS).encode(), "x", "remedy")
