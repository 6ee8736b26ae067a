"""A state saved under any engine and number of processes goes on under any other.

Three things together show it for the whole grid: what is restored and saved again is the same to
the bit, moments and averages included; from one state, engines in worlds of one size go on alike,
in worlds of up to two ranks to the bit; and in float64 DDP goes on alike in worlds of other sizes
(test_ddp.py).
"""

import os
import subprocess
from itertools import product

import pytest

from tests.conftest import PATIENCE_SECONDS, ROOT, launch
from tests.distributed.moves import ENGINES, OF_THE_SUMMED_SCHEDULE, alike
from tests.helpers.runs import assert_same_bits, tensors

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (pip install .[deepspeed])")

ALL = [*ENGINES, *OF_THE_SUMMED_SCHEDULE]


def start(folder, processes, *sources, engines=ALL):
    driver = str(ROOT / "tests" / "distributed" / "moves.py")
    subprocess.run(
        [*launch(processes), driver, str(folder), *sources], cwd=ROOT, check=True,
        timeout=PATIENCE_SECONDS, env=os.environ | {"ENGINES": " ".join(engines)},
    )  # fmt: skip


def test_what_two_processes_saved_goes_on_in_one(tmp_path):
    start(tmp_path, 2, engines=["zero1", "zero3-summed"])
    start(tmp_path, 1, "zero1_2", "zero3-summed_2")
    for engine in ENGINES:
        check(tmp_path, "zero1_2", f"{engine}_1")
        moved = tmp_path / f"zero1_2-to-{engine}_1"
        assert_same_bits(moved, tmp_path / "zero1_2-to-ddp_1")
    for engine in OF_THE_SUMMED_SCHEDULE:
        check(tmp_path, "zero3-summed_2", f"{engine}_1")


@pytest.mark.slow
def test_every_engine_and_world_goes_on_from_every_other(tmp_path):
    worlds = (1, 2, 4)
    for processes in worlds:
        start(tmp_path, processes)
    sources = [f"{engine}_{processes}" for engine in ALL for processes in worlds]
    for processes in worlds:
        start(tmp_path, processes, *sources)
        for source, engine in product(sources, ALL):
            if alike(engine, source):
                check(tmp_path, source, f"{engine}_{processes}")
                if engine in ENGINES:
                    moved = tmp_path / f"{source}-to-{engine}_{processes}"
                    assert_went_on_alike(moved, tmp_path / f"{source}-to-ddp_{processes}")


def assert_went_on_alike(moved, ddp):
    """Two ranks sum in one order. More do not, and Adam makes whole steps of the rounding noise of
    zero gradients; so gradients are compared then, by the first moment."""
    if not str(moved).endswith("_4"):
        assert_same_bits(moved, ddp)
    ours, theirs = tensors(moved), tensors(ddp)
    for name in (name for name in ours if name.endswith(":exp_avg")):
        assert (ours[name] - theirs[name]).abs().max() <= 1e-6, name


def check(folder, source, target):
    """What was restored is what was saved, and training went on from it."""
    saved, again = tensors(folder / source), tensors(folder / f"{source}-to-{target}", "2")
    after = tensors(folder / f"{source}-to-{target}")
    assert saved.keys() == again.keys() == after.keys()
    assert not [name for name in saved if not saved[name].equal(again[name])]
    assert {name for name in saved if name.endswith(":exp_avg_sq")}
    for name in ("networks/D.head.bias", "ema/G.from_rgb.weight", "optimizers/F.step"):
        assert not after[name].equal(saved[name])


@pytest.mark.slow
def test_a_run_goes_on_under_other_engines(train, tmp_path):
    """The command itself: the data's position and what TensorBoard shows, too."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(whole, "--steps", "5", processes=2)
    for steps, *engine in (("2", *zero_flags(1)), ("4",), ("5", *zero_flags(2))):
        train(run, "--steps", steps, *engine, processes=2)
    assert_same_bits(run, whole)


def zero_flags(stage):
    return ("--engine.name", "deepspeed", "--engine.zero_stage", str(stage))
