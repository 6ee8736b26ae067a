"""The study of schedules: figures of a run, table, verdicts, curves, charts; no training."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent.parent / "experiments"))

import charts
import schedules
import schedules_table as tables
import study

STEPS = 20
GFLOP = {"published": 2.0, "sparse": 1.0, "literal": 4.0}
JUDGED = {
    "domain_accuracy_latent": 0.9, "domain_accuracy_reference": 0.7, "pose_error_px": 0.5,
    "style_spread_ratio": 0.8,
}  # fmt: skip
MEANS = {
    "demo_fid_latent": 6.0, "demo_fid_reference": 8.0, "demo_lpips_latent": 0.3,
    "demo_lpips_reference": 0.5,
}  # fmt: skip


def figures(row, seed, accuracy=0.9, fid=6.0, spread=0.8, seconds=4.0):
    """Return the figures of a run with two checkpoints; the protocol has measured the second."""
    first = {
        "step": 10, "images": 160, "train_seconds": seconds / 2, "accuracy_latent": 0.5,
        "accuracy_reference": 0.5, "accuracy": 0.5, "pose_px": 1.0, "spread": 0.1,
    }  # fmt: skip
    last = first | {
        "step": 20, "images": 320, "train_seconds": seconds, "accuracy_latent": accuracy,
        "accuracy": accuracy, "spread": spread, "demo_fid": fid, "demo_lpips": 0.3,
    }  # fmt: skip
    return {"row": row, "seed": seed, "steps": STEPS, "seconds": 9.0, "checkpoints": [first, last]}


PUBLISHED = [figures("published", seed, accuracy=0.9 + seed / 50) for seed in range(3)]


def cells(runs):
    lines = tables.table(runs, GFLOP).splitlines()
    return [[part.strip() for part in line.strip("|").split("|")] for line in lines]


# A run.


def test_a_training_is_the_demos_with_the_schedule_and_checkpoints_to_judge(tmp_path):
    (run,) = study.list_runs(["sparse"], 1, tmp_path)
    training = schedules.Training("sparse", STEPS, every=5, evaluate_every=STEPS)
    options = schedules.training_options(run, training, "s")
    settings = dict(zip(options[::2], options[1::2], strict=True))
    assert Path(settings["--config"]).name == "demo.yaml" and settings["--schedule"] == "sparse"
    assert settings["--checkpoint.every"] == settings["--checkpoint.keep_every"] == "5"
    assert settings["--loss.ds_iter"] == settings["--evaluation.every"] == str(STEPS)


def test_a_share_of_the_flops_buys_a_cheaper_schedule_a_larger_share_of_the_images():
    words = ["--schedules", "published", "--budgets", "sparse:0.5", "published:0.5:2:0.75"]
    words += ["--steps", "820"]
    trainings = schedules.plan_trainings(schedules.parse(words), {"published": 5.0, "sparse": 3.0})
    assert trainings == {
        "published": ("published", 820, 164, 820, 1, 1),
        "sparse-0.5": ("sparse", 680, 136, 680, 1, 1),  # of 683, a multiple of the checkpoints
        "published-0.5-rates-2-decay-0.75": ("published", 410, 82, 410, 2, 0.75),
    }


def test_a_budget_may_have_other_rates(tmp_path):
    (run,) = study.list_runs(["published-1-rates-2"], 1, tmp_path)
    training = schedules.Training("published", STEPS, 5, STEPS, rates=2, decay=0.75)
    options = schedules.training_options(run, training, "s")
    settings = dict(zip(options[::2], options[1::2], strict=True))
    demo = schedules.demo_config().optim
    assert float(settings["--optim.lr"]) == 2 * demo.lr
    assert float(settings["--optim.lr_mapping"]) == 2 * demo.lr_mapping
    assert (settings["--optim.decay_begin"], settings["--optim.decay_end"]) == ("15", "20")


@pytest.mark.parametrize(
    "budget", ["sparse", "sparse:", "sparse:0", "sparse:x", "spars:1", "sparse:1:0", "sparse:1:2:3"]
)
def test_a_budget_is_a_schedule_and_a_share(budget, capsys):
    with pytest.raises(SystemExit):
        schedules.parse(["--budgets", budget])
    assert "--budgets" in capsys.readouterr().err


def test_all_checkpoints_are_judged_and_those_with_an_evaluation_have_distances(
    tmp_path, monkeypatch
):
    (run,) = study.list_runs(["sparse"], 1, tmp_path)
    lines = [{"step": s, "progress/images_seen": 16 * s, "speed/images_per_second": 32.0}
             for s in (10, 20)]  # fmt: skip
    run.folder.mkdir(parents=True)
    (run.folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    result = {"protocol": "demo", "step": 20, "seed": 0, "means": MEANS}
    monkeypatch.setattr(study.scores, "complete_results", lambda folder: [result])
    monkeypatch.setattr(schedules.checkpoints, "list_steps", lambda folder: [10, 20])
    monkeypatch.setattr(schedules, "judge_checkpoint", lambda run, step, shards: JUDGED)
    first, last = schedules.judge_run(run, STEPS, "s")["checkpoints"]
    assert first == {
        "step": 10, "images": 160, "train_seconds": 5.0, "accuracy_latent": 0.9,
        "accuracy_reference": 0.7, "accuracy": 0.8, "pose_px": 0.5, "spread": 0.8,
    }  # fmt: skip
    assert last == first | {
        "step": 20, "images": 320, "train_seconds": 10.0, "demo_fid": 7.0, "demo_lpips": 0.4
    }  # fmt: skip


def test_seconds_of_training_follow_from_the_logged_speed_of_each_interval(tmp_path):
    # A run resumed at image 120: its second line has the speed since then.
    lines = [(100, 50.0), (200, 25.0), (300, 100.0)]
    text = "".join(
        json.dumps({"progress/images_seen": n, "speed/images_per_second": rate}) + "\n"
        for n, rate in lines
    )
    (tmp_path / "metrics.jsonl").write_text(text)
    assert schedules.train_seconds(tmp_path, 300) == 2 + 4 + 1
    assert schedules.train_seconds(tmp_path, 150) == 2 + 2


def test_the_flops_are_those_of_the_demo_and_of_the_literal_iteration():
    gflop = schedules.count_flops(("joint",), 3)
    assert list(gflop) == ["joint", "literal"]
    assert 0.4 < gflop["joint"] / gflop["literal"] < 0.6


# The table.


def test_the_table_has_ratios_means_and_standard_errors():
    runs = [*PUBLISHED, figures("sparse", 0, seconds=2.0)]
    heads, _, published, sparse = cells(runs)
    assert len(heads) == len(published) == len(sparse)
    assert published[:7] == ["published", "3", "2", "0.500", "1.000", "320", "4.0000 ± 0"]
    assert published[7] == "0.9200 ± 0.012"  # a deviation of 0.02, over the root of 3
    assert sparse[:8] == ["sparse", "1", "1", "0.250", "0.500", "320", "2.0000", "0.9000"]
    assert published[-2:] == ["–", "–"] and sparse[-2:] == ["unknown", "unknown"]


def test_a_schedule_without_runs_has_no_figures():
    assert cells(PUBLISHED)[3][5:] == ["–"] * 8 + ["unknown"] * 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"accuracy": 0.91}, "yes"),  # within the standard error, 0.0115
        ({"accuracy": 0.90}, "no: accuracy_latent"),
        ({"accuracy": 0.99, "fid": 2.0, "spread": 0.9}, "yes"),  # better in all
        ({"accuracy": 0.92, "fid": 6.1}, "no: demo_fid"),
        ({"accuracy": 0.92, "spread": 1.3}, "no: spread"),  # further from 1
        ({"accuracy": 0.92, "spread": 1.1}, "yes"),
    ],
)
def test_a_schedule_is_as_good_if_no_measure_is_worse_by_more_than_a_standard_error(
    changes, expected
):
    runs = [*PUBLISHED, *(figures("sparse", seed, **changes) for seed in range(3))]
    assert cells(runs)[3][-2] == expected
    is_as_good = tables.summary(runs, GFLOP)["sparse"]["as_good_as_published"]
    assert is_as_good is (expected == "yes")


def test_a_schedule_is_measurably_worse_if_it_is_worse_with_each_seed():
    """The seeds differ more than the schedules do, which the strict verdict does not see."""
    spread = [0.90, 0.92, 0.94]
    always = [figures("sparse", i, spread[i] - 0.001 * (2 + i % 2)) for i in range(3)]
    at_times = [figures("sparse", i, spread[i] - 0.01 * (i - 1)) for i in range(3)]
    for runs, worse in ((always, ["accuracy_latent"]), (at_times, [])):
        found = tables.summary([*PUBLISHED, *runs], GFLOP)["sparse"]
        assert found["as_good_as_published"] and found["measurably_worse_in"] == worse
    assert cells([*PUBLISHED, *always])[3][-1] == "no: accuracy_latent"


# The charts.


def test_a_curve_has_the_means_over_seeds_at_each_step_with_its_costs():
    runs = [figures("sparse", 0, 0.8, seconds=3.0), figures("sparse", 1, 0.9, seconds=5.0)]
    first, last = tables.curve(runs, "sparse", 1.0, "train_seconds", "accuracy")
    assert first == (2.0, 0.5, 0.0) and last == pytest.approx((4.0, 0.85, 0.05))
    flops = tables.curve(runs, "sparse", 1.0, "tflop", "accuracy")
    assert [point.x for point in flops] == [0.16, 0.32]
    assert [point.x for point in tables.curve(runs, "sparse", 1.0, "images", "demo_fid")] == [320]


def test_ticks_are_round_numbers_in_the_range():
    assert charts.ticks(0, 820) == [0, 200, 400, 600, 800]
    assert charts.ticks(0.47, 0.93) == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])


def test_lines_are_drawn_in_their_colour_and_higher_values_are_higher():
    line = [charts.Point(0, 1, 0.1), charts.Point(10, 2, 0.1)]
    axes = charts.fit_axes(line, (0, 0))
    (x0, y0), (x1, y1) = (axes.pixel(point.x, point.mean) for point in line)
    assert x0 < x1 and y0 > y1
    panel = charts.Panel("images", "accuracy", {"published": [], "sparse": line})
    page = charts.draw_charts([[panel, panel], [panel]])
    assert page.size == (2 * charts.WIDTH, charts.LEGEND + 2 * charts.HEIGHT)
    assert page.getpixel((round(x1), charts.LEGEND + round(y1))) == (0xE6, 0x9F, 0)


# The experiment.


def test_the_study_trains_what_is_left_and_ends_with_json(tmp_path, monkeypatch, capsys):
    trained = []

    def train(options, processes):
        settings = dict(zip(options[::2], options[1::2], strict=True))
        names = ("schedule", "seed", "steps", "checkpoint.every")
        trained.append(tuple(settings[f"--{name}"] for name in names))
        Path(settings["--run"]).mkdir(parents=True)

    def judge_run(run, steps, shards):
        return {"checkpoints": figures(run.row, run.seed)["checkpoints"]}

    index = SimpleNamespace(domains=["cat", "dog", "rabbit"])
    monkeypatch.setattr(schedules, "read_index", lambda shards: index)
    monkeypatch.setattr(schedules, "count_flops", lambda names, domains: GFLOP)
    monkeypatch.setattr(schedules, "judge_run", judge_run)
    monkeypatch.setattr(study, "train", train)
    options = ["--schedules", "published", "sparse", "--budgets", "sparse:0.5"]
    options += ["--steps", "20", "--out", str(tmp_path)]
    schedules.main([*options, "--seeds", "1"])
    schedules.main([*options, "--seeds", "2"])
    lengths = [("published", "20"), ("sparse", "20"), ("sparse", "20")]  # half of 2 FLOPs to 1
    assert trained == [(row, seed, steps, "4") for seed in "01" for row, steps in lengths]
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["sparse"]["seeds"] == 2 and last["sparse"]["demo_fid"] == [6.0, 0.0]
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["schedules"] == last and len(table["runs"]) == 6
    assert (tmp_path / "plot.png").is_file()
    assert "| sparse | 2 |" in (tmp_path / "table.md").read_text()
