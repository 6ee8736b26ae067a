"""DDP: real runs with two processes equal runs with one, in float64."""

import pytest
import torch

from stargan_dist.runs import checkpoint as checkpoints
from tests.helpers.runs import assert_close, assert_same_bits, scalars, tensors

FLOAT64 = ("--precision", "float64", "--steps", "4", "--checkpoint.every", "4")


@pytest.fixture(scope="module")
def one(train, tmp_path_factory):
    run = tmp_path_factory.mktemp("ddp") / "one"
    train.here(run, *FLOAT64)
    return run


def test_a_run_with_two_processes_equals_a_run_with_one(train, tmp_path, one):
    two = tmp_path / "two"
    train(two, *FLOAT64, "--data.workers", "1", processes=2)
    assert_close(two, one, tolerance=1e-9)
    scalars_two, scalars_one = scalars(two), scalars(one)
    assert scalars_two.keys() == scalars_one.keys()
    for tag, series in scalars_two.items():
        for (step, value), (other_step, other) in zip(series, scalars_one[tag], strict=True):
            assert step == other_step
            assert value == pytest.approx(other, abs=1e-6)  # TensorBoard stores float32


def test_four_iterations_change_every_network(one, train, tmp_path):
    """The compared runs have left their initial state and depend on seed and data."""
    train.here(tmp_path / "other", *FLOAT64, "--seed", "1")
    run, other = tensors(one), tensors(tmp_path / "other")
    letters = {name.split("/")[1].split(".")[0] for name in run if name.startswith("networks/")}
    assert letters == {"G", "F", "E", "D"}
    for letter in letters:
        names = [n for n in run if n.startswith(f"networks/{letter}.")]
        assert any(not torch.equal(run[n], other[n]) for n in names)
    assert checkpoints.find(str(one)).step == 4


@pytest.mark.slow
def test_a_run_with_workers_has_the_same_bits(train, tmp_path, one):
    train(tmp_path / "workers", *FLOAT64, "--data.workers", "2")
    assert_same_bits(tmp_path / "workers", one)


@pytest.mark.slow
def test_a_run_resumes_with_another_number_of_processes(train, tmp_path, one):
    run = tmp_path / "run"
    train(run, *FLOAT64[:2], "--steps", "2", processes=2)
    train(run, *FLOAT64)
    assert_close(run, one, tolerance=1e-9)


@pytest.mark.slow
def test_a_run_with_pools_of_fakes_resumes_with_another_number_of_processes(train, tmp_path):
    one, run = tmp_path / "one", tmp_path / "run"
    options = (*FLOAT64[:2], "--recipe", "cyclegan", "--data.pair", "[cat, dog]", "--steps")
    train.here(one, *options, "4")
    train(run, *options, "2", processes=2)
    train(run, *options, "3")
    train(run, *options, "4", processes=2)
    assert_close(run, one, tolerance=1e-9)
    assert tensors(run)["pool/images"][:, :4].flatten(2).any(2).all()
