"""Memory per GPU of a configuration, estimated before it is trained.

Weights, gradients, optimizer states and averages follow from the numbers of parameters. Activations
and temporaries are found by one iteration, with the objective and the optimizers of training, on
tensors that have a shape and no memory: seconds on any machine, whatever the size.
"""

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stargan_dist import config as configs
from stargan_dist.config import Config
from stargan_dist.data.batch import Batch
from stargan_dist.data.labels import Labels
from stargan_dist.nets.fan import FAN
from stargan_dist.nets.masks import LandmarkMasks, no_masks
from stargan_dist.nets.networks import generator_networks
from stargan_dist.nets.precision import set_precision
from stargan_dist.objectives.objective import Objective
from stargan_dist.objectives.recipe import Terms
from stargan_dist.objectives.recipes import RunSpec, check_labels, resolve
from stargan_dist.training.train_state import build_optimizers

ENGINES = ("DDP", "ZeRO 1", "ZeRO 2", "ZeRO 3")  # by stage
MOMENTS = 2  # Adam's, each of the size of the weights


class LiveBytes(TorchDispatchMode):
    """Count the bytes of the storages that operations create, while they are alive.

    torch's own MemTracker, which does the same per module, rejects a network that runs twice in an
    iteration.

    Attributes:
        live: bytes now.
        peak: largest `live` since the last `take_peak`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}  # by id of the storage

    def _enter(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            weakref.finalize(storage, self._leave, key)
        return key

    def _leave(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    def take_peak(self) -> int:
        """Return the peak since the last call."""
        peak, self.peak = self.peak, self.live
        return peak

    def exclude(self, tensor: Tensor) -> None:
        """Stop counting the storage of a tensor."""
        key = self._enter(tensor)
        self.live -= self._sizes[key]
        self._sizes[key] = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._enter(leaf)
        self.peak = max(self.peak, self.live)
        return out


class SimulatedEngine:
    """The networks, objective and optimizers of training, with an engine's `update`.

    Attributes:
        passes: peak bytes of what forwards and backwards allocate.
        steps: the same for optimizer steps. Neither includes weights, moments and, once they are
            complete, gradients.
    """

    keeps_graphs = True

    def __init__(self, spec: RunSpec, labels: Labels) -> None:
        self.labels, self.dtype = labels, spec.policy.weights
        with default_dtype(self.dtype):  # fake networks cannot be converted later
            self.networks = spec.recipe.build_networks(labels, spec.config.model)
            self.landmarks = FAN().eval() if spec.config.model.w_hpf else None
        set_precision(self.networks, spec.policy)
        masks = LandmarkMasks(self.landmarks) if self.landmarks else no_masks
        self.objective = Objective(spec.recipe, self.networks, labels, spec.config.schedule, masks)
        self.optimizers = build_optimizers(self.networks, spec.recipe.optim)
        self.counter = LiveBytes()
        self.passes = self.steps = 0
        for optimizer in self.optimizers.values():
            create_moments(optimizer)
            self._exclude_persistent(optimizer)

    def _exclude_persistent(self, optimizer: torch.optim.Optimizer) -> None:
        for parameter, state in optimizer.state.items():
            for tensor in (parameter, *state.values()):
                self.counter.exclude(tensor)
            parameter.register_post_accumulate_grad_hook(lambda p: self.counter.exclude(p.grad))

    def update(
        self, module: str, calls: Sequence[tuple[Any, ...]], trains: tuple[str, ...]
    ) -> tuple[Terms, Terms]:
        loss_module = self.objective.loss_modules[module]
        for call in calls:
            loss, terms = loss_module(*call)
            loss.backward()
            del loss
        self.passes = max(self.passes, self.counter.take_peak())
        for name in trains:
            self.optimizers[name].step()
        self.steps = max(self.steps, self.counter.take_peak())
        loss_module.zero_grad(set_to_none=True)
        return terms, {}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Create new networks in a dtype inside the context."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def create_moments(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer create its state, by a step with zero gradients."""
    for group in optimizer.param_groups:
        group["foreach"] = True  # as Adam chooses on GPUs: faster, with larger temporaries
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class UnshardedBytes(NamedTuple):
    """Memory of one process without sharding, in bytes."""

    discriminator: int  # weights of D and C
    generator: int  # weights of all other networks
    averages: int
    passes: int  # peak allocation of forwards and backwards
    steps: int  # peak allocation of optimizer steps
    landmarks: int = 0  # weights of the landmark network


def nbytes(network: nn.Module) -> int:
    return sum(p.nbytes for p in network.parameters())


def blank_batch(spec: RunSpec, labels: Labels, size: int, dtype: torch.dtype) -> Batch:
    """Return a rank's batch of `size` sources, all zeros, as on the GPU."""
    model = spec.config.model
    image = (size, 3, model.image_size, model.image_size)
    x, x_ref, x_ref2 = (torch.zeros(image, dtype=dtype) for _ in range(3))
    y = torch.zeros(size, dtype=torch.int64)
    y = y if labels.by_domain else y[:, None].repeat(1, labels.vector_dim).to(dtype)
    z, z2 = (torch.zeros(size, model.latent_dim, dtype=dtype) for _ in range(2))
    batch = Batch(x, y, x_ref, x_ref2, y.clone(), z, z2, torch.zeros(size, dtype=dtype))
    if spec.recipe.uses_references:
        return batch
    return batch._replace(x_ref=None, x_ref2=None)


def measure(
    spec: RunSpec,
    labels: Labels,
    batch_size: int,
    mode: AbstractContextManager[Any] | None = None,
) -> UnshardedBytes:
    """Run an iteration of each kind, of `batch_size` sources, and count the largest bytes.

    Args:
        mode: creates the tensors; None: tensors without memory. Tests use real ones, and expect
            the same count.
    """
    with mode or FakeTensorMode():
        simulated = SimulatedEngine(spec, labels)
        with simulated.counter:
            batch = blank_batch(spec, labels, batch_size, simulated.dtype)
            if spec.recipe.pool_size:
                simulated.objective.pool.allocate(batch.x)
            micro_batches = batch.split(spec.config.engine.accumulate)
            for step in _kinds_of_iterations(simulated.objective):
                simulated.objective.iterate(simulated, micro_batches, step)
    whole = sum(map(nbytes, simulated.networks.values()))
    generator = sum(map(nbytes, generator_networks(simulated.networks).values()))
    return UnshardedBytes(
        discriminator=whole - generator,
        generator=generator,
        averages=generator,
        passes=simulated.passes,
        steps=simulated.steps,
        landmarks=nbytes(simulated.landmarks) if simulated.landmarks else 0,
    )


def _kinds_of_iterations(objective: Objective) -> list[int]:
    """Return a step of each kind of iteration."""
    steps = range(0, objective.period * len(objective.source_names), len(objective.source_names))
    return [*{objective.kind_of_iteration(step): step for step in steps}.values()]


class Memory(NamedTuple):
    """Bytes per GPU, by part.

    Each part is at its largest, but gradients grow while activations shrink. So the total is an
    upper bound: at 256 px it exceeds the peak by the gradients, 2 % with 8 sources and 8 % with 1.
    """

    weights: int
    gradients: int  # of one loss module at a time
    buckets: int  # DDP's copies of all gradients, for communication
    optimizer: int
    averages: int
    activations: int  # the batch, activations, temporaries and the pool of fakes

    @property
    def total(self) -> int:
        return sum(self)

    def rows(self) -> dict[str, int]:
        return {**self._asdict(), "total": self.total}


def shard(unsharded: UnshardedBytes, processes: int, stage: int) -> Memory:
    """Return the memory of each process under DDP (stage 0) or ZeRO 1 to 3.

    ZeRO shards optimizer states from stage 1, gradients from stage 2, and the weights of G, F and E
    at stage 3, where D and C stay at 2.
    """

    def share(size: int, since: int) -> int:
        return -(-size // processes) if stage >= since else size

    whole = unsharded.discriminator + unsharded.generator
    return Memory(
        weights=unsharded.discriminator + share(unsharded.generator, 3) + unsharded.landmarks,
        gradients=share(max(unsharded.discriminator, unsharded.generator), 2),
        buckets=whole if stage == 0 and processes > 1 else 0,
        optimizer=share(MOMENTS * whole, 1),
        averages=unsharded.averages,
        activations=max(unsharded.passes, share(unsharded.steps, 1)),
    )


def estimate(config: Config, labels: Labels, processes: int = 1, stage: int = 0) -> Memory:
    """Return the memory per GPU of training a configuration on several processes, in bytes.

    Raises:
        UserError: the global batch does not divide evenly, or the recipe has two domains alone.
    """
    return estimate_engines(config, labels, processes, [stage])[ENGINES[stage]]


def estimate_engines(
    config: Config, labels: Labels, processes: int, stages: Iterable[int]
) -> dict[str, Memory]:
    """Return the memory per GPU for several stages, by the name of the engine."""
    spec = resolve(config)
    configs.check_world(config, processes, spec.recipe.sources_together)
    check_labels(spec, labels)
    unsharded = measure(spec, labels, config.batch_size // processes)
    return {ENGINES[stage]: shard(unsharded, processes, stage) for stage in stages}
