"""Evaluation on all ranks: measures every task with the networks of a protocol.

Ranks share the images of each task and reduce their sums (collector.py). Rank 0 computes distances
from the sums in a thread while the next task is running.
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
from stargan_dist.errors import UserError, WorldError, explained
from stargan_dist.evaluation import results
from stargan_dist.evaluation.collector import Collector, Stopped, Translations
from stargan_dist.evaluation.metrics.statistics import Statistics, distances
from stargan_dist.evaluation.results import Result, Row
from stargan_dist.evaluation.tasks import GUIDES, OUTPUTS, REAL, REFERENCE, Task, tasks
from stargan_dist.inference import grids
from stargan_dist.inference.model import TrainedModel
from stargan_dist.runs.checkpoint import step_name

MAX_PENDING = 2  # tasks whose distances rank 0 has still to compute; each holds its sums

T = TypeVar("T")


def never_stop() -> bool:
    """Return False: the evaluation is not to stop."""
    return False


class Lazy(Generic[T]):
    """A value that is computed at the first call and cached. A UserError is cached as well."""

    def __init__(self, compute: Callable[[], T]) -> None:
        self._compute = compute
        self._values: list[T] = []
        self._error: UserError | None = None

    def __call__(self) -> T:
        if self._error is None and not self._values:
            try:
                self._values.append(self._compute())
            except UserError as error:
                self._error = error
        if self._error is not None:
            raise self._error
        return self._values[0]


class TargetStatistics:
    """Lazily computed data that all tasks with the same target share.

    Attributes:
        label: the target domain.
        train: statistics of its training images.
        val: statistics of its validation images.
        references: conditioning (N, conditioning_dim) of its validation images.
    """

    def __init__(self, collector: Collector, translator: TrainedModel, label: int) -> None:
        self.label = label
        self.train = Lazy(lambda: collector.real_statistics("train", label))
        self.val = Lazy(lambda: collector.real_statistics("val", label))
        self.references = Lazy(lambda: collector.reference_conditioning(translator, label))


class Evaluator:
    """Measures translators of one run. Metric networks stay on the device between evaluations.

    Args:
        config: the run's configuration.
        world: the processes that share the work.
        should_stop: called between batches; True ends the evaluation. All ranks stop together, at
            the end of the task.

    Raises:
        UserError: the labels are not domains, there are no shards, or the protocol's weights are
            not available.
    """

    def __init__(
        self, config: Config, world: World, should_stop: Callable[[], bool] = never_stop
    ) -> None:
        if not config.data.by_domain:
            raise WorldError(
                "evaluation measures translation into domains, and this run has other labels "
                "(data.sources): look at its grids (python -m stargan_dist.sample)"
            )
        self.config, self.world = config, world
        self.collector = Collector(config, world, should_stop)

    def begin(self, translator: TrainedModel, seed: int = 0) -> "Evaluation":
        """Prepare an evaluation, and find the tasks that no earlier one has measured.

        Args:
            translator: the networks to evaluate. Its precision is set to the configured one.
            seed: the seed of latents and references.

        Raises:
            UserError: the shards hold other domains than the translator's, or an earlier result
                cannot be read.
        """
        self._check_domains(translator)
        for reader in self.collector.readers.values():
            reader.forget_unreachable()
        translator.bfloat16 = self.config.evaluation.precision == "bfloat16"
        return Evaluation(self, translator, seed)

    def evaluate(self, translator: TrainedModel, seed: int = 0) -> Result:
        """Prepare an evaluation as `begin` does, and run it."""
        return self.begin(translator, seed).run()

    def _check_domains(self, translator: TrainedModel) -> None:
        reader = self.collector.readers["train"]
        domains = reader.index.domains
        if domains != translator.domains:
            raise WorldError(
                f"the shards at {reader.url} hold the domains {', '.join(domains)}; "
                f"the networks were trained on {', '.join(translator.domains)}"
            )

    def load_or_start(self, translator: TrainedModel, seed: int) -> Result:
        """Load what an earlier evaluation measured, or return an empty result."""
        header = self.header(translator, seed)
        return results.load_or_start(results.result_url(self.config.run, header), header)

    def header(self, translator: TrainedModel, seed: int) -> dict[str, Any]:
        """Return everything that the metrics depend on.

        Evaluations with equal headers have equal results.
        """
        metrics = self.collector.metrics
        index = self.collector.readers["train"].index
        return {
            "protocol": metrics.protocol,
            "step": translator.step,
            "checkpoint": step_name(translator.step),
            "seed": seed,
            "guides": [g for g in GUIDES if g != REFERENCE or translator.guided_by_references],
            "outputs_per_source": OUTPUTS,
            "image_size": self.config.model.image_size,
            "precision": self.config.evaluation.precision,
            "metrics": list(metrics.names),
            "extractors": metrics.extractors,
            "features": metrics.num_features,
            "domains": index.domains,
            "data": index.fingerprint,
            "generator": _hash_networks(translator),
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

    def __init__(self, evaluator: Evaluator, translator: TrainedModel, seed: int) -> None:
        self.world, self.collector = evaluator.world, evaluator.collector
        self.metrics = evaluator.collector.metrics
        self.translator, self.seed = translator, seed
        self.domains = translator.domains
        self.result = self.world.broadcast_from_main(
            lambda: evaluator.load_or_start(translator, seed)
        )
        self.url = results.result_url(evaluator.config.run, self.result)
        finished = results.finished_tasks(self.result)
        all_tasks = tasks(len(self.domains), self.result["guides"])
        self.remaining = [task for task in all_tasks if self._names(task) not in finished]
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
        target = TargetStatistics(self.collector, self.translator, -1)
        shown = self.world.is_main and bool(self.remaining)
        total = self.collector.count_sources(self.remaining)
        with progress_bar(total, "sources", description="evaluating", shown=shown) as progress:
            for number, task in enumerate(self.remaining, start=1):
                if task.target != target.label:
                    target = TargetStatistics(self.collector, self.translator, task.target)
                guide, source, target_name = self._names(task)
                name = f"{guide} {source} → {target_name}, task {number}/{len(self.remaining)}"
                progress.set_description_str(name, refresh=False)
                self._measure(task, target, progress)
            self._wait_for_pending(0)

    def _names(self, task: Task) -> tuple[str, str, str]:
        """Return (guide, source, target) of a task, domains by name, as rows hold them."""
        return task.guide, self.domains[task.source], self.domains[task.target]

    def _measure(self, task: Task, target: TargetStatistics, progress: ProgressBar) -> None:
        """Measure a task on all ranks, and submit its row to rank 0's thread."""
        try:
            real = target.train()
            if task.guide == REAL:
                self._submit(task, self._distance_row, task, real, target.val())
            else:
                references = target.references() if task.guide == REFERENCE else None
                translations = self.collector.translate_task(
                    self.translator, task, references, self.seed, progress
                )
                self._submit(task, self._translation_row, task, real, translations)
        except UserError as error:
            self._submit(task, lambda message: {"error": message}, str(error))
        self._wait_for_pending(MAX_PENDING)

    # Rank 0 only.

    def _submit(self, task: Task, compute_row: Callable[..., Row], *args: Any) -> None:
        """Compute a task's row in the thread, add it to the result and write the result."""

        def work() -> None:
            guide, source, target = self._names(task)
            row = {"guide": guide, "source": source, "target": target, **compute_row(*args)}
            self.result = results.add_row(self.result, row)
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

    def _translation_row(self, task: Task, real: Statistics, translations: Translations) -> Row:
        """Return the metrics of a task's translations, and write its image grid."""
        images, nonfinite = int(translations.statistics.count), int(translations.nonfinite)
        if nonfinite:
            error = f"{nonfinite} of {images} outputs are not finite: training diverged"
            return {"images": images, "error": error}
        slugs = [slug(label, self.domains[label]) for label in (task.source, task.target)]
        url = results.grid_url(self.url, "_".join([task.guide, *slugs]))
        self._write(url, grids.to_jpeg(self._image_grid(task, translations)))
        diversity = float(translations.diversity) / (images // OUTPUTS)
        row = self._distance_row(task, real, translations.statistics)
        return row | {self.metrics.names[2]: diversity}

    def _distance_row(self, task: Task, real: Statistics, compared: Statistics) -> Row:
        """Return the distances of a set of images from the training images of the target."""
        counts = {"images": int(compared.count), "real_images": int(real.count)}
        for split, images in (("training", real), ("validation", compared)):
            if images.count < 2:
                of_target = f"{split} images of {self.domains[task.target]}"
                message = f"{int(images.count)} {of_target}: a covariance needs at least 2"
                return counts | {"error": message}
        try:
            pair = distances(real, compared)
        except torch.linalg.LinAlgError as error:
            return counts | {"error": f"no Fréchet distance: {error}"}
        return counts | dict(zip(self.metrics.names, pair, strict=False))

    def _image_grid(self, task: Task, translations: Translations) -> Image.Image:
        rows = torch.stack([row for _, row in sorted(translations.grid_rows.items())])
        return grids.image_grid(to_unit(rows), ["source", *[self.domains[task.target]] * OUTPUTS])


def _hash_networks(translator: TrainedModel) -> str:
    """Return a hash of the weights of all networks that translate."""
    digest = hashlib.sha256()
    for letter, network in translator.networks.items():
        for name, tensor in network.state_dict().items():
            digest.update(f"{letter}.{name}".encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
