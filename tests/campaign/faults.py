"""The faults of running trainings: a table, and the functions that its rows name.

A fault is a generator function of a `Scene`. It prepares what must exist before the training
starts, yields, and continues with the fault once the training has been started.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.campaign.programs import ROOT, Program, send
from tests.campaign.setups import BOUND_SECONDS, STEPS, Place

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
# Longest time that a server is away or a process stopped in a fault that a run must survive.
AWAY_SECONDS = 8.0


@dataclass
class Scene:
    """A training and what the fault of a try needs.

    Attributes:
        program: the training, once it runs.
        repair: called before the command is started again.
        stepped: last logged step when the fault came; 0: nothing is expected to be saved then.
        saved: step of the newest checkpoint when the fault came.
        began: time of the fault, as `time.time()`.
    """

    place: Place
    rng: random.Random
    program: Program | None = None
    repair: Callable[[], None] = lambda: None
    stepped: int = 0
    saved: int = 0
    began: float = field(default_factory=time.time)

    def reach(self, step: int) -> None:
        """Wait until a step is logged, or the training has ended."""
        assert self.program
        self.program.wait_for_step(step, BOUND_SECONDS)

    def random_moment(self) -> None:
        """Wait for a random step, and a random part of a second; then the fault begins."""
        self.reach(self.rng.randrange(1, STEPS - 1))
        time.sleep(self.rng.uniform(0.0, 0.5))
        self.note()

    def note(self) -> None:
        """Record what the run must not lose."""
        assert self.program
        self.saved, self.stepped = self.place.saved_step(), self.program.step()
        self.began = time.time()

    def pick(self, who: str) -> list[int]:
        """Return process ids: main, rank, worker, others (not main) or all."""
        program = self.program
        assert program
        if who == "main":
            return [program.pid]
        every = [p.pid for p in program.processes()]
        groups = {"all": every, "others": [p for p in every if p != program.pid]}
        if who in groups:
            return groups[who]
        one_of = program.ranks() if who == "rank" else program.workers()
        return [self.rng.choice(one_of).pid] if one_of else []

    def send(self, who: str, number: int) -> None:
        for pid in self.pick(who):
            send(pid, number)


Fault = Callable[[Scene], Iterator[None]]

# Kills.


def kill(scene: Scene, who: str) -> Iterator[None]:
    yield
    scene.random_moment()
    scene.send(who, signal.SIGKILL)


def kill_at_start(scene: Scene, who: str) -> Iterator[None]:
    """Kill before the first step."""
    yield
    time.sleep(scene.rng.uniform(0.0, 3.0 * scene.place.setup.processes**2))
    scene.note()
    scene.send(who, signal.SIGKILL)


def kill_while_saving(scene: Scene, who: str) -> Iterator[None]:
    """Kill while there is a partial file of a checkpoint, after a random number of them."""
    yield
    assert scene.program
    folder, number = scene.place.run_folder / "checkpoints", scene.rng.randrange(4)
    seen: set[str] = set()

    def saving() -> bool:
        seen.update(path.name for path in folder.glob(".partial-*"))
        return len(seen) > number

    # Polled without a pause: the files exist for milliseconds.
    while not saving() and not scene.program.poll():
        pass
    time.sleep(scene.rng.uniform(0.0, 0.01))
    scene.note()
    scene.saved = 0  # `latest` may just be behind
    scene.send(who, signal.SIGKILL)


# Processes that stop for a time, or for good.


def pause(scene: Scene, who: str) -> Iterator[None]:
    yield
    scene.random_moment()
    stopped = scene.pick(who)
    for pid in stopped:
        send(pid, signal.SIGSTOP)
    time.sleep(scene.rng.uniform(0.2, AWAY_SECONDS))
    for pid in stopped:
        send(pid, signal.SIGCONT)


def stop_rank_for_good(scene: Scene) -> Iterator[None]:
    scene.place.options += ("--engine.timeout_seconds", "15")
    yield
    scene.random_moment()
    scene.send("rank", signal.SIGSTOP)


# Signals.


def stop_signal(scene: Scene, who: str, number: int) -> Iterator[None]:
    yield
    scene.random_moment()
    scene.send(who, number)


def storm(scene: Scene, who: str) -> Iterator[None]:
    """Signals of one kind or several, again and again until the command has ended."""
    yield
    scene.random_moment()
    assert scene.program
    numbers = scene.rng.choice([*([n] for n in STOP_SIGNALS), list(STOP_SIGNALS)])
    every = scene.rng.choice([0.005, 0.02, 0.1])
    while not scene.program.poll() and time.time() - scene.began < BOUND_SECONDS:
        scene.send(who, scene.rng.choice(numbers))
        time.sleep(every)


def signal_in_slow_step(scene: Scene, number: int, seconds: tuple[float, float]) -> Iterator[None]:
    """A signal to the command while every rank is in a step that takes long."""
    entered, step = scene.place.folder / "slow", scene.rng.randrange(2, STEPS)
    scene.place.env |= {"SLOW_STEP": str(step), "SLOW_FILE": str(entered)}
    scene.place.env["SLOW_SECONDS"] = str(scene.rng.uniform(*seconds))
    scene.place.driver = str(ROOT / "tests" / "campaign" / "slow_step.py")
    yield
    assert scene.program
    scene.program.wait_for(entered.exists, BOUND_SECONDS)
    time.sleep(scene.rng.uniform(0.0, 1.0))
    scene.note()
    scene.repair = lambda: _train_normally(scene.place)
    scene.send("main", number)


def _train_normally(place: Place) -> None:
    place.driver = ""


# Disks.


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def _mount_small_disk(folder: Path) -> None:
    folder.mkdir(parents=True)
    mount("-t", "tmpfs", "-o", "size=4m", "none", str(folder))


def fill(folder: Path) -> Path:
    """Fill a disk with one file."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


def full_disk(scene: Scene, freed: bool) -> Iterator[None]:
    """The run's disk is full from a random moment on; for a time, or until the next start."""
    disk = scene.place.folder / "disk"
    _mount_small_disk(disk)
    scene.place.run_folder = disk / "run"
    yield
    scene.random_moment()
    filler = fill(disk)
    if freed:
        time.sleep(scene.rng.uniform(0.1, 1.0))
        filler.unlink()
    else:
        scene.repair = filler.unlink


def full_cache_disk(scene: Scene) -> Iterator[None]:
    """The cache's disk is full from the start, until the command is started again."""
    _mount_small_disk(scene.place.cache)
    filler = fill(scene.place.cache)
    scene.repair = filler.unlink
    yield
    scene.began = time.time()


def read_only(scene: Scene) -> Iterator[None]:
    """The run's disk turns read-only, as after an error of the disk."""
    disk = scene.place.folder / "disk"
    _mount_small_disk(disk)
    scene.place.run_folder = disk / "run"
    yield
    scene.random_moment()
    # A disk with files open for writing cannot be remounted: mounted over itself, it can.
    mount("--bind", str(disk), str(disk))
    mount("-o", "remount,ro,bind", str(disk))
    scene.repair = partial(subprocess.run, ["umount", "-l", str(disk)], check=True)


def file_for_samples(scene: Scene) -> Iterator[None]:
    """A file takes the place of samples/."""
    yield
    scene.random_moment()
    samples = scene.place.run_folder / "samples"
    shutil.rmtree(samples, ignore_errors=True)
    samples.write_text("")


def busy_checkpoint(scene: Scene) -> Iterator[None]:
    """A checkpoint that retention will remove cannot be removed: it is busy."""
    yield
    scene.reach(scene.rng.randrange(3, 7))
    scene.note()
    steps = sorted((scene.place.run_folder / "checkpoints").glob("step_*"))
    if steps:
        mount("--bind", str(steps[0]), str(steps[0]))
        scene.repair = partial(subprocess.run, ["umount", "-l", str(steps[0])], check=True)


# Servers.


def server_away(scene: Scene) -> Iterator[None]:
    yield
    scene.random_moment()
    server = scene.rng.choice(list(scene.place.servers.values()))
    server.go_away()
    time.sleep(scene.rng.uniform(0.2, AWAY_SECONDS))
    server.come_back()


def server_frozen(scene: Scene) -> Iterator[None]:
    yield
    scene.random_moment()
    server = scene.rng.choice(list(scene.place.servers.values()))
    server.freeze()
    time.sleep(scene.rng.uniform(0.2, 2 * AWAY_SECONDS))
    server.thaw()


# Races.


def second_launch(scene: Scene) -> Iterator[None]:
    """The same command is started again while the first still runs, or has just ended."""
    yield
    assert scene.program
    if scene.rng.random() < 0.5:  # while everything starts
        time.sleep(scene.rng.uniform(0.0, 2.0))
    else:
        scene.reach(scene.rng.randrange(1, STEPS + 1))
    scene.began = time.time()
    second = scene.place.start()
    second.wait(BOUND_SECONDS)


@dataclass(frozen=True)
class Row:
    """A fault and what it may end in.

    Attributes:
        name: printed.
        kind: the line of the table that counts it.
        fault: the generator function.
        where: fields of the setup that it needs -> values.
        codes: exit codes of the training that met the fault, if a single process trains; a launcher
            has codes of its own. Empty: any.
        goes_on: the training must finish as if nothing had happened.
        keeps_step: the step at which the fault came must be saved.
        needs_root: for mounts.
        weight: how often, relative to others of the kind.
    """

    name: str
    kind: str
    fault: Fault
    where: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    codes: tuple[int, ...] = ()
    goes_on: bool = False
    keeps_step: bool = False
    needs_root: bool = False
    weight: float = 1.0


ALONE = {"engine": ["one"]}
SEVERAL = {"engine": ["ddp", "zero1", "zero2", "zero3"]}
LOCAL = {"run": ["local"]}
WORKERS = {"workers": [2]}
REMOTE_SHARDS = {"shards": ["http", "s3"]}
REMOTE_RUN = {"run": ["s3"]}
STOPPED = (0, 75)  # 0: it had just finished
FAULT = (2, 74)


def row(
    name: str, kind: str, fault: Callable[..., Iterator[None]], *args: Any, **kwargs: Any
) -> Row:
    """Return a row whose fault has arguments."""
    return Row(name, kind, lambda scene: fault(scene, *args), **kwargs)


SIGNAL_ROWS = [
    row(
        f"{number.name} to {who}", "signal", stop_signal, who, number,
        where=where, codes=STOPPED, keeps_step=True,
    )
    for number in STOP_SIGNALS
    for who, where in (("main", {}), ("all", {}), ("rank", SEVERAL))
]  # fmt: skip

ROWS = (
    row("kill main", "kill", kill, "main", weight=3),
    row("kill a rank", "kill", kill, "rank", where=SEVERAL),
    row("kill a worker", "kill", kill, "worker", where=WORKERS, weight=2),
    row("kill all", "kill", kill, "all", weight=2),
    row("kill all but main", "kill", kill, "others", where=SEVERAL, weight=0.5),
    row("kill main at start", "kill", kill_at_start, "main"),
    row("kill all at start", "kill", kill_at_start, "all"),
    row("kill main while saving", "kill", kill_while_saving, "main", where=LOCAL, weight=2),
    row("kill a rank while saving", "kill", kill_while_saving, "rank", where=LOCAL | SEVERAL),
    row("pause main", "stop", pause, "main", goes_on=True),
    row("pause a rank", "stop", pause, "rank", where=SEVERAL, goes_on=True),
    row("pause a worker", "stop", pause, "worker", where=WORKERS, goes_on=True),
    row("pause all", "stop", pause, "all", goes_on=True),
    row("stop a rank for good", "stop", stop_rank_for_good, where=SEVERAL),
    *SIGNAL_ROWS,
    row("storm to main", "signal", storm, "main", codes=STOPPED, keeps_step=True, weight=3),
    row("storm to all", "signal", storm, "all", codes=STOPPED, keeps_step=True, weight=3),
    row("full disk for a time", "disk", full_disk, True, where=LOCAL, goes_on=True,
        needs_root=True),
    row("full disk", "disk", full_disk, False, where=LOCAL, codes=(0, *FAULT), needs_root=True),
    row("full cache disk", "disk", full_cache_disk, codes=(0, *FAULT),
        where={"cache": [True], "shards": ["http", "s3"]}, needs_root=True),
    row("read-only disk", "disk", read_only, where=LOCAL, codes=(0, *FAULT), needs_root=True),
    row("file in place of samples/", "disk", file_for_samples, where=LOCAL, goes_on=True),
    row("busy checkpoint", "disk", busy_checkpoint, where=LOCAL, goes_on=True, needs_root=True),
    row("server of shards away", "server", server_away, where=REMOTE_SHARDS | LOCAL, goes_on=True),
    row("server of shards frozen", "server", server_frozen, where=REMOTE_SHARDS | LOCAL,
        goes_on=True),
    row("server of the run away", "server", server_away, goes_on=True,
        where=REMOTE_RUN | {"shards": ["local", "s3"]}),
    row("server of the run frozen", "server", server_frozen, goes_on=True,
        where=REMOTE_RUN | {"shards": ["local", "s3"]}),
    row("second launch", "race", second_launch, where=LOCAL, codes=(0, *FAULT), weight=2),
    row("second launch, S3", "race", second_launch, where=REMOTE_RUN, codes=(0, *FAULT)),
    row("SIGTERM in a slow step", "slow step", signal_in_slow_step, signal.SIGTERM, (2.0, 20.0),
        codes=STOPPED, keeps_step=True, weight=2),
    row("SIGUSR1 in a slow step", "slow step", signal_in_slow_step, signal.SIGUSR1, (2.0, 20.0),
        codes=STOPPED, keeps_step=True),
    row("SIGTERM in a step above the launcher's patience", "slow step", signal_in_slow_step,
        signal.SIGTERM, (35.0, 45.0), where=SEVERAL, keeps_step=True),
)  # fmt: skip
KINDS = tuple(dict.fromkeys(r.kind for r in ROWS))


def draw_row(kind: str, rng: random.Random, engines: Sequence[str]) -> Row:
    """Draw a fault of a kind that some of the engines can meet.

    Without root, those that need it are left out.
    """
    rows = [
        r
        for r in ROWS
        if r.kind == kind
        and {*engines} & {*r.where.get("engine", engines)}
        and (os.geteuid() == 0 or not r.needs_root)
    ]
    return rng.choices(rows, [r.weight for r in rows])[0]
