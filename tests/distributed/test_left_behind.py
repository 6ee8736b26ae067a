"""Whoever is killed, nobody is left behind and no lock is held. What can be saved is saved."""

import json
import signal
import time
import uuid
from contextlib import suppress

import psutil
import pytest

from stargan_dist import storage
from tests.conftest import PATIENCE_SECONDS
from tests.distributed.test_resume import KILLED, LONG, ranks, wait_for_line
from tests.helpers.runs import assert_same_bits

MARK = "STARGAN_TEST_MARK"  # in the environment of every process of a run
# In step 3, ranks take longer than the launcher waits for them (30 s by default).
SLOW_STEP = {
    "KILL_AT": "stargan_dist.training.trainer/TrainState:update_averages:3",
    "KILL_BY": "sleep",
    "KILL_SECONDS": "9",
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "4",
}
WORKER = "pt_data_worker"  # torch's name for it
FORK = ("--data.workers", "1")


class Run:
    """A run of two processes, and all processes that belong to it."""

    def __init__(self, train, folder, *options, **env) -> None:
        self.folder, self.mark = folder, uuid.uuid4().hex
        env |= {MARK: self.mark}
        self.launcher = train.start(folder, *LONG, *options, processes=2, **env)
        wait_for_line(self.launcher, "step 2/")

    def processes(self) -> list[psutil.Process]:
        """Return the living processes, wherever they are in the tree of processes."""
        return [each for each in psutil.process_iter() if marks(each) == self.mark]

    def victims(self, names) -> list[psutil.Process]:
        """Return the launcher, ranks and loader workers that are named."""
        by_name = ranks(self.launcher) | {"launcher": psutil.Process(self.launcher.pid)}
        for rank in ("0", "1"):
            children = by_name[rank].children(recursive=True)
            by_name[f"worker {rank}"] = next(c for c in children if c.name() == WORKER)
        return [by_name[name] for name in names]

    def end(self) -> str:
        """Wait until no process is left. Returns the output, and how long that took."""
        began = time.monotonic()
        out, err = self.launcher.communicate(timeout=PATIENCE_SECONDS)
        while (left := self.processes()) and time.monotonic() - began < 60:
            time.sleep(0.1)
        for process in left:
            process.kill()
        assert not left, out + err
        print(f"all ended after {time.monotonic() - began:.1f} s, {self.status()}")
        with storage.exclusive_lock(str(self.folder), "locked"):
            return out + err

    def status(self) -> dict:
        return json.loads((self.folder / "status.json").read_text())


def marks(process) -> str | None:
    with suppress(psutil.Error):
        return None if process.status() == "zombie" else process.environ().get(MARK)
    return None


def test_a_launcher_does_not_kill_ranks_that_still_have_to_save(train, tmp_path):
    """They end it first, and go on without the store that it hosts."""
    run = Run(train, tmp_path / "run", *FORK, driver=KILLED, **SLOW_STEP)
    run.launcher.send_signal(signal.SIGTERM)
    output = run.end()
    assert "ended the launcher, which kills what is not saved within 4 s" in output
    assert "Traceback" not in output
    assert "error" not in output
    assert run.launcher.returncode == -signal.SIGKILL
    assert run.status() == {"status": "stopped", "step": 3, "signal": signal.SIGTERM}


@pytest.mark.slow
def test_a_run_without_its_launcher_resumes_to_the_same_bits(train, tmp_path):
    run = Run(train, tmp_path / "run", *FORK)
    run.launcher.kill()
    run.end()
    steps = ("--steps", str(run.status()["step"] + 2))
    train(tmp_path / "run", *LONG, *steps, processes=2)
    train(tmp_path / "uninterrupted", *LONG, *steps, processes=2)
    assert_same_bits(tmp_path / "run", tmp_path / "uninterrupted")


SAVING = [(["launcher"], sent) for sent in ("SIGKILL", "SIGUSR1", "SIGTERM", "SIGHUP")]
LOSING = [
    (names, "SIGKILL")
    for names in (
        ["0"], ["1"], ["worker 0"], ["worker 1"], ["0", "1"], ["launcher", "1"], ["launcher", "0"],
        ["launcher", "worker 0"], ["0", "worker 1"], ["launcher", "0", "1"],
    )
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize(("names", "sent"), SAVING + LOSING)
def test_nobody_is_left_behind(train, tmp_path, names, sent, start_method):
    run = Run(train, tmp_path / "run", *FORK, "--data.start_method", start_method)
    for victim in run.victims(names):
        victim.send_signal(signal.Signals[sent])
    run.end()
    if (names, sent) in SAVING:
        assert run.status()["status"] == "stopped"
