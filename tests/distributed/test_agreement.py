"""What ranks must share is compared before anything is loaded, or decided by rank 0 alone."""

import json
import shutil
from pathlib import Path

import pytest

from stargan_dist.runs import checkpoint as checkpoints
from tests.helpers.runs import assert_same_bits

DIFFERING = str(Path(__file__).with_name("differing.py"))


def errors(result):
    return [line for line in result.stderr.splitlines() if line.startswith("error")]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            "--optim.lr 0.5 --seed 7 --steps 9",
            "error: the ranks were started differently: --optim.lr is 0.0001 on rank 0 and 0.5 on "
            "rank 1; --seed is 0 on rank 0 and 7 on rank 1; --steps is 6 on rank 0 and 9 on rank 1;"
            " start all of them with the same command, configuration files and version",
        ),
        ("--optim.lrr 1", "error (rank 1): "),
    ],
)
def test_ranks_with_different_options_are_told_once(train, tmp_path, options, expected):
    arguments = {"driver": DIFFERING, "processes": 2, "RANK_1_OPTIONS": options}
    (error,) = errors(train(tmp_path / "run", code=1, **arguments))
    assert error.startswith(expected)
    assert not (tmp_path / "run").exists()


def test_the_contents_of_a_settings_file_are_compared_too(train, tmp_path):
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    for rank, size in enumerate((1000, 2000)):
        settings = {"zero_optimization": {"reduce_bucket_size": size}}
        (tmp_path / str(rank)).mkdir()
        (tmp_path / str(rank) / "settings.json").write_text(json.dumps(settings))
    options = ("--engine.name", "deepspeed", "--engine.deepspeed_config", "settings.json")
    more = {"driver": DIFFERING, "processes": 2, "FOLDERS": str(tmp_path)}
    (error,) = errors(train(tmp_path / "run", *options, code=1, **more))
    assert "settings.json is {'zero_optimization': {'reduce_bucket_size': 1000}} on rank 0" in error


def test_all_ranks_resume_from_the_step_that_rank_0_reads(train, run_of_two, tmp_path):
    """Also if another rank sees an older state of the run's folder."""
    run = shutil.copytree(run_of_two, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step_00000006")
    (run / "checkpoints" / checkpoints.LATEST).write_text("4")
    result = train(run, processes=2, driver=DIFFERING, RANK_1_SEES="2")
    assert "steps 4 to 6" in result.stderr + result.stdout
    assert_same_bits(run, run_of_two)


def test_all_ranks_start_from_the_model_that_rank_0_reads(train, run_of_two, tmp_path):
    """Another rank may see another state of it, or nothing: here a step that is not there."""
    steps = ("--steps", "1", "--monitor.sample_every", "0")
    options = ("--init", str(run_of_two), *steps)
    train(tmp_path / "run", *options, processes=2, driver=DIFFERING, RANK_1_SEES="7")
