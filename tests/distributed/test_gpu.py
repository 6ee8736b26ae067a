"""What only a GPU can show. Skipped by name where there is none."""

import json
from pathlib import Path

import pytest

from tests.helpers.runs import scalars

pytestmark = pytest.mark.skipif(
    not Path("/dev/nvidia0").exists(), reason="no NVIDIA GPU (/dev/nvidia0) in this machine"
)
ON_GPU = {"CUDA_VISIBLE_DEVICES": "0"}
TRUE32 = ("--engine.tf32", "false")


@pytest.mark.parametrize(
    ("options", "apart"),
    [
        (TRUE32, 1e-3),
        ((*TRUE32, "--engine.channels_last", "off"), 1e-3),
        ((*TRUE32, "--engine.compile", "true"), 1e-3),
        ((), 2e-2),
        (("--precision", "bfloat16"), 5e-2),
        (("--precision", "float16"), 5e-2),
        (("--engine.name", "deepspeed", "--engine.zero_stage", "2", *TRUE32), 1e-3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_first_step_has_the_losses_of_a_cpu(train, tmp_path, finished_run, options, apart):
    """And the run goes on to its end without a gradient that is not finite."""
    run = tmp_path / "run"
    train(run, *options, **ON_GPU)
    assert json.loads((run / "environment.json").read_text())["device"] != "cpu"
    assert not (run / "nonfinite").exists()
    ours, theirs = scalars(run, ("D/", "G/")), scalars(finished_run, ("D/", "G/"))
    for tag, row in ours.items():
        if "grad_norm" not in tag:
            assert row[0][1] == pytest.approx(theirs[tag][0][1], abs=apart, rel=apart), tag


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_run_on_a_gpu_resumes(train, tmp_path, precision):
    options = ("--precision", precision, "--checkpoint.every", "3")
    train(tmp_path / "whole", *options, **ON_GPU)
    train(tmp_path / "run", *options, "--steps", "3", **ON_GPU)
    train(tmp_path / "run", *options, **ON_GPU)
    whole, run = (scalars(tmp_path / name, ("D/",)) for name in ("whole", "run"))
    assert whole.keys() == run.keys()
    for tag, row in whole.items():
        assert run[tag] == pytest.approx(row, rel=1e-3), tag
