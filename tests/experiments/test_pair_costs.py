"""The chart of what pairs cost: its points are the figures of the command `memory`."""

import sys
from pathlib import Path

from PIL import Image

sys.path.append(str(Path(__file__).resolve().parent.parent.parent / "experiments"))

import pair_costs

from stargan_dist import config as configs
from stargan_dist.training.domain_costs import domain_costs
from tests.conftest import SMOKE


def test_the_points_are_the_costs_of_each_number_of_domains():
    config = configs.parse(["--config", str(SMOKE)])
    costs = pair_costs.costs_of(config, ["cyclegan", "f"])
    trainings, translating, state = pair_costs.panels(costs)
    assert [(point.x, point.mean) for point in trainings.lines["cyclegan"]][:4] == [
        (2, 1), (3, 3), (5, 10), (10, 45),
    ]  # fmt: skip
    last = domain_costs(config, "cyclegan", 40)
    assert translating.lines["cyclegan"][-1].mean == last.translating / 1e9
    assert state.lines["cyclegan"][-1].mean == last.state_bytes / 2**30
    assert {point.mean for point in trainings.lines["f"]} == {1}


def test_the_chart_is_drawn(tmp_path):
    pair_costs.main(["--recipes", "cyclegan", "stargan", "--out", str(tmp_path / "a" / "out.png")])
    assert len(Image.open(tmp_path / "a" / "out.png").getcolors(10**6)) > 3
