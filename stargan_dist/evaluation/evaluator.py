"""Evaluation on all ranks: measures every task with the networks of a protocol.

Ranks share the images of each task and reduce their sums (collector.py). Rank 0 computes distances
from the sums in a thread while the next task is running. What the tasks are depends on the labels:
domains (domain_suite.py), or attributes and categories of data sources (label_suite.py).
"""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image

from stargan_dist import storage
from stargan_dist.config import Config
from stargan_dist.console.progress import ProgressBar, progress_bar
from stargan_dist.data.batch import to_unit
from stargan_dist.data.index import slug
from stargan_dist.distributed.world import World
from stargan_dist.errors import UserError, WorldError, explained
from stargan_dist.evaluation import results
from stargan_dist.evaluation.collector import Collected, Collector, Stopped
from stargan_dist.evaluation.domain_suite import DomainSuite
from stargan_dist.evaluation.label_suite import LabelSuite
from stargan_dist.evaluation.labelled_source import LabelledSource, load_source
from stargan_dist.evaluation.metrics.statistics import Statistics, distances
from stargan_dist.evaluation.protocols import between_domains
from stargan_dist.evaluation.results import Result, Row
from stargan_dist.evaluation.suite import Suite
from stargan_dist.evaluation.tasks import REAL, Task
from stargan_dist.inference import grids
from stargan_dist.inference.pairs import AnyModel, PairModels
from stargan_dist.runs.checkpoint import step_name

MAX_PENDING = 2  # tasks whose distances rank 0 has still to compute; each holds its sums


def never_stop() -> bool:
    """Return False: the evaluation is not to stop."""
    return False


class Evaluator:
    """Measures translators of one run. Metric networks stay on the device between evaluations.

    Args:
        config: the run's configuration.
        world: the processes that share the work.
        should_stop: called between batches; True ends the evaluation. All ranks stop together, at
            the end of the task.

    Raises:
        UserError: there are no shards, or the protocol's weights are not available.
    """

    def __init__(
        self, config: Config, world: World, should_stop: Callable[[], bool] = never_stop
    ) -> None:
        self.config, self.world = config, world
        self.collector = Collector(config, world, should_stop)

    def begin(self, translator: AnyModel, seed: int = 0) -> "Evaluation":
        """Prepare an evaluation, and find the tasks that no earlier one has measured. Collective.

        Classifiers of labels are trained here, unless they are cached.

        Args:
            translator: the networks to evaluate. Its precision is set to the configured one.
            seed: the seed of latents and references.

        Raises:
            UserError: the shards hold other labels than the translator's, images for a classifier
                cannot be read, or an earlier result cannot be read.
            Stopped: on all ranks, if any rank was asked to stop.
        """
        self._check_labels(translator)
        for sources in self.collector.sources.values():
            for reader in sources.readers:
                reader.forget_unreachable()
        translator.bfloat16 = self.config.evaluation.precision == "bfloat16"
        return Evaluation(self, self._suite(translator, seed))

    def evaluate(self, translator: AnyModel, seed: int = 0) -> Result:
        """Prepare an evaluation as `begin` does, and run it."""
        return self.begin(translator, seed).run()

    def _check_labels(self, translator: AnyModel) -> None:
        sources = self.collector.sources["train"]
        if sources.domains != translator.domains:
            urls = ", ".join(reader.url for reader in sources.readers)
            kind = "domains" if sources.labels.by_domain else "labels"
            raise WorldError(
                f"the shards at {urls} hold the {kind} {', '.join(sources.domains)}; "
                f"the networks were trained on {', '.join(translator.domains)}"
            )

    def _suite(self, translator: AnyModel, seed: int) -> Suite:
        if between_domains(self.config.evaluation, self.collector.sources["train"]):
            return DomainSuite(self.collector, translator, seed)
        if isinstance(translator, PairModels):
            raise WorldError(
                "evaluation.labels: a set of pairs is measured between domains; leave out --labels "
                "(--evaluation.labels), or evaluate the run of a pair"
            )
        return LabelSuite(self.collector, self._labelled_sources, translator, seed)

    @functools.cached_property
    def _labelled_sources(self) -> list[LabelledSource]:
        """The labels of all images, with a classifier for each data source."""
        numbers = range(len(self.collector.sources["train"].readers))
        return [load_source(self.collector, number) for number in numbers]

    def header(self, suite: Suite) -> dict[str, Any]:
        """Return everything that the metrics depend on.

        Evaluations with equal headers have equal results.
        """
        metrics, translator = self.collector.metrics, suite.translator
        return {
            "protocol": metrics.protocol,
            "step": translator.step,
            "checkpoint": step_name(translator.step),
            "seed": suite.seed,
            "outputs_per_source": suite.outputs_per_source,
            "image_size": self.config.model.image_size,
            "precision": self.config.evaluation.precision,
            "metrics": list(suite.metrics),
            "features": metrics.num_features,
            "generator": translator.hash_weights(),
            **suite.header(),
        }


@contextmanager
def _tf32_disabled() -> Iterator[None]:
    """Disable TensorFloat-32, which PyTorch enables for convolutions on GPUs.

    Otherwise metrics would differ between CPUs and GPUs, and `float32` would not be accurate.
    """
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    previous = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    try:
        yield
    finally:
        for backend, allowed in zip(backends, previous, strict=True):
            backend.allow_tf32 = allowed


class Evaluation:
    """One evaluation of one translator.

    Attributes:
        remaining: the tasks that no earlier evaluation measured. They are the same on all ranks.
        result: complete on rank 0 after `run`.
    """

    def __init__(self, evaluator: Evaluator, suite: Suite) -> None:
        self.world, self.collector, self.suite = evaluator.world, evaluator.collector, suite
        self.task_names = results.in_order(suite.tasks, suite.names)
        run = evaluator.config.run
        self.result = self.world.broadcast_from_main(
            lambda: results.load_or_start(run, evaluator.header(suite), self.task_names)
        )
        self.url = results.result_url(run, self.result)
        finished = results.finished_tasks(self.result)
        self.remaining = [task for task in suite.tasks if suite.names(task) not in finished]
        self.executor = ThreadPoolExecutor(1)
        self.pending: list[Future[None]] = []

    def run(self) -> Result:
        """Measure the remaining tasks.

        The row of a task that fails holds the error. The result is written after each task, to
        `results.result_url`.

        Raises:
            Stopped: on all ranks, if any rank was asked to stop; measured tasks are written.
            UserError: the result cannot be written.
        """
        with _tf32_disabled(), self.executor:
            try:
                self._measure_all()
            except Stopped:
                self._wait_for_pending(0)
                raise
        return self.result

    def _measure_all(self) -> None:
        shown, total = self.world.is_main and bool(self.remaining), self._count_sources()
        with progress_bar(total, "sources", description="evaluating", shown=shown) as progress:
            for number, task in enumerate(self.remaining, start=1):
                guide, source, target = self.suite.names(task)
                name = f"{guide} {source} → {target}, task {number}/{len(self.remaining)}"
                progress.set_description_str(name, refresh=False)
                self._measure(task, progress)
            self._wait_for_pending(0)

    def _count_sources(self) -> int:
        """Return the number of sources that this rank translates."""
        translated = [self.suite.sources(task) for task in self.remaining if task.guide != REAL]
        return sum(len(self.collector.share(sources, 1)) for sources in translated)

    def _measure(self, task: Task, progress: ProgressBar) -> None:
        """Measure a task on all ranks, and submit its row to rank 0's thread."""
        try:
            self._submit(task, self._row, task, *self.suite.measure(task, progress))
        except UserError as error:
            self._submit(task, lambda message: {"error": message}, str(error))
        self._wait_for_pending(MAX_PENDING)

    # Rank 0 only.

    def _submit(self, task: Task, compute_row: Callable[..., Row], *args: Any) -> None:
        """Compute a task's row in the thread, add it to the result and write the result."""

        def work() -> None:
            guide, source, target = self.suite.names(task)
            row = {"guide": guide, "source": source, "target": target, **compute_row(*args)}
            self.result = results.add_row(self.result, row, self.task_names)
            self._write(self.url, results.to_json(self.result))

        if self.world.is_main:
            self.pending.append(self.executor.submit(work))

    def _wait_for_pending(self, limit: int) -> None:
        """Wait on all ranks until at most `limit` rows are pending on rank 0.

        Raises:
            UserError: a row could not be written.
        """

        def wait() -> None:
            while len(self.pending) > limit:
                self.pending.pop(0).result()

        self.world.run_on_all_ranks(wait)

    def _write(self, url: str, data: bytes) -> None:
        try:
            storage.write_bytes(url, data)
        except OSError as error:
            raise explained(f"cannot write {url}: {error}", error) from error

    def _row(self, task: Task, collected: Collected, real: Statistics | None) -> Row:
        """Return the metrics of a task, and write the image grid of its translations."""
        images, nonfinite = int(collected.statistics.count), int(collected.nonfinite)
        if nonfinite:
            error = f"{nonfinite} of {images} outputs are not finite: training diverged"
            return {"images": images, "error": error}
        if collected.grid_rows:
            self._write(self._grid_url(task), grids.to_jpeg(self._image_grid(task, collected)))
        row: Row = {"images": images}
        if real is not None:
            row |= self._distances(task, real, collected.statistics)
        if collected.ratings is not None:
            rated = images // self.suite.outputs_per_source
            row[self.suite.metrics[2]] = float(collected.ratings) / rated
        return row

    def _distances(self, task: Task, real: Statistics, compared: Statistics) -> Row:
        """Return the distances of a set of images from the training images of the target."""
        row: Row = {"real_images": int(real.count)}
        kind = "validation images of" if task.guide == REAL else "translations to"
        for images, what in ((real, "training images of"), (compared, kind)):
            if images.count < 2:
                name = f"{int(images.count)} {what} {self.suite.names(task)[2]}"
                return row | {"error": f"{name}: a covariance needs at least 2"}
        try:
            pair = distances(real, compared)
        except torch.linalg.LinAlgError as error:
            return row | {"error": f"no Fréchet distance: {error}"}
        return row | dict(zip(self.suite.metrics, pair, strict=False))

    def _grid_url(self, task: Task) -> str:
        guide, source, target = self.suite.names(task)
        slugs = [slug(task.source, source), slug(task.target, target)]
        return results.grid_url(self.url, "_".join([guide, *slugs]))

    def _image_grid(self, task: Task, collected: Collected) -> Image.Image:
        rows = torch.stack([row for _, row in sorted(collected.grid_rows.items())])
        header = ["source", *[self.suite.names(task)[2]] * self.suite.outputs_per_source]
        return grids.image_grid(to_unit(rows), header)
