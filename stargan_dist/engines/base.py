"""The interface of all engines, and what they share."""

import gc
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
)
from torch import Tensor, nn

from stargan_dist.config import Config
from stargan_dist.distributed.world import World
from stargan_dist.engines.optimizer_steps import Moments

Terms = dict[str, Tensor]
Call = tuple[Any, ...]  # arguments of a loss module's forward


@dataclass(frozen=True)
class TrainedParts:
    """The parts that are trained: loss modules, networks and optimizers.

    Attributes:
        loss_modules: "D", "G" and, of some recipes, "C"; each computes a whole loss in its
            forward.
        networks: by letter; the loss modules use them.
        optimizers: by the letter of their network.
    """

    loss_modules: Mapping[str, nn.Module]
    networks: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]


class LossScale:
    """Dynamic loss scale of a loss module for float16 (Micikevicius 2018, arXiv 1710.03740).

    It is halved after an overflow, and doubled after PATIENCE updates without one. It stays on the
    device, so that the host does not wait for it.
    """

    PATIENCE = 2000
    LOWEST = 2.0**-14

    def __init__(self, device: torch.device) -> None:
        self.value = torch.tensor(2.0**16, device=device)
        self.good = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, finite: Tensor) -> None:
        good = torch.where(finite, self.good + 1, 0)
        grown = torch.where(good == self.PATIENCE, self.value * 2, self.value)
        self.value = torch.where(finite, grown, (self.value / 2).clamp(min=self.LOWEST))
        self.good = torch.where(good == self.PATIENCE, 0, good)

    def state(self) -> list[float]:
        return [self.value.item(), self.good.item()]

    def load(self, state: Sequence[float]) -> None:
        self.value.fill_(state[0])
        self.good.fill_(int(state[1]))


class Engine(ABC):
    """Losses to optimizer steps. Gradients are means over micro-batches and ranks.

    Args:
        world: receives the progress of this process.
        plugins: DeepSpeed settings by the name that selects them; None: no DeepSpeed.
    """

    keeps_graphs = True

    def __init__(
        self,
        parts: TrainedParts,
        config: Config,
        world: World,
        plugins: dict[str, DeepSpeedPlugin] | None = None,
    ) -> None:
        self.parts, self.clip, self.world = parts, config.optim.clip, world
        scaled = config.precision == "float16"
        self.loss_scales = {name: LossScale(world.device) for name in parts.loss_modules if scaled}
        self._modules: dict[str, Any] = {**parts.loss_modules}  # as they are called
        self._type_of_world = PartialState().distributed_type
        self.accelerator = _start_accelerator(plugins)

    def update(
        self, module: str, calls: Sequence[Call], trains: tuple[str, ...]
    ) -> tuple[Terms, Terms]:
        """Minimise the mean loss of a loss module over its calls by one step of some networks.

        A network whose gradient is not finite stays unchanged, on every rank.

        Args:
            module: "D", "G" or "C".
            calls: arguments of the module's forward, one tuple per micro-batch.
            trains: letters of the networks that step.

        Returns:
            The loss terms of this rank; and for each network X `grad_norm_X` (before clipping) and
            `finite_X` (0 or 1), equal on all ranks. All on the device.
        """
        loss_scale = self.loss_scales.get(module)
        scale = loss_scale.value if loss_scale else None
        terms = self._backward(module, calls, trains, scale)
        norms = self._step(trains, scale)
        finite = {name: norm.isfinite() for name, norm in norms.items()}
        if loss_scale:
            loss_scale.update(torch.stack(list(finite.values())).all())
        statistics = {f"grad_norm_{name}": norm for name, norm in norms.items()}
        flags = {f"finite_{name}": flag.double() for name, flag in finite.items()}
        return terms, statistics | flags

    def _backward(
        self, module: str, calls: Sequence[Call], trains: tuple[str, ...], scale: Tensor | None
    ) -> Terms:
        """Run forward and backward of every call. Ranks exchange gradients in the last one."""
        terms_of_calls = []
        for number, call in enumerate(calls, start=1):
            with self._pass(module, trains, last=number == len(calls)):
                loss, terms = self._modules[module](*call)
                self.world.mark_progress()
                self._differentiate(_scaled_share(loss, len(calls), scale), trains)
            terms_of_calls.append(terms)
        return _mean_terms(terms_of_calls)

    @abstractmethod
    def _pass(
        self, module: str, trains: tuple[str, ...], *, last: bool
    ) -> AbstractContextManager[None]:
        """Return the context of a forward and backward. Ranks exchange gradients if it is last."""

    @abstractmethod
    def _differentiate(self, loss: Tensor, trains: tuple[str, ...]) -> None:
        """Run the backward of a loss that trains some networks."""

    @abstractmethod
    def _step(self, trains: tuple[str, ...], scale: Tensor | None) -> dict[str, Tensor]:
        """Step the networks and drop all gradients. Returns the norms of the unscaled gradients."""

    def gathered(self, name: str) -> AbstractContextManager[object]:
        """Provide all weights of a network for reading inside the context. Collective."""
        return nullcontext()

    @abstractmethod
    def moments(self, name: str) -> Moments | None:
        """Return the optimizer state of a network on rank 0. Collective."""

    @abstractmethod
    def load_moments(self, name: str, moments: Mapping[str, Tensor]) -> None:
        """Set the optimizer state of a network to what `moments` of any engine returned."""

    def close(self) -> None:
        """Release everything that refers to the process group.

        This process may then start another engine. Accelerate's own state allows one a process.
        """
        self._modules = {}  # DDP's wrappers may abort the process if they outlive the group
        self.accelerator.free_memory()
        AcceleratorState._reset_state()
        PartialState().distributed_type = self._type_of_world
        gc.collect()


def _start_accelerator(plugins: dict[str, DeepSpeedPlugin] | None) -> Accelerator:
    """Start the run's Accelerator in the process group of the world.

    Precision, compilation and accumulation are the training's own (docs/engines.md says why).
    """
    for variable in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_CPU"):
        os.environ.pop(variable, None)  # of a launcher, or of a former engine: `plugins` decides
    # The reference-guided step leaves F and E unused. find_unused_parameters also keeps DDP's
    # buckets as they are first built: rebuilt buckets sum in another order, and a resumed run of
    # three or more ranks would differ in the last bits. Never static_graph: with R1 the ranks
    # diverge without an error.
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(
        device_placement=False,
        mixed_precision="no",
        dynamo_backend="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        deepspeed_plugins=plugins,
        kwargs_handlers=[ddp],
    )


def _mean_terms(terms_of_calls: Sequence[Terms]) -> Terms:
    """Average the terms of one loss over its calls."""
    first, *others = terms_of_calls
    if not others:
        return first
    return {name: torch.stack([terms[name] for terms in terms_of_calls]).mean(0) for name in first}


def _scaled_share(loss: Tensor, num_calls: int, scale: Tensor | None) -> Tensor:
    """Return the contribution of one call to the scaled mean of a loss over its calls."""
    loss = loss / num_calls if num_calls > 1 else loss
    return loss if scale is None else loss * scale
