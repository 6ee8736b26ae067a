"""Evaluation on all ranks: every task of a protocol, measured by its networks.

Ranks share out the images of each task and add up what they see (metrics/collect.py). Rank 0
turns sums into distances while the next task is under way.
"""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from PIL import Image

from stargan_dist import storage
from stargan_dist.config import Config
from stargan_dist.console.progress import ProgressBar, progress_bar
from stargan_dist.data.batch import to_unit
from stargan_dist.data.index import slug
from stargan_dist.distributed.world import World
from stargan_dist.errors import UserError, WorldError
from stargan_dist.evaluation import results
from stargan_dist.evaluation.collector import Collector, Fakes, Stopped
from stargan_dist.evaluation.metrics.statistics import Statistics, distances
from stargan_dist.evaluation.results import Result, Row
from stargan_dist.evaluation.tasks import GUIDES, OUTPUTS, REAL, REFERENCE, Task, tasks
from stargan_dist.inference import grids
from stargan_dist.inference.translator import Translator
from stargan_dist.runs.checkpoint import step_name

OUTSTANDING = 2  # tasks whose distances rank 0 may still owe; each holds its sums

T = TypeVar("T")


def never() -> bool:
    return False


class Once(Generic[T]):
    """Computed when it is first asked for. An error is remembered as well."""

    def __init__(self, compute: Callable[[], T]) -> None:
        self._compute = compute
        self._results: list[T] = []
        self._error: UserError | None = None

    def __call__(self) -> T:
        if self._error is None and not self._results:
            try:
                self._results.append(self._compute())
            except UserError as error:
                self._error = error
        if self._error is not None:
            raise self._error
        return self._results[0]


class Target:
    """What all tasks with one target share."""

    def __init__(self, collector: Collector, translator: Translator, label: int) -> None:
        self.label = label
        self.train = Once(lambda: collector.real("train", label))
        self.val = Once(lambda: collector.real("val", label))
        self.styles = Once(lambda: collector.reference_styles(translator, label))


class Evaluator:
    """Measures translators of one run. Its networks stay on the device between evaluations.

    Args:
        config: of the run.
        stopped: asked between batches whether to give up. All ranks follow at the end of the task.

    Raises:
        UserError: the labels are no domains, there are no shards, or the protocol's weights cannot
            be had.
    """

    def __init__(self, config: Config, world: World, stopped: Callable[[], bool] = never) -> None:
        if not config.data.by_domain:
            raise WorldError(
                "what is measured is translation into domains, and this run has other labels "
                "(data.sources): look at its grids (python -m stargan_dist.sample)"
            )
        self.config, self.world = config, world
        self.collector = Collector(config, world, stopped)

    def begin(self, translator: Translator, seed: int = 0) -> "Evaluation":
        """Find what is left of an evaluation.

        Args:
            seed: of latents and references.
        """
        self._check(translator)
        for reader in self.collector.readers.values():
            reader.forget_unreachable()
        translator.bfloat16 = self.config.evaluation.precision == "bfloat16"
        return Evaluation(self, translator, seed)

    def evaluate(self, translator: Translator, seed: int = 0) -> Result:
        """What `begin` finds and `Evaluation.run` adds to it."""
        return self.begin(translator, seed).run()

    def _check(self, translator: Translator) -> None:
        reader = self.collector.readers["train"]
        held = reader.index.domains
        if held != translator.domains:
            raise WorldError(
                f"the shards at {reader.url} hold the domains {', '.join(held)}; "
                f"the networks were trained on {', '.join(translator.domains)}"
            )

    def begun(self, translator: Translator, seed: int) -> Result:
        """What an earlier evaluation measured, or an empty result."""
        header = self.header(translator, seed)
        return results.begun(results.place(self.config.run, header), header)

    def header(self, translator: Translator, seed: int) -> dict[str, Any]:
        """What the numbers depend on: evaluations with equal headers have equal results."""
        measure = self.collector.measure
        return {
            "protocol": measure.protocol,
            "step": translator.step,
            "checkpoint": step_name(translator.step),
            "seed": seed,
            "guides": [g for g in GUIDES if g != REFERENCE or translator.guided_by_references],
            "outputs_per_source": OUTPUTS,
            "image_size": self.config.model.image_size,
            "precision": self.config.evaluation.precision,
            "metrics": list(measure.names),
            "extractors": measure.extractors,
            "features": measure.num_features,
            "domains": self.collector.readers["train"].index.domains,
            "data": self.collector.readers["train"].index.fingerprint,
            "generator": _fingerprint(translator),
        }


@contextmanager
def _exact_float32() -> Iterator[None]:
    """Convolutions of GPUs round to TensorFloat-32 unless told not to; numbers of CPUs and GPUs
    would differ, and `float32` would not be true."""
    switches: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    try:
        yield
    finally:
        for switch, allowed in zip(switches, before, strict=True):
            switch.allow_tf32 = allowed


class Evaluation:
    """One evaluation of one translator.

    Attributes:
        left: the tasks that no earlier evaluation measured. The same on all ranks.
        result: complete on rank 0, once `run` has ended.
    """

    def __init__(self, evaluator: Evaluator, translator: Translator, seed: int) -> None:
        self.world, self.collector = evaluator.world, evaluator.collector
        self.measure = evaluator.collector.measure
        self.translator, self.seed = translator, seed
        self.domains = translator.domains
        self.result = self.world.broadcast_from_main(lambda: evaluator.begun(translator, seed))
        self.where = results.place(evaluator.config.run, self.result)
        done = results.finished_tasks(self.result)
        every = tasks(len(self.domains), self.result["guides"])
        self.left = [t for t in every if self._named(t) not in done]
        self.pool = ThreadPoolExecutor(1)
        self.owed: list[Future[None]] = []

    def run(self) -> Result:
        """Measure what is left.

        A task that fails has a row that says why. The result is written as it grows, to where
        `results.place` tells.

        Raises:
            Stopped: on all ranks, if any was asked to; what is measured is written.
            UserError: the result cannot be written.
        """
        with _exact_float32(), self.pool:
            try:
                self._measure_all()
            except Stopped:
                self._settle(0)
                raise
        return self.result

    def _measure_all(self) -> None:
        target = Target(self.collector, self.translator, -1)
        total, shown = self.collector.sources(self.left), self.world.is_main and bool(self.left)
        with progress_bar(total, "sources", description="evaluating", shown=shown) as progress:
            for number, task in enumerate(self.left, start=1):
                if task.target != target.label:
                    target = Target(self.collector, self.translator, task.target)
                guide, source, named = self._named(task)
                name = f"{guide} {source} → {named}, task {number}/{len(self.left)}"
                progress.set_description_str(name, refresh=False)
                self._measure(task, target, progress)
            self._settle(0)

    def _named(self, task: Task) -> tuple[str, str, str]:
        return task.guide, self.domains[task.source], self.domains[task.target]

    def _measure(self, task: Task, target: Target, progress: ProgressBar) -> None:
        """Measure a task on all ranks, and leave the distances to rank 0's other thread."""
        try:
            real = target.train()
            if task.guide == REAL:
                self._owe(task, self._compared, task, real, target.val())
            else:
                styles = target.styles() if task.guide == REFERENCE else None
                fakes = self.collector.fakes(self.translator, task, styles, self.seed, progress)
                self._owe(task, self._translations, task, real, fakes)
        except UserError as error:
            self._owe(task, lambda told: {"error": told}, str(error))
        self._settle(OUTSTANDING)

    # Rank 0's part.

    def _owe(self, task: Task, row: Callable[..., Row], *args: Any) -> None:
        def work() -> None:
            guide, source, target = self._named(task)
            told = {"guide": guide, "source": source, "target": target, **row(*args)}
            self.result = results.with_row(self.result, told)
            self._write(self.where, results.to_json(self.result))

        if self.world.is_main:
            self.owed.append(self.pool.submit(work))

    def _settle(self, left: int) -> None:
        """Wait until rank 0 owes at most so many rows.

        Raises:
            UserError: one of them could not be written.
        """

        def wait() -> None:
            while len(self.owed) > left:
                self.owed.pop(0).result()

        self.world.run_on_all_ranks(wait)

    def _write(self, where: str, data: bytes) -> None:
        try:
            storage.write_bytes(where, data)
        except OSError as error:
            raise UserError(f"cannot write {where}: {error}") from error

    def _translations(self, task: Task, real: Statistics, fakes: Fakes) -> Row:
        images, broken = int(fakes.statistics.count), int(fakes.broken)
        if broken:
            told = f"{broken} of {images} outputs are not finite: training diverged"
            return {"images": images, "error": told}
        names = [slug(label, self.domains[label]) for label in (task.source, task.target)]
        where = results.picture_place(self.where, "_".join([task.guide, *names]))
        self._write(where, grids.to_jpeg(self._picture(task, fakes)))
        diversity = float(fakes.diversity) / (images // OUTPUTS)
        row = self._compared(task, real, fakes.statistics)
        return row | {self.measure.names[2]: diversity}

    def _compared(self, task: Task, real: Statistics, other: Statistics) -> Row:
        """Distances from the training images of the target."""
        counts = {"images": int(other.count), "real_images": int(real.count)}
        target = self.domains[task.target]
        for what, images in ((f"training images of {target}", real),
                             (f"validation images of {target}", other)):  # fmt: skip
            if images.count < 2:
                told = f"{int(images.count)} {what}: a covariance needs at least 2"
                return counts | {"error": told}
        try:
            pair = distances(real, other)
        except torch.linalg.LinAlgError as error:
            return counts | {"error": f"no Fréchet distance: {error}"}
        return counts | dict(zip(self.measure.names, pair, strict=False))

    def _picture(self, task: Task, fakes: Fakes) -> Image.Image:
        rows = torch.stack([row for _, row in sorted(fakes.pictures.items())])
        return grids.picture(to_unit(rows), ["source", *[self.domains[task.target]] * OUTPUTS])


def _fingerprint(translator: Translator) -> str:
    """A hash of the networks that translate."""
    told = hashlib.sha256()
    for letter, network in translator.networks.items():
        for name, tensor in network.state_dict().items():
            told.update(f"{letter}.{name}".encode())
            told.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return told.hexdigest()
