"""Every recipe steps with two processes as with one, and under ZeRO as under DDP.

As test_engines.py, whose recipe is `f`.
"""

import pytest

from tests.distributed.engines import (
    BATCH,
    OF_PAIRS,
    ONE_STEP,
    RECIPE_CASES,
    RECIPES,
    WITH_ZERO,
)
from tests.helpers.stepping import max_difference, results

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (pip install .[deepspeed])")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return results(2, RECIPE_CASES, tmp_path_factory.mktemp("recipes") / "two")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    cases = [f"recipe_{name}" for name in RECIPES]
    return results(1, cases, tmp_path_factory.mktemp("recipes") / "one")


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
