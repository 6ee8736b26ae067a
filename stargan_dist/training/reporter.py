"""What a run tells: log lines, grids, evaluations, files of the run folder."""

import json
import signal
import sys
from collections.abc import Callable, Mapping

import torch

from stargan_dist import config as configs
from stargan_dist import storage
from stargan_dist.config import Config
from stargan_dist.data.labels import Labels
from stargan_dist.data.reader import LoadedSplit
from stargan_dist.data.skipped import Rows, SkippedSamples
from stargan_dist.data.sources import DataSources, load_labelled_images, open_sources
from stargan_dist.distributed.world import World
from stargan_dist.errors import UserError, WorldError
from stargan_dist.evaluation import report, results
from stargan_dist.evaluation.collector import Stopped
from stargan_dist.evaluation.evaluator import Evaluator
from stargan_dist.inference import grids
from stargan_dist.inference.translator import Translator
from stargan_dist.objectives import recipes
from stargan_dist.runs.scores import Result
from stargan_dist.training import metric_logger
from stargan_dist.training.train_state import TrainState

GRID_DOMAINS = 8  # a grid shows the first so many


def _told(labels: Labels) -> str:
    """What the labels are, for a run's first line."""
    if labels.by_domain:
        return f"{labels.num_labels} domains"
    sets = ", ".join(
        f"{space.name}: {len(space.columns)} {'attributes' if space.binary else 'categories'}"
        for space in labels.spaces
    )
    return f"labels ({sets})"


class Reporter:
    """What a run tells. Rank 0 speaks, other ranks keep still.

    Args:
        sets: what is trained on.
        start: steps done before.
        stopped: whether the run was asked to stop.

    Raises:
        UserError: evaluations are wanted, and the weights for them cannot be had.
    """

    def __init__(
        self,
        config: Config,
        training: TrainState,
        sets: DataSources,
        world: World,
        start: int,
        stopped: Callable[[], bool],
    ) -> None:
        self.stopped = stopped
        self.evaluator = self._evaluator(config, world, stopped)
        self.config, self.training, self.sets, self.world = config, training, sets, world
        self.shown = world.is_main
        self.stopwatch = metric_logger.Stopwatch()
        self.told: Rows = {}
        if self.shown:
            self._write("config.yaml", configs.to_yaml(config).encode())
            facts = metric_logger.environment(world.size, world.device)
            self._write("environment.json", json.dumps(facts, indent=1).encode())
            self._write_status("running", start)
            print(
                f"{config.run}: steps {start} to {config.steps}, {world.size} process(es) "
                f"on {world.device.type}, {configs.describe(config)}, "
                f"{_told(sets.labels)}, {sets.images} images"
                f"{', fast decoding' * config.data.fast_decoding}",
                flush=True,
            )
            print(f"recipe {config.recipe}: {recipes.recipe_of(config).about}", flush=True)
            self.monitor = metric_logger.MetricLogger(
                config.run, start, config.steps, config.batch_size, configs.to_yaml(config)
            )
            self.inputs, self.references = self._fixed_images()

    @staticmethod
    def _evaluator(config: Config, world: World, stopped: Callable[[], bool]) -> Evaluator | None:
        if not config.evaluation.every:
            return None
        try:
            return Evaluator(config, world, stopped)
        except WorldError as error:
            remedy = "or train without evaluations (--evaluation.every 0)"
            raise WorldError(f"{error}; {remedy}") from error

    def _write(self, name: str, data: bytes) -> None:
        storage.write_bytes(storage.join(self.config.run, name), data)

    def _write_status(self, status: str, step: int, received: int = 0) -> None:
        row = {"status": status, "step": step, "signal": received or None}
        self._write("status.json", json.dumps(row).encode())

    def _fixed_images(self) -> list[LoadedSplit]:
        """Sources and references of every grid: validation images if each domain has some."""
        config, count = self.config, self.config.monitor.sources
        held = (counts for r in self.sets.readers for counts in r.index.counts("val"))
        sets = open_sources(config.data, "val") if all(map(sum, held)) else self.sets
        return [
            load_labelled_images(
                sets, config.model.image_size,
                first=first, per_domain=count, domains=GRID_DOMAINS,
            )
            for first in (0, count)
        ]  # fmt: skip

    def log(
        self, step: int, terms: Mapping[str, torch.Tensor], skipped: SkippedSamples, nonfinite: int
    ) -> None:
        """Read the losses of a step from the device, averaged over the ranks.

        Args:
            skipped: what all ranks have replaced so far.
            nonfinite: iterations in which a gradient was not finite.
        """
        losses = self.world.all_reduce_mean(terms)
        seconds, wait_share = self.stopwatch.lap()
        if self.shown:
            self.monitor.log(
                step,
                losses,
                weights=self.training.objective.falling_weights(step - 1),
                seconds=seconds,
                data_wait_share=wait_share,
                memory=metric_logger.memory_bytes(self.world.device),
                skipped=skipped.samples,
                nonfinite=nonfinite,
            )
            if skipped.rows != self.told:
                print(f"replaced {skipped.samples} samples so far: {skipped}", flush=True)
                self.told = skipped.rows

    def sample(self, step: int) -> None:
        """Grids of translations by the averaged networks, to files and TensorBoard."""
        if not self.shown:
            return
        config = self.config
        translator = self._translator(step)
        latents = config.monitor.latents if translator.diverse else 1
        pictures = {"latent": grids.latent_grid(translator, self.inputs, latents, config.seed)}
        if translator.guided_by_references:
            pictures["reference"] = grids.reference_grid(translator, self.inputs, self.references)
        for name, picture in pictures.items():
            self._write(f"samples/{name}_{step:08d}.png", grids.to_png(picture))
        self.monitor.show(pictures, step)

    def evaluate(self, step: int) -> bool:
        """Measure the averaged networks, on all ranks, unless that was done before.

        Images or networks that cannot be measured are told and do not end the training. Returns
        False if the run was asked to stop before all was measured.
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
                if self.shown:
                    told = f"evaluation at step {step} failed, training goes on: {error}"
                    print(told, file=sys.stderr, flush=True)
                return not self.world.all_reduce_max(self.stopped())
        return True

    def _show(self, result: Result) -> None:
        if self.shown:
            print(report.headline(result), report.table(result), sep="\n", flush=True)
            report.log_to_tensorboard(self.config.run, result, results.protocol_variant(result))

    def _translator(self, step: int) -> Translator:
        return Translator(self.training.ema, self.config, self.training.labels, step)

    def end(self, step: int, finished: bool, received: int) -> None:
        """Say how the run ended, to a person and (status.json) to a script."""
        if not self.shown:
            return
        self.monitor.close()
        status = "finished" if finished else "stopped"
        self._write_status(status, step, received)
        cause = f" by {signal.Signals(received).name}" if received else ""
        print(f"{status}{cause} at step {step}, saved in {self.config.run}", flush=True)
        if status == "stopped":
            print("the same command goes on from there", flush=True)
