"""The parts of a run that change, and how they are saved."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from stargan_dist import checkpoint as checkpoints
from stargan_dist import config as configs
from stargan_dist.config import Config, OptimConfig
from stargan_dist.data.order import generator
from stargan_dist.data.skipped import Skipped
from stargan_dist.nets.precision import POLICIES
from stargan_dist.nets.v2 import build_networks
from stargan_dist.objectives.stargan_v2 import StarGANv2
from stargan_dist.shards.index import Index
from stargan_dist.translate import AVERAGED


def build_optimizers(
    networks: Mapping[str, nn.Module], config: OptimConfig
) -> dict[str, torch.optim.Optimizer]:
    return {
        letter: torch.optim.Adam(
            network.parameters(),
            lr=config.lr_mapping if letter == "F" else config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
        )
        for letter, network in networks.items()
    }


class Training:
    """The parts of a run that change: networks, their averages, optimizers, the objective."""

    def __init__(self, config: Config, index: Index, device: torch.device) -> None:
        self.config, self.index = config, index
        policy = POLICIES[config.precision]
        self.dtype = policy.weights
        torch_seed = int(generator(config.seed, "networks").integers(2**63))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed)
            built = build_networks(len(index.domains), **configs.to_dict(config)["model"])
        for network in built:
            network.to(device, self.dtype)
        self.objective = StarGANv2(built, config.loss)
        self.networks: dict[str, nn.Module] = built._asdict()
        self.optimizers = build_optimizers(self.networks, config.optim)
        self.ema = {
            letter: copy.deepcopy(self.networks[letter]).requires_grad_(False).eval()
            for letter in AVERAGED
        }
        built.compute_in(policy)  # after the copies: averages compute as their weights are
        self._average = get_ema_multi_avg_fn(config.optim.ema)

    @property
    def parts(self) -> dict[str, Any]:
        return {"networks": self.networks, "ema": self.ema, "optimizers": self.optimizers}

    def update_ema(self) -> None:
        for letter, average in self.ema.items():
            current = list(self.networks[letter].parameters())
            self._average(list(average.parameters()), current, None)

    def save(self, step: int, skipped: Skipped) -> None:
        facts = {
            "config": configs.to_dict(self.config),
            "domains": self.index.domains,
            "data": self.index.fingerprint,
            "skipped": skipped.rows,
        }
        checkpoints.save(self.config.run, step, facts=facts, **self.parts)
        keep, protocol = self.config.checkpoint, self.config.evaluation.protocol
        checkpoints.remove_superseded(
            self.config.run,
            step,
            protocol,
            keep_last=keep.keep_last,
            keep_every=keep.keep_every,
        )
