"""Invalid starts are rejected with one line, and change nothing in the run folder."""

import shutil
from dataclasses import replace

import pytest

from stargan_dist import storage
from stargan_dist.data.index import read_index, write_index
from tests.conftest import here


def rejection(train, run, *args, **env):
    """Return the one-line error of a start that must fail without changing the run folder."""
    before = contents(run)
    error = here("train", *train.options(run), *args, code=2, **env).stderr
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1, error
    assert contents(run) == before
    return error


def contents(run):
    """Return the paths of all files of a run, except for the claims of trainings that started."""
    return sorted(path for path in run.rglob("*") if "owners" not in path.parts)


def test_independent_processes_are_rejected_with_the_remedy(train, tmp_path):
    error = rejection(train, tmp_path / "run", SLURM_STEP_NUM_TASKS="2")
    assert "would train independently" in error
    assert "accelerate launch --multi_gpu --num_processes N" in error


def test_a_second_training_of_the_same_run_is_rejected(train, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with storage.exclusive_lock(str(run), "the test itself"):
        error = train(run, code=2).stderr
    assert len(error.splitlines()) == 1
    assert "another process is training" in error
    assert "accelerate launch" in error


def test_several_ranks_print_an_error_once(train, tmp_path):
    result = train(tmp_path / "run", "--batch_size", "5", processes=2, code=1)
    lines = result.stderr.splitlines()
    assert [line for line in lines if line.startswith(("error", "exit code"))] == [
        "error: batch_size: 5 is the global batch and must be a multiple of the number of "
        "processes, 2; 6 works",
        "exit code 2: correct what is reported above",
    ]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--model.image_size", "48"), "model.image_size"),
        (("--optim.lrr", "1"), "optim.lrr"),
        (("--data.shards", "/nowhere"), "python -m stargan_dist.shards build"),
    ],
)
def test_invalid_values_are_rejected(train, tmp_path, args, expected):
    assert expected in rejection(train, tmp_path / "run", *args)


def test_a_single_domain_is_rejected(train, shards, tmp_path):
    index = read_index(shards)
    cats = {split: {"cat": shards["cat"]} for split, shards in index.splits.items()}
    write_index(str(tmp_path / "set"), replace(index, domains=["cat"], splits=cats))
    error = rejection(train, tmp_path / "run", "--data.shards", str(tmp_path / "set"))
    assert "nothing to translate to" in error


def test_an_unwritable_run_folder_is_rejected(train, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot write to" in rejection(train, tmp_path / "file" / "run")


def test_a_checkpoint_of_another_configuration_is_rejected(train, finished_run):
    assert "model.style_dim was 8, is 9" in rejection(train, finished_run, "--model.style_dim", "9")


def test_a_checkpoint_of_other_shards_is_rejected(train, finished_run, shards, tmp_path):
    copy = tmp_path / "set"
    shutil.copytree(shards, copy)
    index = read_index(shards)
    first = index.splits["train"]["cat"]
    first[0] = replace(first[0], sha256="0" * 64)
    write_index(str(copy), index)
    assert "other shards" in rejection(train, finished_run, "--data.shards", str(copy))


def test_a_damaged_checkpoint_is_rejected(train, finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    damaged = run / "checkpoints" / "step_00000006" / "networks.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert "networks.safetensors is damaged" in rejection(train, run, "--steps", "8")
