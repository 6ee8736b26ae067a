"""Fixtures of far shards."""

import shutil

import pytest

from stargan_dist import storage
from stargan_dist.config import StorageConfig
from tests.data.test_stream import load, make_slots


@pytest.fixture(scope="module")
def sequence(shards):
    """The batches, read from local files."""
    return load(make_slots(shards))


@pytest.fixture
def far(shards, http):
    """The shards on a server, and the server. Few retries and a short timeout."""
    shutil.copytree(shards, http.folder, dirs_exist_ok=True)
    storage.configure(StorageConfig(tries=2, wait_seconds=0.0, timeout_seconds=1.0))
    return http
