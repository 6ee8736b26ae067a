"""DDP: every process holds everything; gradients are averaged during the backward pass."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from stargan_dist.config import Config
from stargan_dist.distributed.world import World
from stargan_dist.engines import optimizer_steps
from stargan_dist.engines.base import Engine, Moments, TrainedParts


class DDP(Engine):
    """DistributedDataParallel around each loss module. Optimizers step the raw networks."""

    def __init__(self, parts: TrainedParts, config: Config, world: World) -> None:
        super().__init__(parts, config, world)
        # Accelerate would wrap a single process of torchrun as well.
        self._modules = {
            name: self.accelerator.prepare_model(module, evaluation_mode=world.size == 1)
            for name, module in parts.loss_modules.items()
        }
        # Buffers are constants, and torch 2.8 takes an exchange between two forwards of one
        # backward pass for a change of them. As an argument of DDP this is deprecated.
        for module in self._modules.values():
            module.broadcast_buffers = False
        self._optimizers = {
            name: self.accelerator.prepare_optimizer(optimizer)
            for name, optimizer in parts.optimizers.items()
        }

    def _pass(
        self, module: str, trains: tuple[str, ...], *, last: bool
    ) -> AbstractContextManager[None]:
        return nullcontext() if last else self.accelerator.no_sync(self._modules[module])

    def _differentiate(self, loss: Tensor, trains: tuple[str, ...]) -> None:
        self.accelerator.backward(loss)

    def _step(self, trains: tuple[str, ...], scale: Tensor | None) -> dict[str, Tensor]:
        networks, clip = self.parts.networks, self.clip
        return {
            name: optimizer_steps.step(
                networks[name], self._optimizers[name], getattr(clip, name), scale
            )
            for name in trains
        }

    def moments(self, name: str) -> Moments | None:
        return optimizer_steps.moments_of(self.parts.networks[name], self.parts.optimizers[name])

    def load_moments(self, name: str, moments: Mapping[str, Tensor]) -> None:
        network, optimizer = self.parts.networks[name], self.parts.optimizers[name]
        optimizer_steps.load_moments(network, optimizer, moments)
