"""The guard against non-finite gradients: its reports, warnings and errors."""

import json

import pytest
import torch

from stargan_dist import config as configs
from stargan_dist.distributed.world import World
from stargan_dist.engines.base import LossScale
from stargan_dist.errors import UserError
from stargan_dist.training.nonfinite import NonFiniteGuard

FINITE = {"D/latent/reg": 0.5, "D/latent/grad_norm_D": 2.0, "D/latent/finite_D": 1.0}
NONFINITE = {"D/latent/reg": float("nan"), "D/latent/grad_norm_D": 2.0, "D/latent/finite_D": 0.0}


def make_guard(run, *options, scales=None):
    config = configs.parse(["--run", str(run), "--data.shards", "s", *options])
    return NonFiniteGuard(config, World(), lambda step: [{"slot": step}], scales or {})


def as_tensors(terms):
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in terms.items()}


def test_a_nonfinite_gradient_stops_the_run_one_iteration_later(tmp_path):
    guard = make_guard(tmp_path)
    terms_without_flags = guard.watch(1, as_tensors(FINITE))
    assert set(terms_without_flags) == {"D/latent/reg", "D/latent/grad_norm_D"}
    guard.watch(2, as_tensors(NONFINITE))
    with pytest.raises(UserError, match="step 2: the gradient of D/latent/D was not finite"):
        guard.watch(3, as_tensors(FINITE))
    report = json.loads((tmp_path / "nonfinite" / "step_00000002.json").read_text())
    assert report == {
        "step": 2,
        "unchanged_networks": ["D/latent/D"],
        "terms_by_rank": [{"D/latent/reg": "nan"}],
        "samples": [{"slot": 1}],
    }


def test_skipped_iterations_are_reported_once_and_limited_in_number(tmp_path, caplog):
    guard = make_guard(tmp_path, "--optim.on_nonfinite", "skip", "--optim.max_nonfinite", "2")
    for step in (1, 2):
        guard.watch(step, as_tensors(NONFINITE))
        guard.check()
        guard.check()  # counts and reports nothing more
    assert caplog.text.count("was not finite; see") == guard.iterations == 2
    guard.watch(3, as_tensors(NONFINITE))
    with pytest.raises(UserError, match=r"More than optim\.max_nonfinite"):
        guard.check()


@pytest.mark.parametrize(("scale", "is_fault"), [(2.0**10, False), (0.5, True)])
def test_an_overflow_that_a_lower_loss_scale_can_prevent_is_not_a_fault(tmp_path, scale, is_fault):
    scales = {"D": LossScale(torch.device("cpu"))}
    scales["D"].value.fill_(scale)
    guard = make_guard(tmp_path, "--precision", "float16", scales=scales)
    guard.watch(1, as_tensors(NONFINITE))
    if is_fault:
        with pytest.raises(UserError):
            guard.check()
    else:
        guard.check()
        assert guard.iterations == 0
