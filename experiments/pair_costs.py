"""Draw what translation between K domains costs: one training of all, or one of each pair.

    python experiments/pair_costs.py [--recipes cyclegan munit …] [--out build/pair_costs.png]

The figures are those of `python -m stargan_dist.memory --domains … --recipes …`: trainings, and
parameters and bytes of all of them in sum. Nothing is trained.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from charts import Panel, Point, draw_charts
from launching import CONFIGS

from stargan_dist import config as configs
from stargan_dist.config import Config
from stargan_dist.errors import run_command
from stargan_dist.training.domain_costs import DomainCosts, domain_costs

DOMAINS = (2, 3, 5, 10, 15, 20, 30, 40)
RECIPES = ("cyclegan", "munit", "drit", "stargan", "f")  # msgan has the networks of drit
CONFIG = CONFIGS / "comparison" / "cyclegan_afhq.yaml"


FIGURES: dict[str, Callable[[DomainCosts], float]] = {
    "trainings": lambda costs: costs.runs,
    "parameters to translate, in billions": lambda costs: costs.translating / 1e9,
    "weights and Adam's moments, GiB": lambda costs: costs.state_bytes / 2**30,
}


def panels(costs: Mapping[str, Sequence[DomainCosts]]) -> list[Panel]:
    """Return a chart for each of `FIGURES`, with a line for each recipe."""
    return [
        Panel("domains", title, {
            recipe: [Point(of_k.domains, figure(of_k)) for of_k in by_domains]
            for recipe, by_domains in costs.items()
        })
        for title, figure in FIGURES.items()
    ]  # fmt: skip


def costs_of(config: Config, recipes: Sequence[str]) -> dict[str, list[DomainCosts]]:
    """Return the costs of recipes for each number of domains."""
    return {name: [domain_costs(config, name, count) for count in DOMAINS] for name in recipes}


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the charts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--out", type=Path, default=Path("build/pair_costs.png"))
    args = parser.parse_args(argv)
    config = configs.parse(["--config", str(CONFIG)])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw_charts([panels(costs_of(config, args.recipes))]).save(args.out)
    print(f"written to {args.out}")


if __name__ == "__main__":
    run_command(main)
