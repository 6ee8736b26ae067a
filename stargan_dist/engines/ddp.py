"""Every process holds everything; gradients are averaged as they come."""

import gc
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stargan_dist.config import ClipConfig
from stargan_dist.distributed.world import World
from stargan_dist.engines import optimizer_steps as ordinary
from stargan_dist.engines.base import (
    Call,
    Engine,
    LossScale,
    Moments,
    Terms,
    TrainedParts,
    loss_share,
    mean_terms,
)


class DDP(Engine):
    """DistributedDataParallel around each side; optimizers step the raw networks."""

    def __init__(
        self, parts: TrainedParts, clip: ClipConfig, scales: Mapping[str, LossScale], world: World
    ) -> None:
        super().__init__(parts, clip, scales, world)
        self._sides: dict[str, nn.Module] = dict(parts.sides)
        if world.size > 1:
            self._sides = {name: _wrapped(side, world) for name, side in parts.sides.items()}

    def _gradients(
        self, side: str, calls: Sequence[Call], steps: tuple[str, ...], scale: Tensor | None
    ) -> Terms:
        module, rows = self._sides[side], []
        for number, call in enumerate(calls, start=1):
            with nullcontext() if number == len(calls) else _alone(module):
                loss, terms = module(*call)
                self.world.mark_progress()
                loss_share(loss, len(calls), scale).backward()
            rows.append(terms)
        return mean_terms(rows)

    def _step(self, steps: tuple[str, ...], scale: Tensor | None) -> dict[str, Tensor]:
        return {name: self._plain_step(name, scale) for name in steps}

    def moments(self, name: str) -> Moments | None:
        return ordinary.moments_of(self.parts.networks[name], self.parts.optimizers[name])

    def load_moments(self, name: str, moments: Mapping[str, Tensor]) -> None:
        ordinary.load_moments(self.parts.networks[name], self.parts.optimizers[name], moments)

    def close(self) -> None:
        """A wrapper that outlived its process group could abort at exit."""
        self._sides = {}
        gc.collect()


def _wrapped(side: nn.Module, world: World) -> nn.Module:
    # The reference-guided step leaves F and E unused. That also keeps DDP's buckets as they are
    # first made: rebuilt ones would sum in another order, and a resumed run of three or more
    # ranks would differ in the last bits. Never static_graph: with R1 the ranks would drift
    # apart without an error.
    on_gpu = world.device.type == "cuda"
    return DistributedDataParallel(
        side, device_ids=[world.device] if on_gpu else None, find_unused_parameters=True
    )


def _alone(module: nn.Module) -> AbstractContextManager[None]:
    """Gradients stay here until a later backward."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()
