"""What an evaluation measures: its tasks, and how a task is measured on all ranks."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from stargan_dist.console.progress import ProgressBar
from stargan_dist.data.images import ImageSet
from stargan_dist.errors import UserError
from stargan_dist.evaluation.collector import Collected, Collector
from stargan_dist.evaluation.metrics.statistics import Statistics
from stargan_dist.evaluation.tasks import Task
from stargan_dist.inference.pairs import AnyModel

T = TypeVar("T")


class Suite(ABC):
    """The tasks of one evaluation of one translator.

    Args:
        collector: applies the networks of a protocol.
        translator: the networks to evaluate.
        seed: the seed of latents and references.

    Attributes:
        tasks: all tasks, those with the same target together.
        outputs_per_source: the number of translations of each source of a task.
        metrics: the names of the Fréchet distance, the kernel distance and the rating.
    """

    tasks: list[Task]
    outputs_per_source: int
    metrics: tuple[str, str, str]

    def __init__(self, collector: Collector, translator: AnyModel, seed: int) -> None:
        self.collector, self.translator, self.seed = collector, translator, seed

    @abstractmethod
    def header(self) -> dict[str, Any]:
        """Return what the results depend on: `guides`, `extractors`, `domains`, `data`."""

    @abstractmethod
    def names(self, task: Task) -> tuple[str, str, str]:
        """Return (guide, source, target) of a task by name, as rows hold them."""

    @abstractmethod
    def sources(self, task: Task) -> ImageSet:
        """Return the validation images that a task translates."""

    @abstractmethod
    def measure(self, task: Task, progress: ProgressBar) -> tuple[Collected, Statistics | None]:
        """Measure a task. Collective.

        Args:
            progress: counts the sources of this rank.

        Returns:
            Sums over the images of the task, and the statistics of the training images that they
            are compared with; None: they are not compared. Both are complete on rank 0 only.

        Raises:
            UserError: on all ranks, if the task cannot be measured.
            Stopped: on all ranks, if any rank was asked to stop.
        """


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
