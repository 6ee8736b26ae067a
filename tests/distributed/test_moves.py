"""A state saved under any engine and number of processes goes on under any other.

Three things together show it for the whole grid: what is restored and saved again is the same to
the bit, moments and averages included; from one state, engines in worlds of one size go on to the
same bits; and in float64 DDP goes on alike in worlds of other sizes (test_ddp.py).
"""

import os
import subprocess
from itertools import product

import pytest

from tests.conftest import ROOT, launch
from tests.distributed.moves import ENGINES, OF_THE_SUMMED_SCHEDULE, alike
from tests.runs import assert_same_bits, tensors

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (pip install .[deepspeed])")


def start(folder, processes, *sources):
    driver = str(ROOT / "tests" / "distributed" / "moves.py")
    subprocess.run(
        [*launch(processes), driver, str(folder), *sources], cwd=ROOT, check=True, timeout=280,
        env=os.environ | {"ACCELERATE_USE_CPU": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_every_engine_and_world_goes_on_from_every_other(tmp_path):
    worlds, engines = (1, 2, 4), [*ENGINES, *OF_THE_SUMMED_SCHEDULE]
    for processes in worlds:
        start(tmp_path, processes)
    sources = [f"{engine}_{processes}" for engine in engines for processes in worlds]
    for processes in worlds:
        start(tmp_path, processes, *sources)
        for source, engine in product(sources, engines):
            if alike(engine, source):
                check(tmp_path, source, f"{engine}_{processes}")
                if engine in ENGINES:
                    moved = tmp_path / f"{source}-to-{engine}_{processes}"
                    assert_same_bits(moved, tmp_path / f"{source}-to-ddp_{processes}")


def check(folder, source, target):
    """What was restored is what was saved, and training went on from it."""
    saved, again = tensors(folder / source), tensors(folder / f"{source}-to-{target}", "2")
    after = tensors(folder / f"{source}-to-{target}")
    assert saved.keys() == again.keys() == after.keys()
    assert not [name for name in saved if not saved[name].equal(again[name])]
    assert {name for name in saved if name.endswith(":exp_avg_sq")}
    for name in ("networks/D.head.bias", "ema/G.from_rgb.weight", "optimizers/F.step"):
        assert not after[name].equal(saved[name])


def test_a_run_goes_on_under_other_engines(train, tmp_path):
    """The command itself: the data's position and what TensorBoard shows, too."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(whole, "--steps", "5", processes=2)
    for steps, *engine in (("2", *zero_flags(1)), ("4",), ("5", *zero_flags(2))):
        train(run, "--steps", steps, *engine, processes=2)
    assert_same_bits(run, whole)


def zero_flags(stage):
    return ("--engine.name", "deepspeed", "--engine.zero_stage", str(stage))
