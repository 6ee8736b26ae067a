"""A checkpoint of any engine and number of processes resumes with any other.

Three results together show this for all combinations. A state that is restored and saved again is
bit-identical, including moments and averages. From the same state, all engines continue equally in
worlds of the same size, bit-identically with one or two ranks. In float64, DDP continues equally in
worlds of other sizes (test_ddp.py).
"""

import os
import subprocess
from itertools import product

import pytest

from tests.conftest import PATIENCE_SECONDS, ROOT, launch
from tests.distributed.moves import ENGINES, SUMMED_ENGINES, same_schedule
from tests.helpers.runs import assert_same_bits, tensors

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (pip install .[deepspeed])")

ALL = [*ENGINES, *SUMMED_ENGINES]


def start(folder, processes, *sources, engines=ALL):
    driver = str(ROOT / "tests" / "distributed" / "moves.py")
    subprocess.run(
        [*launch(processes), driver, str(folder), *sources], cwd=ROOT, check=True,
        timeout=PATIENCE_SECONDS, env=os.environ | {"ENGINES": " ".join(engines)},
    )  # fmt: skip


def test_a_checkpoint_of_two_processes_resumes_with_one(tmp_path):
    start(tmp_path, 2, engines=["zero1", "zero3-summed"])
    engines = ["ddp", "zero2", *SUMMED_ENGINES]  # the others below, in the slow test
    start(tmp_path, 1, "zero1_2", "zero3-summed_2", engines=engines)
    for engine in ("ddp", "zero2"):
        check(tmp_path, "zero1_2", f"{engine}_1")
        moved = tmp_path / f"zero1_2-to-{engine}_1"
        assert_same_bits(moved, tmp_path / "zero1_2-to-ddp_1")
    for engine in SUMMED_ENGINES:
        check(tmp_path, "zero3-summed_2", f"{engine}_1")


@pytest.mark.slow
def test_every_engine_and_world_size_resumes_from_every_other(tmp_path):
    worlds = (1, 2, 4)
    for processes in worlds:
        start(tmp_path, processes)
    sources = [f"{engine}_{processes}" for engine in ALL for processes in worlds]
    for processes in worlds:
        start(tmp_path, processes, *sources)
        for source, engine in product(sources, ALL):
            if same_schedule(engine, source):
                check(tmp_path, source, f"{engine}_{processes}")
                if engine in ENGINES:
                    moved = tmp_path / f"{source}-to-{engine}_{processes}"
                    assert_continued_equally(moved, tmp_path / f"{source}-to-ddp_{processes}")


def assert_continued_equally(moved, ddp):
    """Compare all bits with up to two ranks, and gradients, by the first moment, with more.

    Two ranks have only one order of summation. With more ranks the order differs, and Adam turns
    the rounding noise of zero gradients into full steps.
    """
    if not str(moved).endswith("_4"):
        assert_same_bits(moved, ddp)
    result, expected = tensors(moved), tensors(ddp)
    for name in (name for name in result if name.endswith(":exp_avg")):
        assert (result[name] - expected[name]).abs().max() <= 1e-6, name


def check(folder, source, target):
    """Check that the restored state equals the saved one, and that training continued from it."""
    saved, resaved = tensors(folder / source), tensors(folder / f"{source}-to-{target}", "2")
    after = tensors(folder / f"{source}-to-{target}")
    assert saved.keys() == resaved.keys() == after.keys()
    assert not [name for name in saved if not saved[name].equal(resaved[name])]
    assert {name for name in saved if name.endswith(":exp_avg_sq")}
    for name in ("networks/D.head.bias", "ema/G.from_rgb.weight", "optimizers/F.step"):
        assert not after[name].equal(saved[name])


@pytest.mark.slow
def test_a_run_resumes_with_other_engines(train, tmp_path):
    """With the command itself, which also restores the data position."""
    uninterrupted, run = tmp_path / "uninterrupted", tmp_path / "run"
    train(uninterrupted, "--steps", "5", processes=2)
    for steps, *engine in (("2", *zero_flags(1)), ("4",), ("5", *zero_flags(2))):
        train(run, "--steps", steps, *engine, processes=2)
    assert_same_bits(run, uninterrupted)


def zero_flags(stage):
    return ("--engine.name", "deepspeed", "--engine.zero_stage", str(stage))
