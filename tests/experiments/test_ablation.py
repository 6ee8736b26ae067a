"""The ablation on the drawn animals: figures, table, verdicts and image grid."""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent.parent / "experiments"))

import ablation
import ablation_table as tables
import study

from stargan_dist.data.split import LoadedSplit

STEPS = 10


def figures(row, seed, fid=20.0, diversity=0.3):
    return {
        "row": row, "seed": seed, "steps": STEPS, "seconds": 60.0, "demo_fid": fid,
        "diversity": diversity, "accuracy": 0.9, "pose_px": 1.0, "spread": 0.5,
    }  # fmt: skip


def runs_of(row, fids, diversities):
    return [figures(row, s, *pair) for s, pair in enumerate(zip(fids, diversities, strict=True))]


AS_PUBLISHED = [
    *runs_of("a", (90, 95, 91), (0, 0, 1e-7)),
    *runs_of("d", (30, 33, 31), (0.1, 0.1, 0.1)),
    *runs_of("e", (18, 17, 19), (0.40, 0.41, 0.42)),
    *runs_of("f", (14, 32, 15), (0.45, 0.46, 0.44)),
]


# Runs.


def test_a_training_gets_the_rows_file_before_the_settings_that_all_rows_share(tmp_path):
    (run,) = study.list_runs(["a"], 1, tmp_path)
    options = ablation.training_options(run, STEPS, "s")
    pairs = list(zip(options[::2], options[1::2], strict=True))
    assert [Path(v).name for k, v in pairs if "conf" in k] == ["a.yaml", "demo.yaml"]
    settings = dict(pairs)
    assert settings["--steps"] == settings["--loss.ds_iter"] == "10"
    assert settings["--evaluation.every"] == "10"


# The figures and the table.


def test_only_rows_guided_by_references_have_figures_by_reference():
    means = {"demo_fid_latent": 3.0, "demo_lpips_latent": 0.1, "demo_fid_reference": 4.0}
    measures = {
        "domain_accuracy_latent": 0.9, "pose_error_latent_px": 1, "style_spread_ratio": 0
    }  # fmt: skip
    combined = ablation.combine_figures({"means": means}, measures)
    assert combined == {
        "demo_fid": 3.0, "diversity": 0.1, "accuracy": 0.9, "pose_px": 1, "spread": 0
    }  # fmt: skip
    measures["domain_accuracy_reference"] = 0.8
    combined = ablation.combine_figures({"means": means}, measures)
    assert (combined["demo_fid_reference"], combined["accuracy_reference"]) == (4.0, 0.8)


def test_the_table_has_means_deviations_and_the_papers_figures():
    lines = tables.table(AS_PUBLISHED, ["a", "b", "f"]).splitlines()
    cells = [[part.strip() for part in line.strip("|").split("|")] for line in lines]
    assert len({len(row) for row in cells}) == 1
    a, b, f = cells[2:]
    assert a[:4] == ["A", "StarGAN", "3", "92.00 ± 2.6"]
    assert a[-2:] == ["98.4", "–"] and f[-2:] == ["13.7", "0.452"]
    assert b[2:4] == ["0", "–"]


def test_verdicts_follow_from_the_figures():
    a, b, _, e_d, f_d, f_e, ranking = tables.order_lines(AS_PUBLISHED)
    assert a == "A has no diversity: shown, 3 of 3 seeds; largest 1e-07"
    assert b == "B has no diversity: not measured"
    assert ": shown; 3 of 3 seeds, difference +13.3, which is +10.3 deviations" in e_d
    assert ": not shown; 3 of 3 seeds" in f_d  # less than two deviations
    assert ": shown; 3 of 3 seeds" in f_e
    assert ranking == "by mean demo_fid, lowest first: E F D A; in the paper: F E D A"


def test_one_seed_shows_nothing_and_an_opposite_difference_is_named():
    one = [figures("d", 0, 30), figures("e", 0, 20)]
    assert ": not shown by one seed; 1 of 1 seed, difference +10" in tables.order_lines(one)[3]
    opposite = [*runs_of("d", (20, 21), (0, 0)), *runs_of("e", (40, 41), (0, 0))]
    assert ": not shown, but the opposite; 0 of 2 seeds" in tables.order_lines(opposite)[3]


def test_a_row_with_diversity_is_not_reported_to_have_none():
    runs = runs_of("a", (90, 95), (0, 0.02))
    assert (
        tables.order_lines(runs)[0] == "A has no diversity: not shown, 1 of 2 seeds; largest 0.02"
    )


def test_a_comparison_uses_the_seeds_that_both_rows_have():
    runs = [*runs_of("d", (30, 31), (0, 0)), *runs_of("e", (20, 21, 99), (0, 0, 0))]
    assert "2 of 2 seeds" in tables.order_lines(runs)[3]


# The image grid.


class ShadeTranslator:
    """Translator whose outputs have one shade, given by target and latent."""

    config = SimpleNamespace(model=SimpleNamespace(latent_dim=4, image_size=8))
    domains = ("cat", "dog")

    def from_latents(self, x, y_trg, z):
        shades = (y_trg + z[:, 0].sigmoid()) / 2
        return x.repeat_interleave(len(z) // len(x), 0) * 0 + shades.view(-1, 1, 1, 1)


def test_the_image_grid_uses_the_same_latents_for_all_sources():
    cells = ablation.translate_all(ShadeTranslator(), torch.zeros(2, 3, 8, 8))
    assert cells.shape == (2, 1 + 2 * ablation.GRID_LATENTS, 3, 8, 8)
    assert torch.equal(cells[0], cells[1])
    shades = cells[0, 1:, 0, 0, 0]
    assert (shades[:3] < 0.5).all() and (shades[3:] > 0.5).all() and len(shades.unique()) == 6


def test_the_image_grid_has_a_block_for_each_row():
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    sources = LoadedSplit(images, torch.tensor([0, 1]), ["", ""], ["cat", "dog"])
    translators = (dict.fromkeys(rows, ShadeTranslator()) for rows in ("f", "ef"))
    one, two = (ablation.image_grid(by_row, sources) for by_row in translators)
    assert one.width == two.width >= 7 * 96
    assert two.height - one.height == 2 * (96 + 2) + 2 + 10
