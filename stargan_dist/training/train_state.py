"""The parts of a run that change, and how they are saved."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from stargan_dist.config import Config, EngineConfig, OptimConfig
from stargan_dist.data.batch import Batch
from stargan_dist.data.labels import Labels
from stargan_dist.data.order import seeded_rng
from stargan_dist.engines.base import Engine, TrainedParts
from stargan_dist.nets.precision import POLICIES, compile_networks, set_precision
from stargan_dist.objectives import recipes
from stargan_dist.objectives.losses import falling
from stargan_dist.objectives.objective import Objective
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.runs.checkpoint import CheckpointState

PAPER_BATCH = 8
LR_SCALING: dict[str, Callable[[float], float]] = {
    "off": lambda times: 1.0,
    "linear": lambda times: times,
    "sqrt": math.sqrt,
}


def rate_of(
    letter: str, config: OptimConfig, batch_size: int = PAPER_BATCH, step: int = 0
) -> float:
    """The learning rate of a network at a step: that of the configuration times `lr_scaling` of
    the batch, falling as `decay_begin` and `decay_end` say."""
    times = LR_SCALING[config.lr_scaling](batch_size / PAPER_BATCH)
    rate = config.lr_mapping if letter == "F" else config.lr
    assert rate is not None, "the configuration is not resolved"
    end = config.decay_end
    return times * rate * (falling(step, config.decay_begin or 0, end) if end else 1.0)


def build_optimizers(
    networks: Mapping[str, nn.Module], config: OptimConfig, batch_size: int = PAPER_BATCH
) -> dict[str, torch.optim.Optimizer]:
    """Adam for each network. The configuration is resolved: recipes.py."""
    assert config.betas is not None
    assert config.weight_decay is not None
    return {
        letter: torch.optim.Adam(
            network.parameters(),
            lr=rate_of(letter, config, batch_size),
            betas=config.betas,
            weight_decay=config.weight_decay,
            # It skips a step by a flag that the host need not read (engines/steps.py).
            fused=next(network.parameters()).is_cuda,
        )
        for letter, network in networks.items()
    }


class TrainState:
    """The parts of a run that change: networks, their averages, optimizers, the objective."""

    def __init__(self, config: Config, labels: Labels, device: torch.device) -> None:
        self.config = config = recipes.resolved(config)
        self.labels = labels
        row, policy = recipes.recipe_of(config), POLICIES[config.precision]
        self.dtype = policy.weights
        torch_seed = int(seeded_rng(config.seed, "networks").integers(2**63))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed)
            self.networks = recipes.build_networks(row, labels, config.model)
        for network in self.networks.values():
            network.to(device, self.dtype)
        _arrange(self.networks, config.engine, device)
        self.objective = Objective(row, self.networks, labels, config.schedule)
        self.optimizers = build_optimizers(self.networks, config.optim, config.batch_size)
        self.ema = {
            letter: copy.deepcopy(network).requires_grad_(False).eval()
            for letter, network in self.networks.items()
            if letter != "D"
        }
        # After the copies: averages compute as their weights are, and are not compiled.
        set_precision(self.networks, policy)
        if config.engine.compile:
            compile_networks(self.networks)
        assert config.optim.ema is not None
        self._average = get_ema_multi_avg_fn(config.optim.ema)

    @property
    def parts(self) -> TrainedParts:
        return TrainedParts(self.objective.sides, self.networks, self.optimizers)

    def iterate(self, engine: Engine, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        """One iteration: rates, losses and steps, averages. Returns the objective's terms; with
        several data sets their names have that of the step's."""
        self._set_rates(step)
        terms = self.objective.iterate(engine, batches, step)
        spaces = self.labels.spaces
        if len(spaces) > 1:
            terms = _of_set(spaces[step % len(spaces)].name, terms)
        # In iterations of D alone, too: what an average remembers is counted in images.
        self.update_ema(engine)
        return terms

    def _set_rates(self, step: int) -> None:
        for letter, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rate_of(letter, self.config.optim, self.config.batch_size, step)

    def update_ema(self, engine: Engine) -> None:
        for letter, average in self.ema.items():
            with engine.whole(letter):
                current = list(self.networks[letter].parameters())
                self._average(list(average.parameters()), current, None)

    def snapshot(self, engine: Engine, *, keep: bool) -> CheckpointState | None:
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
        return CheckpointState(networks, ema, optimizers, scales)

    def restore(self, state: CheckpointState) -> None:
        """Fill networks and averages. Optimizers are filled once an engine has taken them."""
        checkpoints.load_networks(self.networks, state.networks)
        checkpoints.load_networks(self.ema, state.ema)

    def restore_optimizers(self, engine: Engine, state: CheckpointState) -> None:
        for letter in self.networks:
            engine.load_moments(letter, checkpoints.tensors_of_network(letter, state.optimizers))
        for side, scale in engine.scales.items():
            if side in state.scales:
                scale.load(state.scales[side])


def _of_set(name: str, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`D/label/real` becomes `D/label/NAME/real`."""
    return {"/".join([*k.split("/")[:-1], name, k.split("/")[-1]]): v for k, v in terms.items()}


def _arrange(networks: Mapping[str, nn.Module], config: EngineConfig, device: torch.device) -> None:
    """What a device does faster with; of no influence beyond rounding."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
    wanted = config.channels_last == "auto" and on_gpu and config.name == "ddp"
    if config.channels_last == "on" or wanted:
        for network in networks.values():
            network.to(memory_format=torch.channels_last)


def _copied(letter: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        f"{letter}.{name}": tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in tensors.items()
    }
