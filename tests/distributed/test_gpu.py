"""Tests that require a GPU. They are skipped where there is none."""

import json
from pathlib import Path

import pytest

from tests.helpers.runs import scalars

pytestmark = pytest.mark.skipif(
    not Path("/dev/nvidia0").exists(), reason="no NVIDIA GPU (/dev/nvidia0) in this machine"
)
ON_GPU = {"CUDA_VISIBLE_DEVICES": "0"}
NO_TF32 = ("--engine.tf32", "false")


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        (NO_TF32, 1e-3),
        ((*NO_TF32, "--engine.channels_last", "off"), 1e-3),
        ((*NO_TF32, "--engine.compile", "true"), 1e-3),
        ((), 2e-2),
        (("--precision", "bfloat16"), 5e-2),
        (("--precision", "float16"), 5e-2),
        (("--engine.name", "deepspeed", "--engine.zero_stage", "2", *NO_TF32), 1e-3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_first_step_has_the_losses_of_a_cpu(train, tmp_path, finished_run, options, tolerance):
    """The run also finishes without a nonfinite gradient."""
    run = tmp_path / "run"
    train(run, *options, **ON_GPU)
    assert json.loads((run / "environment.json").read_text())["device"] != "cpu"
    assert not (run / "nonfinite").exists()
    on_gpu, on_cpu = scalars(run, ("D/", "G/")), scalars(finished_run, ("D/", "G/"))
    for tag, series in on_gpu.items():
        if "grad_norm" not in tag:
            expected = pytest.approx(on_cpu[tag][0][1], abs=tolerance, rel=tolerance)
            assert series[0][1] == expected, tag


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_run_on_a_gpu_resumes(train, tmp_path, precision):
    options = ("--precision", precision, "--checkpoint.every", "3")
    train(tmp_path / "uninterrupted", *options, **ON_GPU)
    train(tmp_path / "run", *options, "--steps", "3", **ON_GPU)
    train(tmp_path / "run", *options, **ON_GPU)
    uninterrupted = scalars(tmp_path / "uninterrupted", ("D/",))
    resumed = scalars(tmp_path / "run", ("D/",))
    assert uninterrupted.keys() == resumed.keys()
    for tag, series in uninterrupted.items():
        assert resumed[tag] == pytest.approx(series, rel=1e-3), tag
