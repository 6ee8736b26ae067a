"""Trackers beside TensorBoard: what they receive, and that none of them stops a training."""

import json
import signal
import threading
import time
from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import pytest
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL import Image

from stargan_dist import config as configs
from stargan_dist.errors import UserError
from stargan_dist.training import trackers as module
from stargan_dist.training.reporter import Reporter
from stargan_dist.training.tolerance import Tolerance
from stargan_dist.training.trackers import Package, Trackers, check_trackers
from tests.conftest import here
from tests.distributed.test_resume import KILL_POINTS, KILLED
from tests.helpers.runs import scalars

CALLS = ("start", "log", "log_images", "finish")


class Fake(GeneralTracker):
    """A tracker that records its calls, and fails or hangs in those that a test names."""

    name = "fake"
    requires_logging_directory = False
    faults: ClassVar = {}
    calls: ClassVar = []

    def __init__(self, **arguments):
        super().__init__()
        self._call("__init__", arguments)

    @property
    def tracker(self):
        return SimpleNamespace(run_id="its own")

    def _call(self, name, *values):
        self.calls.append((name, *values))
        self.faults.get(name, lambda: None)()

    def start(self):
        self._call("start")

    def store_init_configuration(self, values):
        self._call("store_init_configuration", values)

    def log(self, values, step=None):
        self._call("log", values, step)

    def log_images(self, values, step=None):
        self._call("log_images", values, step)

    def finish(self):
        self._call("finish")


@pytest.fixture
def fake(monkeypatch):
    """Register the fake tracker. Its run ids are its own, as those of MLflow."""
    package = Package(vars, "fake", lambda run: run.run_id)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "fake", Fake)
    monkeypatch.setitem(module.TABLE, "fake", package)
    monkeypatch.setattr(Fake, "faults", {})
    monkeypatch.setattr(Fake, "calls", [])
    PartialState(cpu=True)
    return Fake


def raise_(error):
    raise error


def config(run, names=("fake",)):
    return configs.from_dict(
        {
            "run": str(run),
            "data": {"shards": "s"},
            "storage": {"options": {"s3": {"secret": "hidden"}}},
            "monitor": {"trackers": [*names]},
        }
    )


def log_steps(run, start, steps):
    trackers = Trackers(config(run), start, Tolerance())
    for step in steps:
        trackers.log("scalars", step, {"loss": step / 2})
        if step % 2 == 0:
            trackers.show(step, {"grid": Image.new("RGB", (2, 2))})
    trackers.close()


def logged(kind="log"):
    return [call[2] for call in Fake.calls if call[0] == kind]


def test_a_tracker_receives_configuration_scalars_and_images(fake, tmp_path):
    log_steps(tmp_path / "my_run", 0, [1, 2])
    (_, arguments), start, (_, values), *calls, finish = fake.calls
    assert arguments["name"] == "my_run"
    assert not arguments["continued"]
    assert (start, finish) == (("start",), ("finish",))
    assert [(name, step) for name, _, step in calls] == [("log", 1), ("log", 2), ("log_images", 2)]
    assert calls[0][1] == {"loss": 0.5}
    assert calls[2][1].keys() == {"grid"}
    assert values["optim.betas"] == values["loss.reg"] == ""  # not set
    assert values["monitor.trackers"] == "['fake']"
    assert all(isinstance(value, bool | int | float | str) for value in values.values())
    assert "hidden" not in str(values)


def test_a_resumed_run_continues_without_double_points(fake, tmp_path):
    log_steps(tmp_path / "run", 0, [1, 2, 3])
    fake.calls.clear()
    log_steps(tmp_path / "run", 1, [2, 3, 4])
    (_, arguments), *_ = fake.calls
    assert arguments["continued"]
    assert arguments["id"] == "its own"
    assert (logged(), logged("log_images")) == ([4], [4])
    assert "store_init_configuration" not in [name for name, *_ in fake.calls]
    saved = json.loads((tmp_path / "run" / "trackers.json").read_text())
    assert saved == {"fake": {"id": "its own", "steps": {"scalars": 4, "images": 4}}}


def test_the_last_steps_of_kinds_are_independent(fake, tmp_path):
    """A run that was stopped in an evaluation completes it, at a step that was logged before."""
    log_steps(tmp_path, 0, [1, 2])
    trackers = Trackers(config(tmp_path), 2, Tolerance())
    trackers.log("evaluation", 2, {"fid": 1.0})
    trackers.log("scalars", 2, {"loss": 1.0})
    trackers.close()
    assert [values for name, values, *_ in fake.calls[-2:-1] if name == "log"] == [{"fid": 1.0}]


@pytest.mark.parametrize("local", [True, False])
def test_files_of_a_tracker_are_in_the_run_or_a_line_names_the_folder(
    fake, tmp_path, monkeypatch, caplog, local
):
    caplog.set_level("INFO")
    monkeypatch.setitem(module.TABLE, "fake", Package(vars, "fake", needs_folder=True))
    monkeypatch.setattr(module.tempfile, "mkdtemp", lambda **_: str(tmp_path / "temporary"))
    run = str(tmp_path / "run") if local else f"memory://{tmp_path.name}/run"
    log_steps(run, 0, [1])
    folder = fake.calls[0][1]["folder"]
    if local:
        assert folder == f"{run}/trackers/fake"
        assert caplog.messages == []
    else:
        assert f"tracker fake writes to {folder}: the run is not a local folder" in caplog.messages
        log_steps(run, 1, [2])  # nothing there to continue
        assert not [call for call in fake.calls if call[0] == "__init__"][1][1]["continued"]


def test_a_run_without_a_checkpoint_begins_again(fake, tmp_path):
    log_steps(tmp_path / "run", 0, [1, 2])
    log_steps(tmp_path / "run", 0, [1, 2])
    assert logged() == [1, 2, 1, 2]


@pytest.mark.parametrize("content", [b"{", b'{"fake": 1}', b"\xff"])
def test_a_damaged_file_begins_a_new_tracked_run(fake, tmp_path, content, caplog):
    (tmp_path / "trackers.json").write_bytes(content)
    log_steps(tmp_path, 1, [2])
    assert logged() == [2]
    assert "trackers.json" in caplog.text


@pytest.mark.parametrize("error", [OSError("no\nroute"), KeyError("x"), SystemExit(1)])
@pytest.mark.parametrize("call", ["__init__", *CALLS])
def test_a_tracker_that_fails_is_dropped_with_one_line(fake, tmp_path, call, error, caplog):
    fake.faults[call] = lambda: raise_(error)
    log_steps(tmp_path / "run", 0, range(1, 9))
    (message,) = caplog.messages
    assert message.startswith("tracker fake: ")
    assert message.endswith("; training continues without it")
    assert "\n" not in message
    assert [name for name, *_ in fake.calls].count(call) == 1


@pytest.mark.parametrize("call", CALLS)
def test_a_tracker_that_hangs_does_not_stop_the_training(fake, tmp_path, call, caplog, monkeypatch):
    for limit in ("START_SECONDS", "FINISH_SECONDS"):
        monkeypatch.setattr(module, limit, 0.05)
    monkeypatch.setattr(module, "MAX_WAITING", 4)
    released = threading.Event()
    fake.faults[call] = released.wait
    log_steps(tmp_path / "run", 0, range(1, 9))
    released.set()
    (message,) = caplog.messages
    assert "has not" in message


def test_status_json_is_written_before_trackers_are_waited_for(monkeypatch):
    """A scheduler may kill a stopped training while it waits."""
    ended, reporter = [], Reporter.__new__(Reporter)
    reporter.is_main, reporter.config = True, config("r")
    for part in ("metrics", "trackers"):
        setattr(reporter, part, SimpleNamespace(close=partial(ended.append, part)))
    monkeypatch.setattr(reporter, "_write_status", lambda *_: ended.append("status"))
    reporter.end(2, finished=False, received=signal.SIGTERM)
    assert ended == ["metrics", "status", "trackers"]


def test_a_slow_tracker_is_waited_for_at_the_end(fake, tmp_path):
    fake.faults["log"] = lambda: time.sleep(0.02)
    log_steps(tmp_path / "run", 0, range(1, 9))
    assert logged() == [*range(1, 9)]


def test_an_unknown_tracker_is_rejected_with_the_names():
    with pytest.raises(UserError, match=r"^monitor.trackers: 'wandbb' is not one of .*wandb;"):
        check_trackers(["tensorboard", "wandbb"])
    check_trackers([])


def test_a_missing_package_is_rejected_with_its_name(fake, tmp_path, monkeypatch):
    message = "fake is not installed; run `pip install fake`, or leave it out"
    (tmp_path / "fake").mkdir()  # such as the folder wandb/ of W&B's own files
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=message):
        check_trackers(["fake"])
    (tmp_path / "fake" / "__init__.py").touch()
    check_trackers(["fake"])


def test_a_training_rejects_an_unknown_tracker_before_it_writes_anything(train, tmp_path):
    options = (*train.options(tmp_path / "run"), "--monitor.trackers", "[x]")
    error = here("train", *options, code=2).stderr
    assert error.count("\n") == 1
    assert error.startswith("error: monitor.trackers: 'x' is not one of aim, ")
    assert not (tmp_path / "run").exists()


def test_without_trackers_only_the_metrics_file_is_written(train, tmp_path):
    run = tmp_path / "run"
    here("train", *train.options(run), "--steps", "2", "--monitor.trackers", "[]")
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert not (run / "tensorboard").exists()
    assert json.loads((run / "status.json").read_text())["status"] == "finished"


RANKS = """
import os, sys
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from stargan_dist.errors import run_command
from stargan_dist.train import main
from stargan_dist.training import trackers

class Fake(GeneralTracker):
    name, requires_logging_directory, tracker = "json", False, None
    def __init__(self, **_):
        print(f"constructed on rank {os.environ['RANK']}", flush=True)
    def log(self, values, step=None):
        raise OSError("away")

LOGGER_TYPE_TO_CLASS["json"] = Fake
trackers.TABLE["json"] = trackers.Package(vars, "json")
run_command(main)
"""


@pytest.mark.slow
def test_only_rank_0_has_trackers_and_a_fault_does_not_stop_the_training(train, tmp_path):
    (tmp_path / "driver.py").write_text(RANKS)
    options = ("--steps", "2", "--monitor.trackers", "[tensorboard,json]")
    done = train(tmp_path / "run", *options, processes=2, driver=str(tmp_path / "driver.py"))
    assert done.stdout.count("constructed on rank") == 1
    assert "constructed on rank 0" in done.stdout
    assert done.stderr.count("tracker json: away; training continues without it") == 1
    assert "finished at step 2" in done.stdout


def train_killed(train, run, *options, **env):
    kill = {"KILL_AT": KILL_POINTS["in a step"], "code": -signal.SIGKILL}
    train(run, *options, driver=KILLED, **kill, **env)
    train(run, *options, **env)


def train_twice(train, run, *options, **env):
    """Go back to step 2 after step 4, which has the same effect as a loss of what follows."""
    here("train", *train.options(run), *options, "--steps", "4", **env)
    (run / "checkpoints" / "latest").write_text("step_00000002\n")
    here("train", *train.options(run), *options, **env)


@pytest.mark.parametrize(
    "train_and_resume", [train_twice, pytest.param(train_killed, marks=pytest.mark.slow)]
)
def test_mlflow_has_every_step_of_a_resumed_run_once(train, tmp_path, train_and_resume):
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed (pip install .[test])")
    uri = f"file:{tmp_path}/mlflow"
    env = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ALLOW_FILE_STORE": "true", "DO_NOT_TRACK": "1"}
    run = tmp_path / "run"
    options = ("--monitor.trackers", "[tensorboard,mlflow]")
    train_and_resume(train, run, *options, **env)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        client = mlflow.MlflowClient(uri)
        (experiment,) = client.search_experiments(filter_string="name = 'stargan_dist'")
        (tracked,) = client.search_runs([experiment.experiment_id])
        points = {
            tag: [(point.step, point.value) for point in client.get_metric_history(
                tracked.info.run_id, tag)]
            for tag in tracked.data.metrics
        }  # fmt: skip
    assert tracked.info.run_name == "run"
    assert tracked.data.params["recipe"] == "f"
    expected = scalars(run)
    assert {tag: [step for step, _ in points[tag]] for tag in expected} == {
        tag: [step for step, _ in values] for tag, values in expected.items()
    }
    for tag, values in expected.items():
        assert [value for _, value in points[tag]] == pytest.approx([v for _, v in values])
