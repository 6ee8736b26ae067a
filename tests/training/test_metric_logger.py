"""Progress lines, metrics.jsonl and TensorBoard."""

import json
import resource
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stargan_dist import storage
from stargan_dist.training import metric_logger
from stargan_dist.training.metric_logger import MetricLogger, MetricsFile
from stargan_dist.training.tolerance import Tolerance
from tests.conftest import here


def test_a_progress_line_averages_losses_over_guides():
    names = [f"D/{g}/{t}" for g in ("latent", "reference") for t in ("real", "fake", "reg")]
    names += [f"G/{g}/{t}" for g in ("latent", "reference") for t in ("adv", "sty", "ds", "cyc")]
    losses = {name: float(i) for i, name in enumerate(names)}
    line = metric_logger.progress_line(50, 200, 12.345, 0.034, 3725, losses)
    assert line == (
        "step 50/200 (25.0%)  12.3 img/s  data wait 3%  eta 1:02:05  "
        "D real 1.500 fake 2.500 reg 3.500  G adv 8.000 sty 9.000 ds 10.000 cyc 11.000"
    )


def test_a_progress_line_shows_c_alone_where_it_steps_alone():
    losses = {"C/dom": 0.5, "C/grad_norm_C": 3.0}
    line = metric_logger.progress_line(1, 2, 1.0, 0.0, 0.0, losses)
    assert line.endswith("  C dom 0.500")


@pytest.fixture(params=["local", "memory"])
def run(request, tmp_path):
    """The URL of a run folder on the local disk, and elsewhere."""
    if request.param == "local":
        yield str(tmp_path / "run")
        return
    folder = f"memory://{uuid.uuid4().hex}"
    yield f"{folder}/run"
    storage.remove_folder(folder)


def read_metrics(run):
    return storage.read_bytes(storage.join(str(run), "metrics.jsonl")).decode()


def write_metrics(run, text):
    storage.write_bytes(storage.join(run, "metrics.jsonl"), text.encode())


def test_the_metrics_file_of_a_new_run_is_empty(run):
    MetricsFile(run, 0).flush()
    assert read_metrics(run) == ""


@pytest.mark.parametrize("run", ["local"], indirect=True)
def test_metrics_are_appended_at_once_on_a_local_disk(run):
    file = MetricsFile(run, 0)
    file.flush()
    inode = (Path(run) / "metrics.jsonl").stat().st_ino
    file.append(1, {"D/latent/real": 0.5, "speed/memory_gib": 2.0})
    first_line = '{"step": 1, "D/latent/real": 0.5, "speed/memory_gib": 2.0}\n'
    assert read_metrics(run) == first_line
    file.append(2, {"D/latent/real": 0.25})
    both_lines = f'{first_line}{{"step": 2, "D/latent/real": 0.25}}\n'
    assert read_metrics(run) == both_lines
    file.flush()
    assert read_metrics(run) == both_lines
    assert (Path(run) / "metrics.jsonl").stat().st_ino == inode  # appended, not replaced


@pytest.mark.parametrize("run", ["memory"], indirect=True)
def test_metrics_elsewhere_are_written_at_each_flush(run):
    file = MetricsFile(run, 0)
    file.flush()
    file.append(1, {"D/latent/real": 0.5})
    assert read_metrics(run) == ""
    file.flush()
    assert read_metrics(run) == '{"step": 1, "D/latent/real": 0.5}\n'
    file.append(2, {"D/latent/real": 0.25})
    assert read_metrics(run) == '{"step": 1, "D/latent/real": 0.5}\n'
    file.flush()
    expected = '{"step": 1, "D/latent/real": 0.5}\n{"step": 2, "D/latent/real": 0.25}\n'
    assert read_metrics(run) == expected


@pytest.mark.parametrize("torn_line", ["", '{"step": 5, "D/lat', '{"step": 2}', "\0\0\n[]\n3\n"])
def test_a_resumed_run_removes_metrics_of_later_steps_and_a_torn_last_line(run, torn_line):
    write_metrics(run, "".join(f'{{"step": {step}}}\n' for step in (1, 2, 3, 4)) + torn_line)
    file = MetricsFile(run, 3)
    file.flush()
    assert read_metrics(run) == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    file.append(4, {"D/latent/real": 0.5})
    file.flush()
    steps = [json.loads(line)["step"] for line in read_metrics(run).splitlines()]
    assert steps == [1, 2, 3, 4]
    assert json.loads(read_metrics(run).splitlines()[-1]) == {"step": 4, "D/latent/real": 0.5}


def test_a_run_folder_has_the_contents_that_the_readme_lists(finished_run):
    names = {path.name for path in finished_run.iterdir()}
    expected = {"config.yaml", "environment.json", "status.json", "checkpoints", "samples"}
    assert expected | {"tensorboard", "metrics.jsonl"} <= names
    samples = sorted(path.name for path in (finished_run / "samples").iterdir())
    assert samples == [f"{g}_0000000{s}.png" for g in ("latent", "reference") for s in (0, 3, 6)]


def test_tensorboard_has_all_terms_schedules_and_sample_grids(finished_run):
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
    traffic = {"requests_per_image", "mib_per_second", "ahead_mib"}
    assert {f"data/{name}" for name in traffic} <= tags
    weights = [event.value for event in board.Scalars("schedule/lambda_ds")]
    assert weights == pytest.approx([1 - step / 6 for step in range(6)])
    assert set(board.Tags()["images"]) == {"samples/latent", "samples/reference"}
    assert "config/text_summary" in board.Tags()["tensors"]


def test_losses_are_logged_every_log_every_steps_and_at_the_last_step(train, tmp_path):
    """TensorBoard has no losses of the steps between."""
    here("train", *train.options(tmp_path / "run"), "--monitor.log_every", "4")
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("D/latent/real")] == [4, 6]


@contextmanager
def full_disk():
    """Fail writes beyond 100 bytes of a file, as a full disk fails them."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_metrics_survive_a_full_disk(tmp_path, caplog, capfd):
    """They are told once, complete once there is room, and nothing is raised."""
    caplog.set_level("INFO")
    logger = MetricLogger(str(tmp_path), 0, "a: 1", Tolerance())
    logger.log(1, {"D/latent/real": 1.0})
    with full_disk():
        for step in (2, 3):
            logger.log(step, {"D/latent/real": float(step)})
            logger.flush()
    time.sleep(1.1)  # TensorBoard orders files by the second in their names
    logger.log(4, {"D/latent/real": 4.0})
    logger.close()
    faults = [message for message in caplog.messages if "tried again later" in message]
    assert len(faults) == 2  # of TensorBoard and metrics.jsonl
    assert [m for m in caplog.messages if "works again" in m]
    assert "Traceback" not in capfd.readouterr().err
    steps = [json.loads(line)["step"] for line in read_metrics(tmp_path).splitlines()]
    assert steps == [1, 2, 3, 4]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    events = board.Scalars("D/latent/real")
    assert [(event.step, event.value) for event in events] == [(step, step) for step in steps]
