"""The parts of a run that change, and how they are saved."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from stargan_dist import checkpoint as checkpoints
from stargan_dist import config as configs
from stargan_dist.checkpoint import State
from stargan_dist.config import Config, EngineConfig, OptimConfig
from stargan_dist.data.order import generator
from stargan_dist.data.skipped import Skipped
from stargan_dist.engines.base import Engine, Parts
from stargan_dist.nets.precision import POLICIES
from stargan_dist.nets.v2 import Networks, build_networks
from stargan_dist.objectives.stargan_v2 import StarGANv2
from stargan_dist.shards.index import Index
from stargan_dist.translate import AVERAGED

PAPER_BATCH = 8
LR_SCALING: dict[str, Callable[[float], float]] = {
    "off": lambda times: 1.0,
    "linear": lambda times: times,
    "sqrt": math.sqrt,
}


def build_optimizers(
    networks: Mapping[str, nn.Module], config: OptimConfig, batch_size: int = PAPER_BATCH
) -> dict[str, torch.optim.Optimizer]:
    """Adam for each network, its rate that of the configuration times `lr_scaling` of the batch."""
    times = LR_SCALING[config.lr_scaling](batch_size / PAPER_BATCH)
    return {
        letter: torch.optim.Adam(
            network.parameters(),
            lr=times * (config.lr_mapping if letter == "F" else config.lr),
            betas=config.betas,
            weight_decay=config.weight_decay,
            # It skips a step by a flag that the host need not read (engines/steps.py).
            fused=next(network.parameters()).is_cuda,
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
        _arrange(built, config.engine, device)
        self.objective = StarGANv2(built, config.loss, config.schedule)
        self.networks: dict[str, nn.Module] = built._asdict()
        self.optimizers = build_optimizers(self.networks, config.optim, config.batch_size)
        self.ema = {
            letter: copy.deepcopy(self.networks[letter]).requires_grad_(False).eval()
            for letter in AVERAGED
        }
        # After the copies: averages compute as their weights are, and are not compiled.
        built.compute_in(policy)
        if config.engine.compile:
            built.compile()
        self._average = get_ema_multi_avg_fn(config.optim.ema)

    @property
    def parts(self) -> Parts:
        return Parts(self.objective.sides, self.networks, self.optimizers)

    def update_ema(self, engine: Engine) -> None:
        for letter, average in self.ema.items():
            with engine.whole(letter):
                current = list(self.networks[letter].parameters())
                self._average(list(average.parameters()), current, None)

    def snapshot(self, engine: Engine, *, keep: bool) -> State | None:
        """A copy in host memory of everything that changes. For all ranks together: they hand
        over what they hold, and one keeps it."""
        networks: dict[str, Tensor] = {}
        optimizers: dict[str, Tensor] = {}
        for letter, network in self.networks.items():
            with engine.whole(letter):
                networks |= _copied(letter, network.state_dict() if keep else {})
            moments = engine.moments(letter)
            optimizers |= _copied(letter, moments if moments and keep else {})
        if not keep:
            return None
        ema = {k: v for n, net in self.ema.items() for k, v in _copied(n, net.state_dict()).items()}
        scales = {side: scale.state() for side, scale in engine.scales.items()}
        return State(networks, ema, optimizers, scales)

    def restore(self, state: State) -> None:
        """Fill networks and averages. Optimizers are filled once an engine has taken them."""
        checkpoints.load_networks(self.networks, state.networks)
        checkpoints.load_networks(self.ema, state.ema)

    def restore_optimizers(self, engine: Engine, state: State) -> None:
        for letter in self.networks:
            engine.load_moments(letter, checkpoints.of_letter(letter, state.optimizers))
        for side, scale in engine.scales.items():
            if side in state.scales:
                scale.load(state.scales[side])

    def facts(self, skipped: Skipped, nonfinite: int = 0) -> dict[str, Any]:
        """What a checkpoint's manifest says of the run."""
        return {
            "config": configs.to_dict(self.config),
            "domains": self.index.domains,
            "data": self.index.fingerprint,
            "skipped": skipped.rows,
            "nonfinite": nonfinite,
        }


def _arrange(networks: Networks, config: EngineConfig, device: torch.device) -> None:
    """What a device does faster with; of no influence beyond rounding."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
    wanted = config.channels_last == "auto" and on_gpu and config.name == "ddp"
    if config.channels_last == "on" or wanted:
        for network in networks:
            network.to(memory_format=torch.channels_last)


def _copied(letter: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        f"{letter}.{name}": tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in tensors.items()
    }
