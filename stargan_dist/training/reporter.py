"""What a run reports: log lines, metrics, sample grids, evaluations, files of the run folder."""

import json
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

import torch
from PIL import Image

from stargan_dist import config as configs
from stargan_dist import storage
from stargan_dist.config import Config, Origins
from stargan_dist.data.batch import Batch
from stargan_dist.data.labels import Labels
from stargan_dist.data.loading import TrafficMeter
from stargan_dist.data.skipped import SkippedCounts, SkippedSamples
from stargan_dist.data.sources import DataSources, load_labelled_images, open_sources
from stargan_dist.data.split import LoadedSplit
from stargan_dist.distributed.world import World
from stargan_dist.errors import UserError, WorldError
from stargan_dist.evaluation import report, results
from stargan_dist.evaluation.collector import Stopped
from stargan_dist.evaluation.evaluator import Evaluator
from stargan_dist.inference import grids
from stargan_dist.inference.model import TrainedModel
from stargan_dist.runs.scores import Result
from stargan_dist.training.environment import (
    describe_environment,
    peak_memory_bytes,
    warn_of_slow_precision,
)
from stargan_dist.training.metric_logger import MetricLogger, progress_line
from stargan_dist.training.profiling import profiled
from stargan_dist.training.stopwatch import Stopwatch
from stargan_dist.training.tolerance import Tolerance
from stargan_dist.training.trackers import TENSORBOARD, Trackers
from stargan_dist.training.train_state import TrainState

GRID_DOMAINS = 8  # domains shown in a grid, at most

logger = logging.getLogger(__name__)


class Reporter:
    """Reports of a run. Rank 0 logs and writes; other ranks only take part in collectives.

    Args:
        sources: the training data.
        start: number of finished steps.
        stopped: returns True once the run was asked to stop.
        origins: of options that are not the user's own.

    Raises:
        UserError: evaluations are configured, and their weights are not available.
    """

    def __init__(
        self,
        state: TrainState,
        sources: DataSources,
        world: World,
        start: int,
        stopped: Callable[[], bool],
        origins: Origins,
    ) -> None:
        self.state, self.config, self.sources, self.world = state, state.config, sources, world
        self.stopped, self.is_main = stopped, world.is_main
        self.evaluator = _build_evaluator(self.config, world, stopped)
        self.stopwatch = Stopwatch()
        self.traffic = TrafficMeter()
        self.start, self.began = start, time.monotonic()
        self.last_logged_step = start
        self.reported_skipped: SkippedCounts = {}
        self.tolerance = Tolerance()
        self.on_tensorboard = TENSORBOARD in self.config.monitor.trackers
        if self.is_main:
            self._begin(origins)

    def _begin(self, origins: Origins) -> None:
        config, world = self.config, self.world
        environment = describe_environment(world.size, world.device)
        with self.tolerance.of("config.yaml and environment.json"):
            comments = "".join(f"# {line}\n" for line in origins.lines)
            self._write("config.yaml", (comments + configs.to_yaml(config)).encode())
            self._write("environment.json", json.dumps(environment, indent=1).encode())
        self._write_status("running", self.start)
        logger.info(
            "%s: steps %d to %d, %d process(es) on %s, %s, %s, %d images%s",
            config.run, self.start, config.steps, world.size, world.device.type,
            configs.describe(config), _describe_labels(self.sources.labels),
            self.sources.num_images, ", fast decoding" if config.data.fast_decoding else "",
        )  # fmt: skip
        logger.info("recipe %s: %s", config.recipe, self.state.spec.recipe.description)
        for line in (*origins.lines, *origins.lines_of_overridden):
            logger.info(line)
        slow = warn_of_slow_precision(self.state.spec.policy, world.device)
        if slow:
            logger.warning("precision: %s", slow)
        self.trackers = Trackers(config, self.start, self.tolerance)
        self.metrics = MetricLogger(
            *(config.run, self.start, configs.to_yaml(config), self.tolerance),
            tensorboard=self.on_tensorboard,
        )

    def watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Iterate; measure how long the loop waits for data, and profile some iterations."""
        iterations = self.config.monitor.profile if self.is_main else 0
        timed = self.stopwatch.timed(batches)
        if not iterations:
            return timed
        return profiled(timed, iterations, self.config.run, self.tolerance)

    def _write(self, name: str, data: bytes) -> None:
        storage.write_bytes(storage.join(self.config.run, name), data)

    def _write_status(self, status: str, step: int, received: int = 0) -> None:
        row = {"status": status, "step": step, "signal": received or None}
        with self.tolerance.of("status.json"):
            self._write("status.json", json.dumps(row).encode())

    @cached_property
    def _grid_images(self) -> list[LoadedSplit]:
        """Sources and references of all grids: validation images if each domain has some.

        Raises:
            UserError: none of the images of a domain can be read.
        """
        config, count = self.config, self.config.monitor.sources
        validation_counts = (row for r in self.sources.readers for row in r.index.counts("val"))
        has_validation = all(map(sum, validation_counts))
        sources = open_sources(config.data, "val") if has_validation else self.sources
        size = config.model.image_size
        return [
            load_labelled_images(
                sources,
                size,
                first=first,
                per_domain=count,
                domains=GRID_DOMAINS,
                replace_unreadable=True,
            )
            for first in (0, count)
        ]

    def log(
        self, step: int, terms: Mapping[str, torch.Tensor], skipped: SkippedSamples, nonfinite: int
    ) -> None:
        """Average the terms of a step over the ranks, read them from the device and log them.

        Args:
            skipped: samples replaced on all ranks so far.
            nonfinite: iterations with a non-finite gradient so far.
        """
        losses = self.world.all_reduce_mean(terms)
        seconds, wait_share = self.stopwatch.lap()
        traffic = self.traffic.take(seconds)
        if not self.is_main:
            return
        rate = (step - self.last_logged_step) * self.config.batch_size / seconds
        self.last_logged_step = step
        seconds_per_step = (time.monotonic() - self.began) / (step - self.start)
        eta_seconds = seconds_per_step * (self.config.steps - step)
        logger.info(progress_line(step, self.config.steps, rate, wait_share, eta_seconds, losses))
        weights = self.state.objective.decaying_weights(step - 1)
        scalars = {
            **{f"schedule/lambda_{name}": weight for name, weight in weights.items()},
            "speed/images_per_second": rate,
            "speed/data_wait_share": wait_share,
            "speed/memory_gib": peak_memory_bytes(self.world.device) / 2**30,
            "data/skipped_samples": skipped.total,
            **traffic,
            "progress/nonfinite_iterations": nonfinite,
            "progress/images_seen": step * self.config.batch_size,
        }
        self.metrics.log(step, losses | scalars)
        self.trackers.log("scalars", step, losses | scalars)
        self._report_skipped(skipped)

    def _report_skipped(self, skipped: SkippedSamples) -> None:
        if skipped.counts != self.reported_skipped:
            logger.warning("replaced %d samples so far: %s", skipped.total, skipped)
            self.reported_skipped = skipped.counts

    def sample(self, step: int) -> None:
        """Write grids of translations by the averaged networks, to files and TensorBoard."""
        if not self.is_main:
            return
        with self.tolerance.of("sample grids"):
            images = self._draw_grids(self._translator(step))
            self.metrics.show(images, step)
            self.trackers.show(step, {f"samples/{name}": grid for name, grid in images.items()})
            for name, image in images.items():
                self._write(f"samples/{name}_{step:08d}.png", grids.to_png(image))

    def _draw_grids(self, translator: TrainedModel) -> dict[str, Image.Image]:
        inputs, references = self._grid_images
        latents = self.config.monitor.latents if translator.diverse else 1
        images = {"latent": grids.latent_grid(translator, inputs, latents, self.config.seed)}
        if translator.guided_by_references:
            images["reference"] = grids.reference_grid(translator, inputs, references)
        return images

    def evaluate(self, step: int) -> bool:
        """Evaluate the averaged networks on all ranks, unless that was done before. Collective.

        Images or networks that cannot be evaluated are reported and do not end the training.

        Returns:
            False if the run was asked to stop before the evaluation was complete.
        """
        assert self.evaluator is not None
        with self.stopwatch.paused():
            try:
                evaluation = self.evaluator.begin(self._translator(step))
                if evaluation.remaining:
                    self._show(evaluation.run())
            except Stopped:
                return False
            except UserError as error:
                if self.is_main:
                    logger.warning(
                        "evaluation at step %d failed, training continues: %s", step, error
                    )
                return not self.world.all_reduce_max(self.stopped())
        return True

    def _show(self, result: Result) -> None:
        if self.is_main:
            logger.info("%s\n%s", report.headline(result), report.table(result))
            variant = results.protocol_variant(result)
            self.trackers.log("evaluation", result["step"], report.scalars(result, variant))
            if self.on_tensorboard:
                with self.tolerance.of("metrics of evaluations in TensorBoard"):
                    report.log_to_tensorboard(self.config.run, result, variant)

    def _translator(self, step: int) -> TrainedModel:
        state = self.state
        return TrainedModel(state.ema, state.spec, state.labels, step, masks=state.masks)

    def flush(self) -> None:
        """Write all metrics to disk."""
        self.metrics.flush()

    def end(self, step: int, finished: bool, received: int) -> None:
        """Report how the run ended, in the log and in status.json."""
        if not self.is_main:
            return
        self.metrics.close()
        status = "finished" if finished else "stopped"
        self._write_status(status, step, received)
        cause = f" by {signal.Signals(received).name}" if received else ""
        logger.info("%s%s at step %d, saved in %s", status, cause, step, self.config.run)
        if status == "stopped":
            logger.info("the same command continues from there")
        self.trackers.close()  # last: it may wait longer than a scheduler does


def _build_evaluator(config: Config, world: World, stopped: Callable[[], bool]) -> Evaluator | None:
    if not config.evaluation.every:
        return None
    try:
        return Evaluator(config, world, stopped)
    except WorldError as error:
        remedy = "or train without evaluations (--evaluation.every 0)"
        raise WorldError(f"{error}; {remedy}", error.exit_code) from error


def _describe_labels(labels: Labels) -> str:
    """Describe the labels in the first line of a run."""
    if labels.by_domain:
        return f"{labels.num_labels} domains"
    sources = ", ".join(
        f"{space.name}: {len(space.columns)} {'attributes' if space.binary else 'categories'}"
        for space in labels.spaces
    )
    return f"labels ({sources})"
