"""DDP: every process holds everything; gradients are averaged during the backward pass."""

import gc
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stargan_dist.config import ClipConfig
from stargan_dist.distributed.world import World
from stargan_dist.engines import optimizer_steps
from stargan_dist.engines.base import (
    Call,
    Engine,
    LossScale,
    Moments,
    Terms,
    TrainedParts,
    mean_terms,
    scaled_share,
)


class DDP(Engine):
    """DistributedDataParallel around each loss module. Optimizers step the raw networks."""

    def __init__(
        self, parts: TrainedParts, clip: ClipConfig, loss_scales: Mapping[str, LossScale],
        world: World,
    ) -> None:  # fmt: skip
        super().__init__(parts, clip, loss_scales, world)
        self._modules: dict[str, nn.Module] = dict(parts.loss_modules)
        if world.size > 1:
            self._modules = {name: _wrapped(m, world) for name, m in parts.loss_modules.items()}

    def _backward(
        self, module: str, calls: Sequence[Call], trains: tuple[str, ...], scale: Tensor | None
    ) -> Terms:
        wrapped, terms_of_calls = self._modules[module], []
        for number, call in enumerate(calls, start=1):
            with nullcontext() if number == len(calls) else _without_exchange(wrapped):
                loss, terms = wrapped(*call)
                self.world.mark_progress()
                scaled_share(loss, len(calls), scale).backward()
            terms_of_calls.append(terms)
        return mean_terms(terms_of_calls)

    def _step(self, trains: tuple[str, ...], scale: Tensor | None) -> dict[str, Tensor]:
        return {name: self._plain_step(name, scale) for name in trains}

    def moments(self, name: str) -> Moments | None:
        return optimizer_steps.moments_of(self.parts.networks[name], self.parts.optimizers[name])

    def load_moments(self, name: str, moments: Mapping[str, Tensor]) -> None:
        network, optimizer = self.parts.networks[name], self.parts.optimizers[name]
        optimizer_steps.load_moments(network, optimizer, moments)

    def close(self) -> None:
        """Drop the wrappers: one that outlives its process group may abort the process at exit."""
        self._modules = {}
        gc.collect()


def _wrapped(module: nn.Module, world: World) -> nn.Module:
    # The reference-guided step leaves F and E unused. find_unused_parameters also keeps DDP's
    # buckets as they are first built: rebuilt buckets sum in another order, and a resumed run of
    # three or more ranks would differ in the last bits. Never static_graph: with R1 the ranks
    # diverge without an error.
    on_gpu = world.device.type == "cuda"
    return DistributedDataParallel(
        module, device_ids=[world.device] if on_gpu else None, find_unused_parameters=True
    )


def _without_exchange(module: nn.Module) -> AbstractContextManager[None]:
    """Accumulate gradients on this rank until a later backward."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()
