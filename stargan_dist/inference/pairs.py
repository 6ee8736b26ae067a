"""The models of all pairs of domains, as one translator between all domains."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch

from stargan_dist import config as configs
from stargan_dist.config import Config
from stargan_dist.errors import UserError
from stargan_dist.inference.model import TrainedModel
from stargan_dist.models import pairs
from stargan_dist.models.pairs import Pair
from stargan_dist.objectives.recipes import resolve
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.runs.checkpoint import EMA, Checkpoint


class PairModels:
    """Translates between K domains by the runs of their pairs (models/pairs.py).

    The networks of one pair at a time are in memory: those of the last translation.

    Args:
        url: folder or URL of the set.
        step: all pairs have a checkpoint of this step.
        device: of the networks.

    Raises:
        UserError: the pairs were not trained alike, or a checkpoint cannot be read.
    """

    def __init__(self, url: str, step: int, device: str | torch.device = "cpu") -> None:
        self.domains, self.step, self.device = pairs.read_domains(url), step, device
        self.pairs = {pair.domains: pair for pair in pairs.list_pairs(url, self.domains)}
        saved = [checkpoints.read(pair.run, step) for pair in self.pairs.values()]
        config = common_config(list(self.pairs.values()), saved)
        self.config = replace(config, run=url, data=replace(config.data, pair=[]))
        self.bfloat16 = False
        self._hashes = [checkpoint.manifest.files[EMA].sha256 for checkpoint in saved]
        self._loaded: tuple[Pair, TrainedModel] | None = None
        self.guided_by_references = self.between(0, 1)[0].guided_by_references

    def between(self, source: int, target: int) -> tuple[TrainedModel, int]:
        """Return the model that translates from one domain to another, and its label of the target.

        Raises:
            UserError: it cannot be read.
        """
        first, second = sorted((source, target))
        pair = self.pairs[self.domains[first], self.domains[second]]
        if self._loaded is None or self._loaded[0] != pair:
            self._loaded = None  # frees its memory first
            self._loaded = pair, TrainedModel.load(pair.run, str(self.step), self.device)
        model = self._loaded[1]
        model.bfloat16 = self.bfloat16
        return model, int(target == second)

    def hash_weights(self) -> str:
        """Return a hash of the weights of all pairs."""
        return hashlib.sha256(" ".join(self._hashes).encode()).hexdigest()


def common_config(of_set: Sequence[Pair], saved: Sequence[Checkpoint]) -> Config:
    """Return the configuration of the first of several pairs, which differs in names from others.

    Raises:
        UserError: another one was trained with another configuration, or on other domains.
    """
    found = [configs.from_dict(checkpoint.manifest.config) for checkpoint in saved]
    resolved = [resolve(config).config for config in found]
    for pair, config in zip(of_set, resolved, strict=True):
        expected = replace(resolved[0], data=replace(resolved[0].data, pair=list(pair.domains)))
        if different := configs.differences(expected, config):
            raise UserError(
                f"{pair.run} was not trained as {of_set[0].run} ({'; '.join(different)}): the "
                "pairs of a set have one configuration; train this one again"
            )
    return resolved[0]


AnyModel = TrainedModel | PairModels
