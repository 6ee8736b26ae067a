"""Every engine steps as DDP does, and two processes as one: real processes with plain SGD.

SGD, because Adam divides the rounding noise of a zero gradient (such as that of a bias before an
instance norm) by its own magnitude: after a step the noise is as large as the signal. With SGD the
comparison is one of gradients alone. Even so, instance norm over the few pixels of a tiny network
amplifies rounding, and |x| has a kink: 3 iterations in float32 and in float64 differ by 1e-4.
Therefore float32 is compared where both runs do the same arithmetic (DeepSpeed does not support
float64), and cases that reorder it (processes, micro-batches, shared graphs) in float64.
"""

import subprocess

import pytest
from safetensors.torch import load_file

from tests.conftest import PATIENCE_SECONDS, ROOT, launch
from tests.distributed.engines import (
    BATCH,
    CASES,
    ITERATIONS,
    MISTAKES,
    OF_PAIRS,
    ONE_STEP,
    RECIPES,
    SLOW,
    WITH_ZERO,
)

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (pip install .[deepspeed])")
ONE = (
    "ddp", "ddp_float64", "ddp_float64_accumulated", "ddp_summed_float64", "zero2", *MISTAKES,
    "high_pass_float64", "sparse_float64",
    *(f"recipe_{name}" for name in RECIPES),
)  # fmt: skip


def results(processes, cases, out):
    out.mkdir()
    driver = str(ROOT / "tests" / "distributed" / "engines.py")
    command = [*launch(processes), driver, str(out), *cases]
    subprocess.run(command, cwd=ROOT, check=True, timeout=PATIENCE_SECONDS)
    return {case: load_file(out / f"{case}.safetensors") for case in cases}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return results(2, CASES, tmp_path_factory.mktemp("engines") / "two")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return results(1, ONE, tmp_path_factory.mktemp("engines") / "one")


def max_difference(result, other, prefix=""):
    """Return the largest absolute difference of parameters whose names begin with the prefix."""
    assert result.keys() == other.keys()
    names = [name for name in result if name.startswith(prefix) and name != "all_reduces"]
    return max((result[name] - other[name]).abs().max().item() for name in names)


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


def test_a_schedule_with_lazy_terms_works_with_every_engine(two, one):
    assert max_difference(two["sparse_float64"], one["sparse_float64"]) <= 1e-9
    assert max_difference(two["sparse_accumulated"], two["sparse_float64"]) <= 1e-9
    assert max_difference(two["sparse_zero2"], two["sparse"]) <= 1e-6
    assert max_difference(two["sparse"], two["ddp"]) > 1e-4


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


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_equal_one_for_each_recipe(two, one, name):
    """In three iterations, of which at least one updates the generator side (test_recipes.py)."""
    assert max_difference(two[f"recipe_{name}"], one[f"recipe_{name}"]) <= 1e-9


@pytest.mark.parametrize("name", WITH_ZERO)
def test_zero_equals_ddp_for_recipes_with_other_penalties_and_networks(two, name):
    assert max_difference(two[f"recipe_{name}_zero2"], two[f"recipe_{name}_float32"]) <= 1e-6
    if name in ONE_STEP:
        zero3 = two[f"recipe_{name}_zero3"]
        assert max_difference(zero3, two[f"recipe_{name}_float32"]) <= 1e-6


def test_noise_and_styles_of_partners_at_stage_3_are_those_of_ddp(two):
    """Two iterations of C alone, then one in which all networks step; as in one process above."""
    case = "recipe_msgan"
    assert max_difference(two[f"{case}_zero3"], two[f"{case}_summed_apart"]) <= 1e-6
    assert {name[0] for name in two[case] if name[1] == "."} == set("GEDC")


def test_pools_of_fakes_do_not_depend_on_processes(two, one):
    """A checkpoint has those of all processes, in the order of the global batch."""
    case = "recipe_cyclegan"
    assert two[case]["pool.images"].shape == (BATCH, 1, 3, 32, 32)
    assert two[case]["pool.images"].flatten(1).any(1).all()
    assert max_difference(two[case], one[case], "pool") <= 1e-9


@pytest.mark.parametrize("name", OF_PAIRS)
def test_micro_batches_of_pairs_equal_one_batch(two, name):
    """With their pools, if the recipe has any."""
    assert max_difference(two[f"recipe_{name}_accumulated"], two[f"recipe_{name}"]) <= 1e-9


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
