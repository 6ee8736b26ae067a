"""Studies: remaining runs, estimated time left, and trainings that fail or are stopped."""

import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent.parent / "experiments"))

import launching
import study

from stargan_dist.errors import STOPPED, UserError

STEPS = 10


def finish(run, **changes):
    run.folder.mkdir(parents=True)
    content = {"row": run.row, "seed": run.seed, "steps": STEPS, "seconds": 60.0, **changes}
    (run.folder / study.FIGURES_FILE).write_text(json.dumps(content))


def test_all_rows_of_a_seed_come_before_the_next_seed(tmp_path):
    runs = study.list_runs(["a", "f"], 2, tmp_path)
    assert [(run.row, run.seed) for run in runs] == [("a", 0), ("f", 0), ("a", 1), ("f", 1)]


def test_an_interrupted_experiment_resumes_with_the_remaining_runs(tmp_path):
    runs, performed, reports = study.list_runs(["a", "f"], 2, tmp_path), [], []

    def perform_run(run):
        if len(performed) == 3:
            raise KeyboardInterrupt
        performed.append(run)
        finish(run)

    with pytest.raises(KeyboardInterrupt):
        study.perform_remaining(runs, STEPS, perform_run, lambda: reports.append(1))
    assert performed == runs[:3] and len(reports) == 3
    assert study.remaining(runs, STEPS) == runs[3:]


def test_two_processes_share_the_runs_of_a_study(tmp_path):
    """The second begins while the first performs its first run, and finishes all others."""
    runs, performed = study.list_runs(["a", "f"], 2, tmp_path), []

    def perform(name):
        def perform_run(run):
            performed.append((name, run))
            finish(run)

        return perform_run

    def perform_first(run):
        if run == runs[0]:
            study.perform_remaining(runs, STEPS, perform("second"), lambda: None)
        perform("first")(run)

    study.perform_remaining(runs, STEPS, perform_first, lambda: None)
    assert performed == [*(("second", run) for run in runs[1:]), ("first", runs[0])]


@pytest.mark.parametrize("content", ['{"steps": 5}', '{"ste', None])
def test_a_run_with_other_steps_or_without_figures_remains(tmp_path, content):
    (run,) = study.list_runs(["a"], 1, tmp_path)
    run.folder.mkdir(parents=True)
    if content:
        (run.folder / study.FIGURES_FILE).write_text(content)
    assert study.remaining([run], STEPS) == [run]


def test_the_time_left_is_estimated_from_runs_of_the_same_row(tmp_path, capsys):
    runs = study.list_runs(["a", "f", "e"], 2, tmp_path)
    assert study.seconds_left(runs, STEPS) is None
    finish(runs[0], seconds=40)
    finish(runs[1], seconds=100)
    finish(runs[2], seconds=None)  # a resumed run
    assert study.seconds_left(runs, STEPS) == 40 + 100 + 70
    study.announce(4, runs, runs[3], STEPS)
    assert "run 4 of 6: row a, seed 1; eta of all runs: 0:03:30" in capsys.readouterr().out


@pytest.fixture
def trainings(monkeypatch):
    """Trainings that only make the folder of their run; returns the folders."""
    folders = []

    def train(options, processes):
        folders.append(Path(options[0]))
        folders[-1].mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(study, "train", train)
    return folders


def conduct(runs, measure, reports, **options):
    args = SimpleNamespace(steps=STEPS, processes=2)

    def report():
        reports.append(len(study.finished(runs, STEPS)))
        return "a table"

    study.conduct(runs, args, lambda run: [str(run.folder)], measure, report, **options)


def test_a_killed_study_resumes_with_the_run_that_it_was_judging(tmp_path, trainings):
    runs, judged, reports = study.list_runs(["a", "f"], 1, tmp_path), [], []

    def measure(run):
        if len(judged) == 1 and run not in judged:
            judged.append(run)
            raise KeyboardInterrupt
        judged.append(run)
        return {"accuracy": 0.9}

    with pytest.raises(KeyboardInterrupt):
        conduct(runs, measure, reports)
    conduct(runs, measure, reports)
    assert judged == [runs[0], runs[1], runs[1]] and reports == [1, 2]
    assert trainings == [runs[0].folder, runs[1].folder, runs[1].folder]
    timed, resumed = study.finished(runs, STEPS).values()
    assert timed["accuracy"] == resumed["accuracy"] == 0.9
    assert timed["seconds"] >= 0 and resumed["seconds"] is None  # timed only in part


def test_a_training_has_no_more_processes_than_can_share_its_batch(tmp_path, monkeypatch):
    runs, processes = study.list_runs(["a", "b", "c"], 1, tmp_path), []
    monkeypatch.setattr(study, "train", lambda _, count: processes.append(count))
    monkeypatch.setattr(study, "write_json", lambda *_: None)
    most = dict(zip(runs, (1, 2, 8), strict=True))
    conduct(runs, lambda _: {}, [], most_processes=most.__getitem__)
    assert processes == [1, 2, 2]


def test_a_finished_study_writes_its_report_without_training(tmp_path, trainings):
    runs, reports = study.list_runs(["a"], 1, tmp_path), []
    finish(runs[0])
    conduct(runs, pytest.fail, reports)
    assert trainings == [] and reports == [1]


def test_a_run_without_its_last_evaluation_is_an_error_with_the_command(tmp_path):
    (run,) = study.list_runs(["a"], 1, tmp_path)
    assert study.find_evaluation(run, STEPS) is None
    with pytest.raises(UserError, match=f"--checkpoint {STEPS} --protocol demo"):
        study.find_last_evaluation(run, STEPS)


def test_a_failed_training_is_an_error_and_a_stopped_one_exits_with_the_code_of_stopped_runs(
    monkeypatch,
):
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
