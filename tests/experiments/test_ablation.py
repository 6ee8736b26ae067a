"""The ablation on the drawn animals: what is left to do, the table, the verdicts, the picture."""

import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent.parent / "experiments"))

import ablation
import ablation_table as tables
import launching

from stargan_dist.data.reader import LoadedSplit
from stargan_dist.errors import STOPPED, UserError

STEPS = 10


def figures(row, seed, fid=20.0, diversity=0.3, **others):
    return {
        "row": row, "seed": seed, "steps": STEPS, "seconds": 60.0, "demo_fid": fid,
        "diversity": diversity, "accuracy": 0.9, "pose_px": 1.0, "spread": 0.5, **others,
    }  # fmt: skip


def of_row(row, fids, diversities):
    return [figures(row, s, *pair) for s, pair in enumerate(zip(fids, diversities, strict=True))]


AS_PUBLISHED = [
    *of_row("a", (90, 95, 91), (0, 0, 1e-7)),
    *of_row("d", (30, 33, 31), (0.1, 0.1, 0.1)),
    *of_row("e", (18, 17, 19), (0.40, 0.41, 0.42)),
    *of_row("f", (14, 32, 15), (0.45, 0.46, 0.44)),
]


def finish(run, **given):
    run.folder.mkdir(parents=True)
    told = {**figures(run.row, run.seed), **given}
    (run.folder / ablation.JUDGED).write_text(json.dumps(told))


# What is left.


def test_all_rows_of_a_seed_come_before_the_next_seed(tmp_path):
    runs = ablation.schedule(["a", "f"], 2, tmp_path)
    assert [(run.row, run.seed) for run in runs] == [("a", 0), ("f", 0), ("a", 1), ("f", 1)]


def test_the_same_command_goes_on_with_what_is_left(tmp_path):
    runs, did, after = ablation.schedule(["a", "f"], 2, tmp_path), [], []

    def do(run):
        if len(did) == 3:
            raise KeyboardInterrupt
        did.append(run)
        finish(run)

    with pytest.raises(KeyboardInterrupt):
        ablation.work(runs, STEPS, do, lambda: after.append(1))
    assert did == runs[:3] and len(after) == 3
    assert ablation.remaining(runs, STEPS) == runs[3:]


@pytest.mark.parametrize("told", ['{"steps": 5}', '{"ste', None])
def test_a_run_of_other_steps_or_without_its_figures_is_left(tmp_path, told):
    (run,) = ablation.schedule(["a"], 1, tmp_path)
    run.folder.mkdir(parents=True)
    if told:
        (run.folder / ablation.JUDGED).write_text(told)
    assert ablation.remaining([run], STEPS) == [run]


def test_time_left_is_that_of_runs_of_the_same_row(tmp_path, capsys):
    runs = ablation.schedule(["a", "f", "e"], 2, tmp_path)
    assert ablation.seconds_left(runs, STEPS) is None
    finish(runs[0], seconds=40)
    finish(runs[1], seconds=100)
    finish(runs[2], seconds=None)  # was resumed
    assert ablation.seconds_left(runs, STEPS) == 40 + 100 + 70
    ablation.announce(4, runs, runs[3], STEPS)
    assert "run 4 of 6: row a, seed 1; all will be done in: 0:03:30" in capsys.readouterr().out


def test_a_training_gets_the_rows_file_then_what_all_rows_have_in_common(tmp_path):
    (run,) = ablation.schedule(["a"], 1, tmp_path)
    options = ablation.options_of(run, STEPS, "s")
    given = dict(zip(options[::2], options[1::2], strict=True))
    files = [Path(v).name for k, v in zip(options[::2], options[1::2], strict=True) if "conf" in k]
    assert files == ["a.yaml", "demo.yaml"]
    assert given["--steps"] == given["--loss.ds_iter"] == given["--evaluation.every"] == "10"


def test_a_failed_training_ends_the_experiment_and_a_stopped_one_says_so(monkeypatch):
    def command(code):
        return lambda processes: [sys.executable, "-c", code]

    monkeypatch.setattr(launching, "launcher", command("raise SystemExit(2)"))
    with pytest.raises(UserError, match="exit code 2"):
        launching.train([], 2)
    stop = "import os, time; os.kill(os.getppid(), 15); time.sleep(60)"
    monkeypatch.setattr(launching, "launcher", command(stop))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        launching.train([], 2)
    assert stopped.value.code == STOPPED
    assert signal.getsignal(signal.SIGTERM) == before


# The figures and the table.


def test_figures_by_references_are_those_of_rows_that_have_them():
    means = {"demo_fid_latent": 3.0, "demo_lpips_latent": 0.1, "demo_fid_reference": 4.0}
    measures = {
        "domain_accuracy_latent": 0.9, "pose_error_latent_px": 1, "style_spread_ratio": 0
    }  # fmt: skip
    found = ablation.figures_of({"means": means}, measures)
    assert found == {
        "demo_fid": 3.0, "diversity": 0.1, "accuracy": 0.9, "pose_px": 1, "spread": 0
    }  # fmt: skip
    found = ablation.figures_of({"means": means}, measures | {"domain_accuracy_reference": 0.8})
    assert (found["demo_fid_reference"], found["accuracy_reference"]) == (4.0, 0.8)


def test_the_table_has_means_deviations_and_the_papers_figures():
    lines = tables.table(AS_PUBLISHED, ["a", "b", "f"]).splitlines()
    cells = [[part.strip() for part in line.strip("|").split("|")] for line in lines]
    assert len({len(row) for row in cells}) == 1
    a, b, f = cells[2:]
    assert a[:4] == ["A", "StarGAN", "3", "92.00 ± 2.6"]
    assert a[-2:] == ["98.4", "–"] and f[-2:] == ["13.7", "0.452"]
    assert b[2:4] == ["0", "–"]


def test_the_verdicts_are_those_of_the_figures():
    a, b, _, e_d, f_d, f_e, ranked = tables.order_lines(AS_PUBLISHED)
    assert a == "A has no diversity: shown, 3 of 3 seeds; largest 1e-07"
    assert b == "B has no diversity: not measured"
    assert ": shown; 3 of 3 seeds, difference +13.3, which is +10.3 deviations" in e_d
    assert ": not shown; 3 of 3 seeds" in f_d  # less than two deviations
    assert ": shown; 3 of 3 seeds" in f_e
    assert ranked == "from the lowest mean demo_fid up: E F D A; by the paper's: F E D A"


def test_one_seed_shows_nothing_and_the_opposite_is_called_so():
    one = [figures("d", 0, 30), figures("e", 0, 20)]
    assert ": not shown by one seed; 1 of 1 seed, difference +10" in tables.order_lines(one)[3]
    turned = [*of_row("d", (20, 21), (0, 0)), *of_row("e", (40, 41), (0, 0))]
    assert ": not shown, but the opposite; 0 of 2 seeds" in tables.order_lines(turned)[3]


def test_a_row_with_diversity_is_not_said_to_have_none():
    found = of_row("a", (90, 95), (0, 0.02))
    told = tables.order_lines(found)[0]
    assert told == "A has no diversity: not shown, 1 of 2 seeds; largest 0.02"


def test_seeds_that_one_of_two_rows_lacks_are_left_out():
    found = [*of_row("d", (30, 31), (0, 0)), *of_row("e", (20, 21, 99), (0, 0, 0))]
    assert "2 of 2 seeds" in tables.order_lines(found)[3]


# The picture.


class Painter:
    """Paints by the target, and by the latent."""

    config = SimpleNamespace(model=SimpleNamespace(latent_dim=4, image_size=8))
    domains = ("cat", "dog")

    def from_latents(self, x, y_trg, z):
        shades = (y_trg + z[:, 0].sigmoid()) / 2
        return x.repeat_interleave(len(z) // len(x), 0) * 0 + shades.view(-1, 1, 1, 1)


def test_the_picture_has_the_same_latents_for_all_rows_and_sources():
    cells = ablation.outputs(Painter(), torch.zeros(2, 3, 8, 8))
    assert cells.shape == (2, 1 + 2 * ablation.PICTURE_LATENTS, 3, 8, 8)
    assert torch.equal(cells[0], cells[1])
    shades = cells[0, 1:, 0, 0, 0]
    assert (shades[:3] < 0.5).all() and (shades[3:] > 0.5).all() and len(shades.unique()) == 6


def test_the_picture_has_a_block_for_each_row():
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    sources = LoadedSplit(images, torch.tensor([0, 1]), ["", ""], ["cat", "dog"])
    one, two = (ablation.picture(dict.fromkeys(rows, Painter()), sources) for rows in ("f", "ef"))
    assert one.width == two.width >= 7 * 96
    assert two.height - one.height == 2 * (96 + 2) + 2 + 10
