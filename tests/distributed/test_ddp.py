"""Two processes equal one, in float64, with real processes."""

import pytest
import torch

from stargan_dist.runs import checkpoint as checkpoints
from tests.helpers.runs import assert_close, assert_same_bits, scalars, tensors

EXACT = ("--precision", "float64", "--steps", "4", "--checkpoint.every", "4")


@pytest.fixture(scope="module")
def one(train, tmp_path_factory):
    run = tmp_path_factory.mktemp("ddp") / "one"
    train(run, *EXACT)
    return run


def test_two_processes_equal_one(train, tmp_path, one):
    two = tmp_path / "two"
    train(two, *EXACT, "--data.workers", "1", processes=2)
    assert_close(two, one, tolerance=1e-9)
    ours, theirs = scalars(two), scalars(one)
    assert ours.keys() == theirs.keys()
    for tag, row in ours.items():
        for (step, value), (other_step, other) in zip(row, theirs[tag], strict=True):
            assert step == other_step
            assert value == pytest.approx(other, abs=1e-6)  # TensorBoard stores float32


def test_four_iterations_moved_every_network(one, train, tmp_path):
    """What the comparison compares is not the initial state, nor independent of the data."""
    train(tmp_path / "other", *EXACT, "--seed", "1")
    ours, theirs = tensors(one), tensors(tmp_path / "other")
    letters = {name.split("/")[1].split(".")[0] for name in ours if name.startswith("networks/")}
    assert letters == {"G", "F", "E", "D"}
    for letter in letters:
        names = [n for n in ours if n.startswith(f"networks/{letter}.")]
        assert any(not torch.equal(ours[n], theirs[n]) for n in names)
    assert checkpoints.find(str(one)).step == 4


@pytest.mark.slow
def test_the_number_of_workers_does_not_change_a_bit(train, tmp_path, one):
    train(tmp_path / "workers", *EXACT, "--data.workers", "2")
    assert_same_bits(tmp_path / "workers", one)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(train, tmp_path, one):
    run = tmp_path / "run"
    train(run, *EXACT[:2], "--steps", "2", processes=2)
    train(run, *EXACT)
    assert_close(run, one, tolerance=1e-9)
