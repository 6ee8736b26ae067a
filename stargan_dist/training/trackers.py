"""Trackers beside TensorBoard (`monitor.trackers`): W&B, MLflow, trackio, … through Accelerate.

Each runs in a thread of its own, because a server that does not answer may block for minutes. A
tracker that fails is dropped with one line.
"""

import dataclasses
import json
import logging
import os
import queue
import tempfile
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from PIL import Image

from stargan_dist import config as configs
from stargan_dist import storage
from stargan_dist.config import Config
from stargan_dist.errors import UserError, printable
from stargan_dist.storage.typed_json import decode_json
from stargan_dist.training.tolerance import Tolerance, one_line

TENSORBOARD = "tensorboard"  # written by metric_logger.py
PROJECT = "stargan_dist"
FILE = "trackers.json"
SECRET = "storage.options"  # it may hold keys
START_SECONDS = 30.0  # to wait for the start of a tracker, before the training goes on without
FINISH_SECONDS = 30.0  # to wait for its end
MAX_WAITING = 256  # entries that a tracker has not taken yet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackedRun:
    """A run as a tracker knows it; part of RUN/trackers.json.

    Attributes:
        id: chosen here, or by the tracker.
        steps: last step that it has received of each kind of entry.
    """

    id: str
    steps: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """What a tracker is started with. `folder` is for those that write files of their own."""

    name: str
    id: str
    continued: bool
    folder: str


def _project(variable: str) -> str:
    """Return the name of the project: a variable of the tracker wins."""
    return os.environ.get(variable) or PROJECT


@dataclass(frozen=True)
class Package:
    """A row of the table of trackers.

    Attributes:
        arguments: keyword arguments of Accelerate's class.
        install: name of the package, for pip.
        id_of: returns the id of the run from the tracker's own object, if the tracker chooses it.
        continues: it continues a run that it knows; otherwise a resumed run is a new one there.
        needs_folder: it writes into a local folder that must be named.
        image_lists: `log_images` takes a list of images per name.
    """

    arguments: Callable[[Start], dict[str, Any]]
    install: str
    id_of: Callable[[Any], str] | None = None
    continues: bool = True
    needs_folder: bool = False
    image_lists: bool = True


def _aim(start: Start) -> dict[str, Any]:
    run_hash = start.id if start.continued else None
    return {"run_name": start.name, "logging_dir": start.folder, "run_hash": run_hash,
            "experiment": PROJECT}  # fmt: skip


def _clearml(start: Start) -> dict[str, Any]:
    # A task that is continued would shift its steps; frameworks log TensorBoard's scalars again.
    return {"project_name": _project("CLEARML_PROJECT"), "reuse_last_task_id": False,
            "auto_connect_frameworks": False, "auto_connect_arg_parser": False,
            "task_name": os.environ.get("CLEARML_TASK") or start.name}  # fmt: skip


def _comet(start: Start) -> dict[str, Any]:
    config = import_module("comet_ml").ExperimentConfig(name=start.name)
    return {"run_name": _project("COMET_PROJECT_NAME"), "experiment_key": start.id,
            "experiment_config": config}  # fmt: skip


def _dvclive(start: Start) -> dict[str, Any]:
    # A run folder is usually outside of a DVC repository.
    return {"dir": start.folder, "resume": start.continued, "dvcyaml": None,
            "save_dvc_exp": False}  # fmt: skip


def _mlflow(start: Start) -> dict[str, Any]:
    run_id = start.id if start.continued else None
    return {"experiment_name": PROJECT, "run_name": start.name, "run_id": run_id}


def _swanlab(start: Start) -> dict[str, Any]:
    return {"run_name": _project("SWANLAB_PROJECT"), "experiment_name": start.name,
            "id": start.id[:21], "resume": "allow"}  # fmt: skip


def _trackio(start: Start) -> dict[str, Any]:
    # It finds the run to continue by its name, which must be unique.
    return {"run_name": PROJECT, "name": f"{start.name}-{start.id[:6]}", "embed": False,
            "resume": "allow" if start.continued else "never"}  # fmt: skip


def _wandb(start: Start) -> dict[str, Any]:
    return {"run_name": _project("WANDB_PROJECT"), "id": start.id, "resume": "allow",
            "name": os.environ.get("WANDB_NAME") or start.name}  # fmt: skip


TABLE = {
    "aim": Package(_aim, "aim", lambda run: run.hash, needs_folder=True, image_lists=False),
    "clearml": Package(_clearml, "clearml", continues=False, image_lists=False),
    "comet_ml": Package(_comet, "comet-ml"),
    "dvclive": Package(_dvclive, "dvclive", needs_folder=True),
    "mlflow": Package(_mlflow, "mlflow", lambda run: run.info.run_id),
    "swanlab": Package(_swanlab, "swanlab"),
    "trackio": Package(_trackio, "trackio"),
    "wandb": Package(_wandb, "wandb"),
}


def check_trackers(names: list[str]) -> None:
    """Check that all trackers exist and are installed.

    Raises:
        UserError: one is not.
    """
    known = sorted({TENSORBOARD, *TABLE} & LOGGER_TYPE_TO_CLASS.keys())
    for name in names:
        if name not in known:
            shown = printable(repr(name), 100)
            raise UserError(
                f"monitor.trackers: {shown} is not one of {', '.join(known)}; [] stands for none"
            )
        # The folder wandb/, which W&B writes, is no package: it has no origin.
        if name in TABLE and not getattr(find_spec(name), "origin", None):
            raise UserError(
                f"monitor.trackers: {name} is not installed; run `pip install "
                f"{TABLE[name].install}`, or leave it out"
            )


Entry = tuple[str, int, Callable[[Any], None]]  # its kind, its step, and what it calls


class Tracker:
    """One tracker of a run, in a thread.

    Args:
        start: what it is started with.
        run: as far as the tracker knows it. Entries of these steps are not logged again.
        config: flat values, stored with a new run.
        record: receives `run` whenever it has changed.
    """

    def __init__(
        self,
        name: str,
        start: Start,
        run: TrackedRun,
        config: Mapping[str, Any],
        record: Callable[[TrackedRun], None],
    ) -> None:
        self.name, self.run, self._record = name, run, record
        self._start, self._config, self._logged = start, config, run.steps
        self._queue: queue.Queue[Entry | None] = queue.Queue(MAX_WAITING)
        self._started, self._dropped = threading.Event(), False
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()
        # Loader workers are forked afterwards: none of them inherits a half-imported package.
        self._started.wait(START_SECONDS)

    def add(self, kind: str, step: int, log: Callable[[Any], None]) -> None:
        """Have something logged, unless the tracker has it from before the run was resumed."""
        if not self._dropped and step > self._logged.get(kind, -1):
            self._put((kind, step, log))

    def close(self) -> None:
        """Wait until everything is sent, for a limited time."""
        if not self._dropped:
            self._put(None)
            self._thread.join(FINISH_SECONDS)
            if self._thread.is_alive():
                self._drop(
                    f"has not finished within {FINISH_SECONDS:g} s", "entries may be missing"
                )

    def _put(self, entry: Entry | None) -> None:
        try:
            self._queue.put_nowait(entry)
        except queue.Full:
            self._drop(f"has not taken the last {MAX_WAITING} entries")

    def _drop(self, fault: str, result: str = "training continues without it") -> None:
        if not self._dropped:
            self._dropped = True
            logger.warning("tracker %s: %s; %s", self.name, printable(fault, 300), result)

    def _work(self) -> None:
        try:
            tracker = self._begin()
            self._started.set()
            while (entry := self._queue.get()) is not None and not self._dropped:
                kind, step, log = entry
                log(tracker)
                self._note(steps={**self.run.steps, kind: step})
            tracker.finish()
        except (Exception, SystemExit) as error:
            self._drop(one_line(error))
        finally:
            self._started.set()

    def _begin(self) -> Any:
        """Start the tracker, and store the id of the run and the configuration of a new one."""
        package = TABLE[self.name]
        tracker = LOGGER_TYPE_TO_CLASS[self.name](**package.arguments(self._start))
        tracker.start()
        if package.id_of:
            self._note(id=package.id_of(tracker.tracker))
        if not self._start.continued:
            tracker.store_init_configuration(dict(self._config))
        return tracker

    def _note(self, **changes: Any) -> None:
        self.run = dataclasses.replace(self.run, **changes)
        self._record(self.run)


class Trackers:
    """All trackers of a run except TensorBoard; for rank 0.

    Args:
        start: number of finished steps. A resumed run continues in the trackers that support it.
        tolerance: receives faults of RUN/trackers.json.
    """

    def __init__(self, config: Config, start: int, tolerance: Tolerance) -> None:
        self._url, self._tolerance = storage.join(config.run, FILE), tolerance
        self._lock = threading.Lock()
        self._runs = self._read() if start else {}
        values = _flat_values(config)
        names = [name for name in dict.fromkeys(config.monitor.trackers) if name != TENSORBOARD]
        self._trackers = [self._begin(name, config.run, values) for name in names]

    def _read(self) -> dict[str, TrackedRun]:
        with self._tolerance.of(FILE):
            try:
                return decode_json(storage.read_bytes(self._url), dict[str, TrackedRun], self._url)
            except FileNotFoundError:
                return {}
        return {}

    def _record(self, name: str, run: TrackedRun) -> None:
        with self._lock, self._tolerance.of(FILE):
            self._runs[name] = run
            runs = {name: dataclasses.asdict(run) for name, run in self._runs.items()}
            storage.write_bytes(self._url, json.dumps(runs).encode())

    def _begin(self, name: str, run: str, values: Mapping[str, Any]) -> Tracker:
        package = TABLE[name]
        elsewhere = package.needs_folder and not storage.is_local(run)
        former = self._runs.get(name) if package.continues and not elsewhere else None
        tracked = former or TrackedRun(uuid.uuid4().hex)
        self._record(name, tracked)
        folder = _folder(name, run, elsewhere) if package.needs_folder else ""
        start = Start(Path(run).name, tracked.id, former is not None, folder)
        return Tracker(name, start, tracked, values, partial(self._record, name))

    def log(self, kind: str, step: int, scalars: Mapping[str, float]) -> None:
        """Log scalars. kind: distinguishes what is logged at other steps."""
        for tracker in self._trackers:
            tracker.add(kind, step, partial(_log, dict(scalars), step))

    def show(self, step: int, images: Mapping[str, Image.Image]) -> None:
        """Log images in the trackers that show some."""
        for tracker in self._trackers:
            if hasattr(LOGGER_TYPE_TO_CLASS[tracker.name], "log_images"):
                lists = TABLE[tracker.name].image_lists
                values = {name: [image] if lists else image for name, image in images.items()}
                tracker.add("images", step, partial(_log_images, values, step))

    def close(self) -> None:
        """End all trackers, after everything is sent or after FINISH_SECONDS each."""
        for tracker in self._trackers:
            tracker.close()


def _log(values: dict[str, float], step: int, tracker: Any) -> None:
    tracker.log(values, step=step)


def _log_images(values: dict[str, Any], step: int, tracker: Any) -> None:
    tracker.log_images(values, step=step)


def _folder(name: str, run: str, elsewhere: bool) -> str:
    """Return the folder for a tracker's own files: RUN/trackers/NAME if the run is local."""
    if elsewhere:
        folder = tempfile.mkdtemp(prefix=f"stargan_dist-{name}-")
        logger.info("tracker %s writes to %s: the run is not a local folder", name, folder)
        return folder
    folder = storage.filesystem(storage.join(run, "trackers", name))[1]
    Path(folder).mkdir(parents=True, exist_ok=True)
    return folder


def _flat_values(config: Config) -> dict[str, Any]:
    """Return the configuration as plain values by dotted names, without options of storages."""
    values = configs.flat(configs.to_dict(config))
    return {
        name: "" if value is None else str(value) if isinstance(value, list | tuple) else value
        for name, value in values.items()
        if not name.startswith(SECRET)
    }
