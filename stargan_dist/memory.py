"""Command line: how much memory a configuration takes per GPU, told before it is trained.

    python -m stargan_dist.memory --config configs/afhq.yaml --domains 3 --processes 8

Weights, gradients, optimizer and averages follow from the number of parameters. What comes and
goes within an iteration is found by running one, with the objective and the optimizers of
training, on tensors that have a shape and no memory: seconds on any machine, whatever the size.
"""

import argparse
import json
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stargan_dist import config as configs
from stargan_dist import storage
from stargan_dist.config import Config
from stargan_dist.console.tables import format_table
from stargan_dist.data.batch import Batch
from stargan_dist.data.labels import Labels, domain_labels
from stargan_dist.data.sources import open_sources
from stargan_dist.errors import UserError, run_command
from stargan_dist.nets.precision import POLICIES, set_precision
from stargan_dist.objectives import recipes
from stargan_dist.objectives.objective import Objective
from stargan_dist.objectives.recipe import Terms
from stargan_dist.training.train_state import build_optimizers

ENGINES = ("DDP", "ZeRO 1", "ZeRO 2", "ZeRO 3")  # by stage
MOMENTS = 2  # Adam's, each of the size of the weights
NOTES = """\
Each part is at its largest, so the total is a bound: gradients come when activations go.
Not counted: the CUDA context, workspaces of kernels, what the allocator keeps, evaluations. With
ZeRO: the buckets of DeepSpeed, its copy of the weights that a rank steps, what stage 3 gathers."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, from their birth to their end.

    `live` is their sum now, `peak` the most it has been. torch's own MemTracker, which does the
    same per module, refuses a network that runs twice in an iteration.
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
        """The peak since the last call."""
        peak, self.peak = self.peak, self.live
        return peak

    def exclude(self, tensor: Tensor) -> None:
        """Count the storage of a tensor as nothing from now on."""
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


class Simulated:
    """The networks, objective and optimizers of training, and an engine's `update` upon them.

    `passes` and `steps` are the most bytes that came and went in forwards and backwards, and while
    an optimizer stepped: all but weights, moments and, once they are complete, gradients.
    """

    def __init__(self, config: Config, labels: Labels) -> None:
        row, policy = recipes.recipe_of(config), POLICIES[config.precision]
        self.labels, self.dtype = labels, policy.weights
        with default_dtype(self.dtype):  # fake networks cannot be converted later
            self.networks = recipes.build_networks(row, labels, config.model)
        set_precision(self.networks, policy)
        self.objective = Objective(row, self.networks, labels, config.schedule)
        self.optimizers = build_optimizers(self.networks, row.optim)
        self.counter = LiveBytes()
        self.passes = self.steps = 0
        for optimizer in self.optimizers.values():
            make_moments(optimizer)
            self._exclude_what_stays(optimizer)

    def _exclude_what_stays(self, optimizer: torch.optim.Optimizer) -> None:
        for parameter, state in optimizer.state.items():
            for tensor in (parameter, *state.values()):
                self.counter.exclude(tensor)
            parameter.register_post_accumulate_grad_hook(lambda p: self.counter.exclude(p.grad))

    keeps_graphs = True

    def update(
        self, side: str, calls: Sequence[tuple[Any, ...]], steps: tuple[str, ...]
    ) -> tuple[Terms, Terms]:
        module = self.objective.sides[side]
        for call in calls:
            loss, terms = module(*call)
            loss.backward()
            del loss
        self.passes = max(self.passes, self.counter.take_peak())
        for name in steps:
            self.optimizers[name].step()
        self.steps = max(self.steps, self.counter.take_peak())
        module.zero_grad(set_to_none=True)
        return terms, {}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make new networks of a dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def make_moments(optimizer: torch.optim.Optimizer) -> None:
    """Have an optimizer make what it keeps, by a step with gradients of zero."""
    for group in optimizer.param_groups:
        group["foreach"] = True  # what Adam chooses on GPUs: quicker, with larger temporaries
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class Needs(NamedTuple):
    """What one process without any sharing needs, in bytes."""

    discriminator: int  # weights of D
    generator: int  # weights of G, F and E
    averages: int
    passes: int  # peak of what comes and goes in forwards and backwards
    steps: int  # the same in the steps of the optimizers


def nbytes(network: nn.Module) -> int:
    return sum(p.nbytes for p in network.parameters())


def blank_batch(config: Config, labels: Labels, size: int, dtype: torch.dtype) -> Batch:
    """A rank's batch of `size` sources, all zeros, as it lies on the GPU."""
    image = (size, 3, config.model.image_size, config.model.image_size)
    x, x_ref, x_ref2 = (torch.zeros(image, dtype=dtype) for _ in range(3))
    y = torch.zeros(size, dtype=torch.int64)
    y = y if labels.by_domain else y[:, None].repeat(1, labels.vector_dim).to(dtype)
    z, z2 = (torch.zeros(size, config.model.latent_dim, dtype=dtype) for _ in range(2))
    batch = Batch(x, y, x_ref, x_ref2, y.clone(), z, z2, torch.zeros(size, dtype=dtype))
    if recipes.recipe_of(config).references:
        return batch
    return batch._replace(x_ref=None, x_ref2=None)


def measure(
    config: Config,
    labels: Labels,
    batch_size: int,
    mode: AbstractContextManager[Any] | None = None,
) -> Needs:
    """Run one iteration of `batch_size` sources, and count.

    Its tensors take no memory. Tests give another mode, where they do, and want the same count.
    """
    config = recipes.resolved(config)
    with mode or FakeTensorMode():
        simulated = Simulated(config, labels)
        with simulated.counter:
            batch = blank_batch(config, labels, batch_size, simulated.dtype)
            batches = batch.split(config.engine.accumulate)
            objective = simulated.objective
            last = objective.row.critic_steps * objective.sets - 1  # the generator side's, too
            objective.iterate(simulated, batches, last)
    discriminator = nbytes(simulated.networks["D"])
    generator = sum(map(nbytes, simulated.networks.values())) - discriminator
    return Needs(
        discriminator=discriminator,
        generator=generator,
        averages=generator,
        passes=simulated.passes,
        steps=simulated.steps,
    )


class Memory(NamedTuple):
    """Bytes per GPU, by part.

    Each part is at its largest, and gradients come when activations go. So the total is a bound:
    at 256 px it lies above the peak by the gradients, 2 % with 8 sources and 8 % with one.
    """

    weights: int
    gradients: int  # one side's at a time
    buckets: int  # DDP's copies of the gradients of both sides, for communication
    optimizer: int
    averages: int
    activations: int  # all that comes and goes: the batch, activations, temporaries

    @property
    def total(self) -> int:
        return sum(self)

    def rows(self) -> dict[str, int]:
        return {**self._asdict(), "total": self.total}


def shared_out(needs: Needs, processes: int, stage: int) -> Memory:
    """What each of so many processes takes under DDP (stage 0) or ZeRO 1 to 3.

    ZeRO shares the optimizer from stage 1, gradients from 2, and the weights of G, F and E from 3,
    where D stays at 2.
    """

    def share(size: int, since: int) -> int:
        return -(-size // processes) if stage >= since else size

    whole = needs.discriminator + needs.generator
    return Memory(
        weights=needs.discriminator + share(needs.generator, 3),
        gradients=share(max(needs.discriminator, needs.generator), 2),
        buckets=whole if stage == 0 and processes > 1 else 0,
        optimizer=share(MOMENTS * whole, 1),
        averages=needs.averages,
        activations=max(needs.passes, share(needs.steps, 1)),
    )


def estimate(config: Config, labels: Labels, processes: int = 1, stage: int = 0) -> Memory:
    """Memory per GPU of training a configuration on so many processes, in bytes.

    Raises:
        UserError: the global batch does not divide evenly.
    """
    return by_engine(config, labels, processes, [stage])[ENGINES[stage]]


def by_engine(
    config: Config, labels: Labels, processes: int, stages: Iterable[int]
) -> dict[str, Memory]:
    """The same for several stages, by the name of the engine."""
    configs.check_world(config, processes)
    needs = measure(config, labels, config.batch_size // processes)
    return {ENGINES[stage]: shared_out(needs, processes, stage) for stage in stages}


def table(found: Mapping[str, Memory]) -> str:
    """For people: a row for each engine, or, of a single one, a row for each part."""
    large = max(memory.total for memory in found.values()) >= 2**30
    unit, size_of_unit = ("GiB", 2**30) if large else ("MiB", 2**20)
    lines = [[f"{unit} per GPU", *Memory._fields, "total"]]
    for name, memory in found.items():
        sizes = memory.rows().values()
        lines.append([name, *(f"{size / size_of_unit:.2f}" for size in sizes)])
    return format_table(lines if len(found) > 1 else zip(*lines, strict=True), left=[0])


def parse_args() -> tuple[argparse.Namespace, Config]:
    parser = argparse.ArgumentParser(
        prog="python -m stargan_dist.memory",
        description="Tell how much memory a configuration takes per GPU, before it is trained.",
        epilog="Every other option is one of training, --config FILE first of all: "
        "python -m stargan_dist.train --help explains them.",
        allow_abbrev=False,
    )
    parser.add_argument("--domains", type=int, metavar="K", help="unless given, as in the shards")
    parser.add_argument("--processes", type=int, default=1, metavar="W", help="GPUs in all (1)")
    parser.add_argument(
        "--zero-stage", type=int, choices=range(4), help="0 is DDP; unless given, all are shown"
    )
    parser.add_argument("--json", action="store_true", help="print bytes as JSON, not a table")
    args, of_training = parser.parse_known_args()
    if args.processes < 1 or (args.domains is not None and args.domains < 1):
        parser.error("--processes and --domains must be at least 1")
    return args, configs.parse(of_training, "stargan_dist.memory")


def labels_of(config: Config) -> Labels:
    """The labels of a configuration's data.

    Raises:
        UserError: they cannot be read.
    """
    storage.configure(config.storage)
    try:
        return open_sources(config.data, "train").labels
    except UserError as error:
        raise UserError(f"{error} (or give the number of domains: --domains K)") from error


def main() -> None:
    args, config = parse_args()
    count = args.domains
    labels = domain_labels([*map(str, range(count))]) if count else labels_of(config)
    stages = range(len(ENGINES)) if args.zero_stage is None else [args.zero_stage]
    found = by_engine(config, labels, args.processes, stages)
    if args.json:
        print(json.dumps({name: memory.rows() for name, memory in found.items()}))
        return
    each = config.batch_size // args.processes
    kind = "domains" if labels.by_domain else "labels"
    print(
        f"{labels.num_labels} {kind}, {config.model.image_size} px, {config.precision}, "
        f"processes: {args.processes}, batch of each: {each}\n"
    )
    print(table(found), NOTES, sep="\n\n")


if __name__ == "__main__":
    run_command(main)
