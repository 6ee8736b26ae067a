"""The trainings of all pairs of a set: how far each is, and its command line."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from stargan_dist import config as configs
from stargan_dist import storage
from stargan_dist.config import Config
from stargan_dist.data.index import read_index
from stargan_dist.errors import UserError
from stargan_dist.evaluation.results import finished_tasks
from stargan_dist.evaluation.tasks import REAL
from stargan_dist.models.pairs import Pair
from stargan_dist.objectives.recipes import resolve
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.runs.checkpoint import Checkpoint
from stargan_dist.runs.scores import Result, read_results

BEGUN, NOT_BEGUN, FINISHED, EVALUATED = "begun", "not begun", "finished", "evaluated"


class Progress(NamedTuple):
    """How far the training of a pair is.

    Attributes:
        step: the number of saved steps, of `steps`.
        state: `not begun`, `begun`, `finished` (with its own last evaluation), or `evaluated`: the
            set's results have both directions at this step.
    """

    pair: Pair
    step: int
    steps: int
    state: str

    @property
    def is_finished(self) -> bool:
        """Nothing is left to train."""
        return self.state in (FINISHED, EVALUATED)

    def __str__(self) -> str:
        return f"at step {self.step} of {self.steps}" if self.state == BEGUN else self.state


def read_domains(config: Config) -> list[str]:
    """Read the domains of a configuration's shards, of which all pairs are to be trained.

    Raises:
        UserError: there are no shards, or fewer than two domains.
    """
    if config.data.sources:
        raise UserError("data.sources: pairs are of domains: name their shards as data.shards")
    domains = read_index(config.data.shards).domains
    if len(domains) < 2:
        raise UserError(f"data.shards: {config.data.shards} has one domain, and a pair needs two")
    return domains


def training_options(pair: Pair) -> list[str]:
    """Return the options of `stargan_dist.train` for a pair, to follow those of the set."""
    return ["--data.pair", json.dumps(pair.domains, ensure_ascii=False), "--run", pair.run]


def progress_of(config: Config, of_set: Sequence[Pair]) -> list[Progress]:
    """Return how far each pair is.

    Args:
        config: the configuration of the set.

    Raises:
        UserError: a pair was trained with another configuration.
    """
    results = read_results(config.run)
    return [_progress(config, pair, results) for pair in of_set]


def _progress(config: Config, pair: Pair, results: Sequence[Result]) -> Progress:
    checkpoint = checkpoints.find(pair.run)
    if checkpoint is None:
        return Progress(pair, 0, config.steps, NOT_BEGUN)
    _check_resumable(config, pair, checkpoint)
    step = checkpoint.step
    if step < config.steps or _status(pair.run) != FINISHED:
        return Progress(pair, step, config.steps, BEGUN)
    of_step = [result for result in results if result["step"] == step]
    evaluated = any(_has_both_directions(result, pair) for result in of_step)
    return Progress(pair, step, config.steps, EVALUATED if evaluated else FINISHED)


def _has_both_directions(result: Result, pair: Pair) -> bool:
    directions = {pair.domains, pair.domains[::-1]}
    guides = [guide for guide in result["guides"] if guide != REAL]
    return {(guide, *names) for guide in guides for names in directions} <= finished_tasks(result)


def _check_resumable(config: Config, pair: Pair, checkpoint: Checkpoint) -> None:
    """Check what the training of a begun pair checks, also for finished ones, which do not start.

    Raises:
        UserError: it was trained with another configuration.
    """
    data = replace(config.data, pair=list(pair.domains))
    saved = configs.from_dict(checkpoint.manifest.config)
    now = replace(config, run=pair.run, data=data)
    configs.check_resumable(resolve(saved).config, resolve(now).config, pair.run)


def _status(run: str) -> str | None:
    """Return the status that a training has reported; None if there is none."""
    try:
        status: Any = json.loads(storage.read_bytes(storage.join(run, "status.json")))
    except (FileNotFoundError, ValueError):
        return None
    return status.get("status") if isinstance(status, dict) else None
