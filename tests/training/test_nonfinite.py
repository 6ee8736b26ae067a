"""The guard: what it tells, writes and ends."""

import json

import pytest
import torch

from stargan_dist import config as configs
from stargan_dist.distributed.world import World
from stargan_dist.engines.base import LossScale
from stargan_dist.errors import UserError
from stargan_dist.training.nonfinite import NonFiniteGuard

GOOD = {"D/latent/reg": 0.5, "D/latent/grad_norm_D": 2.0, "D/latent/finite_D": 1.0}
BAD = {"D/latent/reg": float("nan"), "D/latent/grad_norm_D": 2.0, "D/latent/finite_D": 0.0}


def make_guard(run, *options, scales=None):
    config = configs.parse(["--run", str(run), "--data.shards", "s", *options])
    return NonFiniteGuard(config, World(), lambda step: [{"slot": step}], scales or {})


def terms(values):
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def test_it_looks_one_iteration_later_and_stops(tmp_path):
    guard = make_guard(tmp_path)
    shown = guard.watch(1, terms(GOOD))
    assert set(shown) == {"D/latent/reg", "D/latent/grad_norm_D"}
    guard.watch(2, terms(BAD))
    with pytest.raises(UserError, match="step 2: the gradient of D/latent/D was not finite"):
        guard.watch(3, terms(GOOD))
    row = json.loads((tmp_path / "nonfinite" / "step_00000002.json").read_text())
    assert row == {
        "step": 2,
        "unchanged_networks": ["D/latent/D"],
        "terms_by_rank": [{"D/latent/reg": "nan"}],
        "samples": [{"slot": 1}],
    }


def test_skipping_is_told_and_bounded(tmp_path, caplog):
    guard = make_guard(tmp_path, "--optim.on_nonfinite", "skip", "--optim.max_nonfinite", "2")
    for step in (1, 2):
        guard.watch(step, terms(BAD))
        guard.check()
        guard.check()  # once each
    assert caplog.text.count("was not finite; see") == guard.iterations == 2
    guard.watch(3, terms(BAD))
    with pytest.raises(UserError, match=r"more than optim\.max_nonfinite"):
        guard.check()


@pytest.mark.parametrize(("scale", "told"), [(2.0**10, False), (0.5, True)])
def test_an_overflow_that_a_lower_scale_mends_is_no_fault(tmp_path, scale, told):
    scales = {"D": LossScale(torch.device("cpu"))}
    scales["D"].value.fill_(scale)
    guard = make_guard(tmp_path, "--precision", "float16", scales=scales)
    guard.watch(1, terms(BAD))
    if told:
        with pytest.raises(UserError):
            guard.check()
    else:
        guard.check()
        assert guard.iterations == 0
