"""What every engine does, and what it may do in its own way."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stargan_dist.config import ClipConfig
from stargan_dist.distributed.world import World
from stargan_dist.engines import optimizer_steps as ordinary
from stargan_dist.engines.optimizer_steps import Moments

Terms = dict[str, Tensor]
Call = tuple[Any, ...]


@dataclass(frozen=True)
class TrainedParts:
    """What is trained: sides (modules that compute a loss), their networks, the optimizers."""

    sides: Mapping[str, nn.Module]
    networks: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]


class LossScale:
    """Dynamic loss scale of one side for float16 (Micikevicius et al. 2018, arXiv 1710.03740).

    Halved where a gradient overflowed, doubled after so many updates in which none did. It stays
    on the device: nothing waits for it.
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
    """Losses into steps. Gradients are means over calls and ranks.

    Args:
        clip: the largest gradient norm of each network.
        scales: loss scales by side; without one a loss is taken as it is.
        world: is told how far this process has come.
    """

    keeps_graphs = True

    def __init__(
        self, parts: TrainedParts, clip: ClipConfig, scales: Mapping[str, LossScale], world: World
    ) -> None:
        self.parts, self.clip, self.scales, self.world = parts, clip, scales, world

    def update(
        self, side: str, calls: Sequence[Call], steps: tuple[str, ...]
    ) -> tuple[Terms, Terms]:
        """The mean of one side's loss over its calls, backward, and the named networks step.

        A network whose gradient is not finite stays as it was, on every rank.

        Returns:
            The loss's terms of this rank, and for each network `grad_norm_X` (ahead of clipping)
            and `finite_X` (0 or 1), the same on all ranks; all on the device.
        """
        scale = self.scales.get(side)
        terms = self._gradients(side, calls, steps, scale.value if scale else None)
        norms = self._step(steps, scale.value if scale else None)
        finite = {name: norm.isfinite() for name, norm in norms.items()}
        if scale:
            scale.update(torch.stack(list(finite.values())).all())
        facts = {f"grad_norm_{name}": norm for name, norm in norms.items()}
        return terms, facts | {f"finite_{name}": flag.double() for name, flag in finite.items()}

    @abstractmethod
    def _gradients(
        self, side: str, calls: Sequence[Call], steps: tuple[str, ...], scale: Tensor | None
    ) -> Terms:
        """Forward and backward of every call; ranks exchange gradients in the last one."""

    @abstractmethod
    def _step(self, steps: tuple[str, ...], scale: Tensor | None) -> dict[str, Tensor]:
        """Step the networks and drop all gradients. Returns the norms of the unscaled gradients."""

    def _plain_step(self, name: str, scale: Tensor | None) -> Tensor:
        """`_step` of one network whose gradients and moments are whole here; returns the norm."""
        network, optimizer = self.parts.networks[name], self.parts.optimizers[name]
        return ordinary.step(network, optimizer, getattr(self.clip, name), scale)

    def whole(self, name: str) -> AbstractContextManager[object]:
        """While it is open, this process has all weights of a network, to read. For all ranks."""
        return nullcontext()

    @abstractmethod
    def moments(self, name: str) -> Moments | None:
        """The optimizer state of a network, on rank 0. For all ranks together."""

    @abstractmethod
    def load_moments(self, name: str, moments: Mapping[str, Tensor]) -> None:
        """Set the optimizer state of a network: what `moments` returned, of any engine."""

    @abstractmethod
    def close(self) -> None:
        """Give up what holds on to the process group."""


def mean_terms(rows: Sequence[Terms]) -> Terms:
    """The terms of one loss, averaged over its calls."""
    if len(rows) == 1:
        return rows[0]
    return {name: torch.stack([row[name] for row in rows]).mean(0) for name in rows[0]}


def loss_share(loss: Tensor, calls: int, scale: Tensor | None) -> Tensor:
    """What one of several calls adds to the scaled mean of a loss."""
    loss = loss / calls if calls > 1 else loss
    return loss if scale is None else loss * scale
