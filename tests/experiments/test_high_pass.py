"""The comparison of the demo with and without masks: its options, measures and table."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent.parent / "experiments"))

import high_pass

from stargan_dist import config as configs
from stargan_dist.faces.targets import gaussians


def test_runs_differ_in_their_masks_alone(tmp_path):
    plain, masked = (
        configs.to_dict(configs.parse(high_pass.training_options(name, tmp_path, 3, tmp_path)))
        for name in ("without masks", "with masks")
    )
    assert (plain["model"].pop("w_hpf"), masked["model"].pop("w_hpf")) == (0, 1)
    assert masked["model"].pop("landmarks") == str(tmp_path / "masks.safetensors")
    assert plain["model"].pop("landmarks") == ""
    assert plain == masked and plain["seed"] == 3


def test_eyes_are_found_in_pixels_of_the_judge():
    places = torch.tensor([[[8.0, 12.0], [20.0, 12.0]], [[10.0, 6.0], [22.0, 8.0]]]) + 0.5
    maps = gaussians(torch.cat([2 * places, torch.full((2, 6, 2), 30.0)], 1), 64, 1.5)
    found = high_pass.find_eyes(lambda x: maps, torch.zeros(2, 1, 3, 32, 32))
    assert found.shape == (2, 1, 2, 2)
    assert (found[:, 0] - places).abs().max() <= 0.5


def test_the_table_has_means_with_standard_errors(capsys):
    runs = [{"domain_accuracy_latent": v, "chance_colour_error": 0.5} for v in (0.5, 0.6, 0.7)]
    high_pass.report({"without masks": runs, "with masks": runs[:1]}, 0.25)
    *table, last = capsys.readouterr().out.splitlines()
    assert table[1].split(None, 1) == ["domain_accuracy_latent", "0.600 ± 0.058       0.500"]
    assert not any("chance" in line for line in table)
    assert json.loads(last)["eyes_of_sources_px"] == pytest.approx(0.25)
