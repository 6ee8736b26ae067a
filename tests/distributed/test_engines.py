"""Every engine steps as DDP does, and two processes as one: real processes, plain SGD.

SGD, because Adam divides the rounding noise of a zero gradient (a bias ahead of an instance norm
has one) by its own size: after a step the noise is as large as the signal. With SGD what is
compared is the gradients and nothing else. Even so instance norm over the few pixels of a tiny
network amplifies rounding, and |x| has a kink: 3 iterations in float32 and float64 end 1e-4 apart.
So float32 (DeepSpeed knows no float64) is compared where both sides do the same arithmetic, and
what rearranges it (processes, micro-batches, shared graphs) in float64.
"""

import os
import subprocess

import pytest
from safetensors.torch import load_file

from tests.conftest import PATIENCE_SECONDS, ROOT, launch
from tests.distributed.engines import CASES, ITERATIONS, ROWS

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (pip install .[deepspeed])")
ONE = (
    "ddp", "ddp_float64", "ddp_float64_accumulated", "ddp_summed_float64", "zero2",
    *(f"row_{name}" for name in ROWS),
)  # fmt: skip


def results(processes, cases, out):
    out.mkdir()
    driver = str(ROOT / "tests" / "distributed" / "engines.py")
    subprocess.run(
        [*launch(processes), driver, str(out), *cases], cwd=ROOT, check=True,
        timeout=PATIENCE_SECONDS, env=os.environ | {"ACCELERATE_USE_CPU": "1"},
    )  # fmt: skip
    return {case: load_file(out / f"{case}.safetensors") for case in cases}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return results(2, CASES, tmp_path_factory.mktemp("engines") / "two")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return results(1, ONE, tmp_path_factory.mktemp("engines") / "one")


def apart(ours, theirs, prefix=""):
    assert ours.keys() == theirs.keys()
    names = [name for name in ours if name.startswith(prefix) and name != "exchanges"]
    return max((ours[name] - theirs[name]).abs().max().item() for name in names)


@pytest.mark.parametrize("case", ["zero0", "zero1", "zero2", "zero1_offloaded"])
def test_zero_equals_ddp(two, case):
    """The exact schedule: parameters and their averages."""
    assert apart(two[case], two["ddp"]) <= 1e-6


def test_zero_accumulates_and_clips_as_ddp(two):
    for case in ("zero1_accumulated", "zero2_accumulated"):
        assert apart(two[case], two["ddp_accumulated"]) <= 1e-6
    assert apart(two["zero3_accumulated"], two["ddp_summed_accumulated"]) <= 1e-6
    assert apart(two["zero2_clipped"], two["ddp_clipped"]) <= 1e-6
    assert apart(two["ddp_clipped"], two["ddp"]) > 1e-4


def test_the_summed_schedule_at_stage_3_equals_ddp(two):
    """With no graph shared between calls, as there, where float32 would round otherwise; that
    sharing changes nothing else, float64 shows."""
    for case in ("zero3_summed", "zero3_offloaded"):
        assert apart(two[case], two["ddp_summed_apart"]) <= 1e-6
    assert apart(two["ddp_summed_apart_float64"], two["ddp_summed_float64"]) <= 1e-9
    assert apart(two["ddp_summed_float64"], two["ddp_float64"]) > 1e-4  # another schedule


def test_a_gradient_that_is_not_finite_steps_no_rank(two):
    """Of all engines alike, and the steps after it are taken."""
    assert all(value.isfinite().all() for value in two["ddp_infinite"].values())
    for case in ("zero1_infinite", "zero2_infinite"):
        assert apart(two[case], two["ddp_infinite"]) <= 1e-6
    assert apart(two["ddp_infinite"], two["ddp"]) > 1e-4


def test_two_processes_equal_one(two, one):
    for case in ("ddp_float64", "ddp_summed_float64"):
        assert apart(two[case], one[case]) <= 1e-9
    assert apart(two["zero2"], one["zero2"]) <= 1e-6
    assert apart(two["no_exchange"], one["ddp"]) > 1e-4


@pytest.mark.parametrize("name", ROWS)
def test_two_processes_equal_one_for_each_row(two, one, name):
    """In three iterations of which one at least is the generator side's (test_recipes.py)."""
    assert apart(two[f"row_{name}"], one[f"row_{name}"]) <= 1e-9


@pytest.mark.parametrize("name", ["stargan", "b", "d"])
def test_zero_equals_ddp_for_rows_with_other_penalties_and_networks(two, name):
    assert apart(two[f"row_{name}_zero2"], two[f"row_{name}_float32"]) <= 1e-6
    if name == "stargan":
        assert apart(two["row_stargan_zero3"], two["row_stargan_float32"]) <= 1e-6


def test_micro_batches_equal_one_batch(two, one):
    for world in (two, one):
        assert apart(world["ddp_float64_accumulated"], world["ddp_float64"]) <= 1e-9


def test_micro_batches_exchange_gradients_once(two):
    """As many all-reduces as without them: four phases and their buckets."""
    assert two["ddp_accumulated"]["exchanges"] == two["ddp"]["exchanges"] >= 4 * ITERATIONS


@pytest.mark.parametrize(
    ("case", "right"),
    [("d_not_frozen", "ddp"), ("e_stepped_by_references", "ddp"), ("zero1_d_not_frozen", "zero1")],
)
def test_mistakes_would_be_noticed(two, case, right):
    letter = "D" if case.endswith("d_not_frozen") else "E"
    assert apart(two[case], two[right], f"{letter}.") > 1e-4
