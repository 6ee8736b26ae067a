"""DeepSpeed ZeRO: optimizer states, gradients and weights sharded over the processes.

Stages 0 to 2 have one DeepSpeed engine per network, so that a step changes the networks it names
and no others. At stage 3 a network's weights are available only while the module that DeepSpeed
wraps is running. G, F and E, which share one loss, therefore share an engine. D, whose gradient a
penalty differentiates again, stays at stage 2.

One backward passes through several engines. It runs between the prologue and the epilogue that
DeepSpeed's own `backward` calls. Both are private: setup.cfg bounds the version.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

if not torch.cuda.is_available():  # or DeepSpeed warns that it found no GPU
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
import deepspeed
from deepspeed.utils import (
    logger,
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from stargan_dist.config import ClipConfig, EngineConfig
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
from stargan_dist.engines.deepspeed_settings import read_settings
from stargan_dist.nets.networks import generator_networks

logger.setLevel(logging.ERROR)  # it warns about every torch optimizer

# On CPUs gloo is enough. DeepSpeed would compile its own extension first, which takes a minute.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def engine_settings(
    config: EngineConfig, stage: int, max_norm: float, micro_batch_size: int
) -> dict[str, Any]:
    """Build the DeepSpeed configuration of one engine."""
    settings = read_settings(config.deepspeed_config)
    zero = {"stage": stage} | settings.pop("zero_optimization", {})
    offloaded = {
        "offload_optimizer": stage and config.offload_optimizer,
        "offload_param": stage == 3 and config.offload_parameters,
    }
    for key, is_offloaded in offloaded.items():
        rest = zero.pop(key, {})
        zero |= {key: rest | {"device": "cpu"}} if is_offloaded else {}
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_clipping": max_norm,
        "zero_optimization": zero,
        # Any torch optimizer: ZeRO requires only that it works element by element.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    } | settings


class Zero(Engine):
    """DeepSpeed engines, by the letters of the networks that they step."""

    def __init__(
        self,
        parts: TrainedParts,
        clip: ClipConfig,
        loss_scales: Mapping[str, LossScale],
        world: World,
        config: EngineConfig,
        micro_batch_size: int,
    ) -> None:
        super().__init__(parts, clip, loss_scales, world)
        assert not loss_scales
        self.stage = config.zero_stage
        self.keeps_graphs = self.stage < 3
        world.ensure_process_group()
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed requires it even for one process
        self._engines: dict[str, Any] = {}
        for name, network in parts.networks.items():
            if self.stage < 3 or name == "D":
                settings = engine_settings(
                    config, min(self.stage, 2), getattr(clip, name), micro_batch_size
                )
                self._engines[name] = _start(network, parts.optimizers[name], settings)
        if self.stage == 3:
            shared = generator_networks(parts.networks)
            optimizers = [parts.optimizers[name] for name in shared]
            settings = engine_settings(config, 3, 0.0, micro_batch_size)
            engine = _start(parts.loss_modules["G"], _joined(optimizers), settings)
            self._engines |= dict.fromkeys(shared, engine)

    def _backward(
        self, module: str, calls: Sequence[Call], trains: tuple[str, ...], scale: Tensor | None
    ) -> Terms:
        engines, terms_of_calls = self._engines_of(trains), []
        for number, call in enumerate(calls, start=1):
            for engine in engines:
                _expect_backward(engine, last=number == len(calls))
            loss, terms = self.parts.loss_modules[module](*call)
            self.world.mark_progress()
            for engine in engines:
                engine._backward_prologue()
            scaled_share(loss, len(calls), scale).backward()
            for engine in engines:
                engine._backward_epilogue()
            terms_of_calls.append(terms)
        return mean_terms(terms_of_calls)

    def _engines_of(self, names: tuple[str, ...]) -> list[Any]:
        """Return the engines of some networks, each once."""
        return list({id(self._engines[n]): self._engines[n] for n in names}.values())

    def _step(self, trains: tuple[str, ...], scale: Tensor | None) -> dict[str, Tensor]:
        if self.stage == 0:
            return {name: self._plain_step(name, scale) for name in trains}
        for engine in self._engines_of(trains):
            engine.step()  # does nothing if the norm is not finite
        norms = {name: self._engines[name].get_global_grad_norm() for name in trains}
        return {n: torch.as_tensor(norm, device=self.world.device) for n, norm in norms.items()}

    def gathered(self, name: str) -> AbstractContextManager[object]:
        if self.stage < 3 or name == "D":
            return nullcontext()
        parameters = list(self.parts.networks[name].parameters())
        return deepspeed.zero.GatheredParameters(parameters)

    def moments(self, name: str) -> Moments | None:
        network = self.parts.networks[name]
        if self.stage == 0:
            return optimizer_steps.moments_of(network, self.parts.optimizers[name])
        kinds, step = _kinds(self._engines[name].optimizer)
        moments: Moments = {} if step is None else {"step": step}
        for parameter_name, parameter in network.named_parameters():
            for kind in kinds:
                value = safe_get_full_optimizer_state(parameter, kind)
                if self.world.is_main:
                    moments[f"{parameter_name}:{kind}"] = value.cpu()
        return moments if self.world.is_main else None

    def load_moments(self, name: str, moments: Mapping[str, Tensor]) -> None:
        network = self.parts.networks[name]
        if self.stage == 0:
            optimizer_steps.load_moments(network, self.parts.optimizers[name], moments)
        elif moments:
            optimizer = self._engines[name].optimizer
            kinds = {key.rpartition(":")[2] for key in moments} - {"step"}
            _make_state(optimizer, kinds, moments["step"])
            for parameter_name, parameter in network.named_parameters():
                for kind in sorted(kinds):
                    value = moments[f"{parameter_name}:{kind}"].to(self.world.device)
                    _set_moment(parameter, value, kind, self.world.rank)

    def close(self) -> None:
        for engine in self._engines_of(tuple(self._engines)):
            engine.destroy()
        self._engines = {}


def _start(module: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any]) -> Any:
    """Start a DeepSpeed engine. It keeps the module's class; at stage 3 it shards its weights."""
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=optimizer, config=settings, dist_init_required=False
    )
    return engine


def _joined(optimizers: Sequence[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """Combine several optimizers of one class into one."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return type(optimizers[0])(groups)  # type: ignore[call-arg]


def _expect_backward(engine: Any, *, last: bool) -> None:
    """Set what DeepSpeed's own forward and backward set before a backward."""
    engine.set_gradient_accumulation_boundary(last)
    engine._running_engine_backward = True  # its hooks then skip prologue and epilogue
    if engine.zero_optimization():
        engine.optimizer.clear_backward_seen_flag()


def _set_moment(parameter: nn.Parameter, value: Tensor, kind: str, rank: int) -> None:
    if not hasattr(parameter, "ds_tensor"):  # below stage 3
        safe_set_full_optimizer_state(parameter, value, kind)
        return
    # DeepSpeed 0.19 slices this rank's part from a whole value without checking where it ends.
    size = parameter.ds_tensor.numel()
    part = value.flatten()[rank * size : (rank + 1) * size]
    part = nn.functional.pad(part, (0, size - part.numel()))
    safe_set_local_optimizer_state(parameter, part, kind)


def _partitions(optimizer: Any) -> list[Tensor]:
    """Return the flat float32 weights of this rank: the keys of the inner optimizer's state."""
    if hasattr(optimizer, "single_partition_of_fp32_groups"):
        return list(optimizer.single_partition_of_fp32_groups)
    return list(optimizer.fp32_partitioned_groups_flat)


def _kinds(optimizer: Any) -> tuple[list[str], Tensor | None]:
    """Return the names of an inner optimizer's states and its step; nothing before the first."""
    for state in optimizer.optimizer.state.values():
        if "step" in state:
            return sorted(state.keys() - {"step"}), torch.as_tensor(state["step"]).clone()
    return [], None


def _make_state(optimizer: Any, names: set[str], step: Tensor) -> None:
    """Create the state that an inner optimizer has after its first step, to be filled."""
    for partition in _partitions(optimizer):
        state = optimizer.optimizer.state[partition]
        on_device = optimizer.optimizer.defaults.get("fused")
        state["step"] = step.to(partition.device if on_device else "cpu", copy=True)
        for name in names - state.keys():  # at stage 3 another network may have created it
            state[name] = torch.zeros_like(partition)
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._lazy_init_hp_params_optimizer_state()
