"""A state saved under any engine and number of processes goes on under any other.

Three things together show it for the whole grid: what is restored and saved again is the same to
the bit, moments and averages included; from one state, engines in worlds of one size go on to the
same bits; and in float64 DDP goes on alike in worlds of other sizes (test_ddp.py).
"""

import os
import subprocess

import pytest

from tests.conftest import ROOT, launch
from tests.distributed.moves import ENGINES
from tests.runs import assert_same_bits, tensors

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (pip install .[deepspeed])")


def start(folder, processes, *sources):
    driver = str(ROOT / "tests" / "distributed" / "moves.py")
    subprocess.run(
        [*launch(processes), driver, str(folder), *sources], cwd=ROOT, check=True, timeout=280,
        env=os.environ | {"ACCELERATE_USE_CPU": "1"},
    )  # fmt: skip


def check(folder, worlds):
    for processes in worlds:
        start(folder, processes)
    sources = [f"{engine}_{processes}" for engine in ENGINES for processes in worlds]
    for processes in worlds:
        start(folder, processes, *sources)
        for source in sources:
            for engine in ENGINES:
                moved = folder / f"{source}-to-{engine}_{processes}"
                saved, again = tensors(folder / source), tensors(moved, "2")
                assert saved.keys() == again.keys()
                assert not [name for name in saved if not saved[name].equal(again[name])]
                if engine != "zero3":  # which has another schedule
                    assert_same_bits(moved, folder / f"{source}-to-ddp_{processes}")
    whole = tensors(folder / "ddp_1")
    assert {n for n in whole if n.endswith(("exp_avg", "exp_avg_sq", "step"))} > {
        "optimizers/G.step"
    }
    after = tensors(folder / "ddp_1-to-ddp_1")
    assert after["optimizers/G.step"] == whole["optimizers/G.step"] + 2  # latents, references
    assert not after["ema/G.from_rgb.weight"].equal(whole["ema/G.from_rgb.weight"])


def test_one_and_two_processes(tmp_path):
    check(tmp_path, (1, 2))


@pytest.mark.slow
def test_one_two_and_four_processes(tmp_path):
    check(tmp_path, (1, 2, 4))


def test_a_run_goes_on_under_other_engines(train, tmp_path):
    """The command itself: the data's position and what TensorBoard shows, too."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(whole, "--steps", "5", processes=2)
    for steps, *engine in (("2", *zero_flags(1)), ("4",), ("5", *zero_flags(2))):
        train(run, "--steps", steps, *engine, processes=2)
    assert_same_bits(run, whole)


def zero_flags(stage):
    return ("--engine.name", "deepspeed", "--engine.zero_stage", str(stage))
