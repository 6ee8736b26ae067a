import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stargan_dist.training import metric_logger
from tests.conftest import here


def test_progress_line():
    names = [f"D/{g}/{t}" for g in ("latent", "reference") for t in ("real", "fake", "reg")]
    names += [f"G/{g}/{t}" for g in ("latent", "reference") for t in ("adv", "sty", "ds", "cyc")]
    losses = {name: float(i) for i, name in enumerate(names)}
    line = metric_logger.progress_line(50, 200, 12.345, 3725, losses)
    assert line == (
        "step 50/200 (25.0%)  12.3 img/s  eta 1:02:05  D real 1.500 fake 2.500 reg 3.500  "
        "G adv 8.000 sty 9.000 ds 10.000 cyc 11.000"
    )


def test_a_run_leaves_what_the_readme_says(finished_run):
    names = {path.name for path in finished_run.iterdir()}
    expected = {"config.yaml", "environment.json", "status.json", "checkpoints", "samples"}
    assert expected | {"tensorboard"} <= names
    samples = sorted(path.name for path in (finished_run / "samples").iterdir())
    assert samples == [f"{g}_0000000{s}.png" for g in ("latent", "reference") for s in (0, 3, 6)]


def test_tensorboard_has_every_term_and_schedule(finished_run):
    board = EventAccumulator(str(finished_run / "tensorboard"))
    board.Reload()
    tags = set(board.Tags()["scalars"])
    for guide in ("latent", "reference"):
        assert {f"D/{guide}/{t}" for t in ("real", "fake", "reg", "grad_norm_D")} <= tags
        assert {f"G/{guide}/{t}" for t in ("adv", "sty", "ds", "cyc", "grad_norm_G")} <= tags
    assert {"G/latent/grad_norm_F", "G/latent/grad_norm_E"} <= tags
    assert "G/reference/grad_norm_E" not in tags
    speed = {"images_per_second", "data_wait_share", "memory_gib"}
    assert {f"speed/{name}" for name in speed} <= tags
    falling = [event.value for event in board.Scalars("schedule/lambda_ds")]
    assert falling == pytest.approx([1 - step / 6 for step in range(6)])
    assert set(board.Tags()["images"]) == {"samples/latent", "samples/reference"}
    assert "config/text_summary" in board.Tags()["tensors"]


def test_losses_are_read_only_when_they_are_logged(train, tmp_path):
    """The steps between two log lines leave no trace, and change nothing."""
    here("train", *train.options(tmp_path / "run"), "--monitor.log_every", "4")
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("D/latent/real")] == [4, 6]
