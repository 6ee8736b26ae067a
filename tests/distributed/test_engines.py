"""Every engine steps as DDP does, and two processes as one: real processes with plain SGD.

SGD, because Adam divides the rounding noise of a zero gradient (such as that of a bias before an
instance norm) by its own magnitude: after a step the noise is as large as the signal. With SGD the
comparison is one of gradients alone. Even so, instance norm over the few pixels of a tiny network
amplifies rounding, and |x| has a kink: 3 iterations in float32 and in float64 differ by 1e-4.
Therefore float32 is compared where both runs do the same arithmetic (DeepSpeed does not support
float64), and cases that reorder it (processes, micro-batches, shared graphs) in float64.
"""

import pytest

from tests.distributed.engines import CASES, ITERATIONS, MISTAKES, SLOW
from tests.helpers.stepping import max_difference, results

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (pip install .[deepspeed])")
ONE = (
    "ddp", "ddp_float64", "ddp_float64_accumulated", "ddp_summed_float64", "zero2", *MISTAKES,
    "high_pass_float64", "sparse_float64", "fast_float64",
)  # fmt: skip


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return results(2, CASES, tmp_path_factory.mktemp("engines") / "two")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return results(1, ONE, tmp_path_factory.mktemp("engines") / "one")


@pytest.mark.parametrize("case", ["zero0", "zero1", "zero2", "zero1_offloaded"])
def test_zero_equals_ddp(two, case):
    """In the published schedule: parameters and their averages."""
    assert max_difference(two[case], two["ddp"]) <= 1e-6


def test_zero_accumulates_and_clips_gradients_as_ddp(two):
    for case in ("zero1_accumulated", "zero2_accumulated"):
        assert max_difference(two[case], two["ddp_accumulated"]) <= 1e-6
    offloaded = two["zero3_offloaded_accumulated"]
    assert max_difference(offloaded, two["ddp_summed_accumulated"]) <= 1e-6
    assert max_difference(two["zero2_clipped"], two["ddp_clipped"]) <= 1e-6
    assert max_difference(two["ddp_clipped"], two["ddp"]) > 1e-4


@pytest.mark.parametrize("schedule", ["sparse", "fast"])
def test_a_schedule_with_lazy_terms_works_with_every_engine(schedule, two, one):
    in_float64 = two[f"{schedule}_float64"]
    assert max_difference(in_float64, one[f"{schedule}_float64"]) <= 1e-9
    assert max_difference(two[f"{schedule}_accumulated"], in_float64) <= 1e-9
    assert max_difference(two[f"{schedule}_zero2"], two[schedule]) <= 1e-6
    assert max_difference(two[schedule], two["later"]) > 1e-4  # the same steps as published


def test_the_high_pass_option_works_with_every_engine(two, one):
    """Masks depend on each image alone, so they do not depend on processes and micro-batches."""
    assert max_difference(two["high_pass_float64"], one["high_pass_float64"]) <= 1e-9
    assert max_difference(two["high_pass_accumulated"], two["high_pass_float64"]) <= 1e-9
    assert max_difference(two["high_pass_zero2"], two["high_pass"]) <= 1e-6
    assert max_difference(two["high_pass_zero3"], two["high_pass_summed_apart"]) <= 1e-6
    assert {name.partition(".")[0] for name in two["high_pass"]} <= {*"GFED", "ema", "all_reduces"}


def test_the_summed_schedule_at_stage_3_equals_ddp(two):
    """Float32 is compared without graphs shared between calls, as in stage 3: sharing them changes
    rounding. The comparison in float64 shows that sharing changes nothing else."""
    assert max_difference(two["zero3_summed"], two["ddp_summed_apart"]) <= 1e-6
    assert max_difference(two["ddp_summed_apart_float64"], two["ddp_summed_float64"]) <= 1e-9
    assert max_difference(two["ddp_summed_float64"], two["ddp_float64"]) > 1e-4  # another schedule


def test_a_nonfinite_gradient_skips_the_step_on_all_ranks(two):
    """All engines skip the same step and take the steps after it."""
    assert all(value.isfinite().all() for value in two["ddp_infinite"].values())
    for case in ("zero1_infinite", "zero2_infinite"):
        assert max_difference(two[case], two["ddp_infinite"]) <= 1e-6
    assert max_difference(two["ddp_infinite"], two["ddp"]) > 1e-4


def test_two_processes_equal_one(two, one):
    for case in ("ddp_float64", "ddp_summed_float64"):
        assert max_difference(two[case], one[case]) <= 1e-9
    assert max_difference(two["zero2"], one["zero2"]) <= 1e-6
    assert max_difference(two["no_all_reduce"], one["ddp"]) > 1e-4


def test_micro_batches_equal_one_batch(two, one):
    for world in (two, one):
        assert max_difference(world["ddp_float64_accumulated"], world["ddp_float64"]) <= 1e-9


def test_micro_batches_all_reduce_gradients_once(two):
    """As many all-reduces as without micro-batches: four phases and their buckets."""
    accumulated, single = two["ddp_accumulated"]["all_reduces"], two["ddp"]["all_reduces"]
    assert accumulated == single >= 4 * ITERATIONS


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_exceed_the_tolerances(one, case):
    letter = "D" if case == "d_not_frozen" else "E"
    assert max_difference(one[case], one["ddp"], f"{letter}.") > 1e-4


@pytest.mark.slow
def test_stage_3_offloads_and_accumulates_alone(two, tmp_path):
    """Both together: test_zero_accumulates_and_clips_gradients_as_ddp."""
    slow = results(2, SLOW, tmp_path / "slow")
    assert max_difference(slow["zero3_offloaded"], two["ddp_summed_apart"]) <= 1e-6
    assert max_difference(slow["zero3_accumulated"], two["ddp_summed_accumulated"]) <= 1e-6
