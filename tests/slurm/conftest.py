"""Fixtures: two simulated machines, and Slurm on them."""

import pytest

from tests.helpers.machines import Machines
from tests.slurm.cluster import Cluster, unavailable


@pytest.fixture(scope="session")
def machines():
    if reason := unavailable():
        pytest.skip(f"no Slurm here: {reason}")
    with Machines(["node1", "node2"]) as machines:
        yield machines


@pytest.fixture(scope="session")
def cluster(machines):
    with Cluster(machines) as cluster:
        yield cluster
