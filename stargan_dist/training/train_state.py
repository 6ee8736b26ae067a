"""Everything that training changes, and its copy in a checkpoint."""

import copy
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from stargan_dist.config import Config, EngineConfig, OptimConfig
from stargan_dist.data.labels import Labels
from stargan_dist.data.order import seeded_rng
from stargan_dist.engines.base import Engine, TrainedParts
from stargan_dist.models.inherit import inherit
from stargan_dist.models.landmarks import SavedLandmarks
from stargan_dist.models.saved import SavedModel
from stargan_dist.nets.masks import no_masks
from stargan_dist.nets.networks import generator_networks
from stargan_dist.nets.precision import compile_networks, set_precision
from stargan_dist.objectives.losses import linear_decay
from stargan_dist.objectives.objective import Objective
from stargan_dist.objectives.recipes import RunSpec
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.runs.checkpoint import CheckpointState

PAPER_BATCH = 8
LR_SCALING: dict[str, Callable[[float], float]] = {
    "off": lambda factor: 1.0,
    "linear": lambda factor: factor,
    "sqrt": math.sqrt,
}


def learning_rate(
    letter: str, config: OptimConfig, batch_size: int = PAPER_BATCH, step: int = 0
) -> float:
    """Return the learning rate of a network at a step.

    It is the configured rate, scaled with the batch (`lr_scaling`) and either decayed linearly
    between `decay_begin` and `decay_end` or halved every `halve_every` steps.
    """
    factor = LR_SCALING[config.lr_scaling](batch_size / PAPER_BATCH)
    rate = {"F": config.lr_mapping, "C": config.lr_content}.get(letter, config.lr)
    assert rate is not None, "the configuration is not resolved"
    end, period = config.decay_end, config.halve_every
    decay = linear_decay(step, config.decay_begin or 0, end) if end else 1.0
    return factor * rate * decay * (0.5 ** (step // period) if period else 1.0)


def average_decay(config: Config, step: int) -> float:
    """Return the decay of the averages in the iteration of a step.

    A training that starts from a model forgets it soon: its averages know nothing of new domains.
    The rule is that of TensorFlow's ExponentialMovingAverage with num_updates.
    """
    decay = config.optim.ema
    assert decay is not None, "the configuration is not resolved"
    return min(decay, (1 + step) / (10 + step)) if config.init.model else decay


def build_optimizers(
    networks: Mapping[str, nn.Module], config: OptimConfig, batch_size: int = PAPER_BATCH
) -> dict[str, torch.optim.Optimizer]:
    """Build an Adam optimizer for each network. The configuration must be resolved."""
    assert config.betas is not None
    assert config.weight_decay is not None
    return {
        letter: torch.optim.Adam(
            network.parameters(),
            lr=learning_rate(letter, config, batch_size),
            betas=config.betas,
            weight_decay=config.weight_decay,
            # Fused Adam skips a step by a device flag, which the host does not read
            # (engines/optimizer_steps.py).
            fused=next(network.parameters()).is_cuda,
        )
        for letter, network in networks.items()
    }


class TrainState:
    """Networks, their averages, optimizers and the objective.

    Attributes:
        networks: by letter.
        ema: averages of all networks except D and C, by letter, in the dtype of the weights.
        optimizers: by the letter of their network.
        masks: makes masks of images for the high-pass option, by a network that is not trained.
        dtype: of weights and batches.
    """

    def __init__(
        self,
        spec: RunSpec,
        labels: Labels,
        device: torch.device,
        landmarks: SavedLandmarks | None = None,
    ) -> None:
        self.spec, self.config, self.labels = spec, spec.config, labels
        config, self.dtype = spec.config, spec.policy.weights
        torch_seed = int(seeded_rng(config.seed, "networks").integers(2**63))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed)
            self.networks = spec.recipe.build_networks(labels, config.model)
        for network in self.networks.values():
            network.to(device, self.dtype)
        _set_device_options(self.networks, config.engine, device)
        self.masks = landmarks.masks(device, self.dtype) if landmarks else no_masks
        self.objective = Objective(spec.recipe, self.networks, labels, config.schedule, self.masks)
        self.optimizers = build_optimizers(self.networks, config.optim, config.batch_size)
        self.ema = {
            letter: copy.deepcopy(network).requires_grad_(False).eval()
            for letter, network in generator_networks(self.networks).items()
        }
        # After the copies: averages compute in the dtype of their weights and are not compiled.
        set_precision(self.networks, spec.policy)
        if config.engine.compile:
            compile_networks(self.networks)

    @property
    def parts(self) -> TrainedParts:
        """What an engine trains."""
        return TrainedParts(self.objective.loss_modules, self.networks, self.optimizers)

    def set_learning_rates(self, step: int) -> None:
        for letter, optimizer in self.optimizers.items():
            rate = learning_rate(letter, self.config.optim, self.config.batch_size, step)
            rate *= self.objective.rate_factor(letter)
            for group in optimizer.param_groups:
                group["lr"] = rate

    def update_averages(self, engine: Engine, step: int) -> None:
        """Move the averages towards the networks in the iteration of a step. Collective.

        Call it in iterations of D alone too: the memory of an average is counted in images.
        """
        average = get_ema_multi_avg_fn(average_decay(self.config, step))
        for letter, averaged in self.ema.items():
            with engine.gathered(letter):
                current = list(self.networks[letter].parameters())
                average(list(averaged.parameters()), current, None)

    def snapshot(self, engine: Engine, *, keep: bool) -> CheckpointState | None:
        """Copy everything that changes to host memory. Collective.

        Args:
            keep: this rank returns the copy; others return None.
        """
        networks: dict[str, Tensor] = {}
        optimizers: dict[str, Tensor] = {}
        for letter, network in self.networks.items():
            with engine.gathered(letter):
                networks |= _host_copies(letter, network.state_dict() if keep else {})
            moments = engine.moments(letter)
            optimizers |= _host_copies(letter, moments if moments and keep else {})
        pool = self._gathered_pool(engine)
        if not keep:
            return None
        ema: dict[str, Tensor] = {}
        for letter, average in self.ema.items():
            ema |= _host_copies(letter, average.state_dict())
        scales = {name: scale.state() for name, scale in engine.loss_scales.items()}
        return CheckpointState(networks, ema, optimizers, scales, pool)

    def _gathered_pool(self, engine: Engine) -> dict[str, Tensor]:
        """Return the pool of fakes of the global batch on rank 0, if there is one. Collective."""
        images = self.objective.pool.images
        if images is None:
            return {}
        whole = engine.world.gather_to_main(images.to("cpu", copy=True))
        return {} if whole is None else {"images": whole}

    def restore(self, state: CheckpointState) -> None:
        """Load networks and averages. Load what an engine shares out once there is one."""
        checkpoints.load_networks(self.networks, state.networks)
        checkpoints.load_networks(self.ema, state.ema)

    def inherit(self, model: SavedModel) -> str:
        """Start from the weights of a trained model. Return a table of what was taken.

        Averages begin with the same weights.

        Raises:
            UserError: its networks or labels do not fit.
        """
        new_domains = self.config.init.new_domains
        found = inherit(model, self.spec, self.labels, self.networks, new_domains)
        letters = {name.partition(".")[0] for name in found.tensors}
        for networks in (self.networks, self.ema):
            taken = {letter: net for letter, net in networks.items() if letter in letters}
            checkpoints.load_networks(taken, found.tensors)
        return found.table

    def restore_shares(self, engine: Engine, state: CheckpointState) -> None:
        """Load optimizer states, loss scales and the pool of fakes. Collective."""
        for letter in self.networks:
            engine.load_moments(letter, checkpoints.tensors_of_network(letter, state.optimizers))
        for name, scale in engine.loss_scales.items():
            if name in state.scales:
                scale.load(state.scales[name])
        if state.pool:
            world = engine.world
            images = state.pool["images"].to(world.device)
            self.objective.pool.load(images, world.rank, world.size)


def _set_device_options(
    networks: Mapping[str, nn.Module], config: EngineConfig, device: torch.device
) -> None:
    """Set options that make a device faster and change results by rounding alone."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
    automatic = config.channels_last == "auto" and on_gpu and config.name == "ddp"
    if config.channels_last == "on" or automatic:
        for network in networks.values():
            network.to(memory_format=torch.channels_last)


def _host_copies(letter: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        f"{letter}.{name}": tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in tensors.items()
    }
