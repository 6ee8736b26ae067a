"""DDP: every process holds everything; gradients are averaged during the backward pass."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

from torch import Tensor, nn

from stargan_dist.config import Config
from stargan_dist.distributed.world import World
from stargan_dist.engines import optimizer_steps
from stargan_dist.engines.base import (
    Call,
    Engine,
    Moments,
    Terms,
    TrainedParts,
    mean_terms,
    scaled_share,
)


class DDP(Engine):
    """DistributedDataParallel around each loss module. Optimizers step the raw networks."""

    def __init__(self, parts: TrainedParts, config: Config, world: World) -> None:
        super().__init__(parts, config, world)
        # Accelerate would wrap a single process of torchrun as well.
        self._modules: dict[str, nn.Module] = {
            name: self.accelerator.prepare_model(module, evaluation_mode=world.size == 1)
            for name, module in parts.loss_modules.items()
        }
        self._optimizers = {
            name: self.accelerator.prepare_optimizer(optimizer)
            for name, optimizer in parts.optimizers.items()
        }

    def _backward(
        self, module: str, calls: Sequence[Call], trains: tuple[str, ...], scale: Tensor | None
    ) -> Terms:
        wrapped, terms_of_calls = self._modules[module], []
        for number, call in enumerate(calls, start=1):
            last = number == len(calls)
            with nullcontext() if last else self.accelerator.no_sync(wrapped):
                loss, terms = wrapped(*call)
                self.world.mark_progress()
                self.accelerator.backward(scaled_share(loss, len(calls), scale))
            terms_of_calls.append(terms)
        return mean_terms(terms_of_calls)

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

    def close(self) -> None:
        # A wrapper that outlives its process group may abort the process at exit.
        self._modules = {}
        super().close()
