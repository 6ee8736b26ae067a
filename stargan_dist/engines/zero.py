"""DeepSpeed ZeRO: optimizer states, gradients and weights sharded over the processes.

Stages 1 and 2 have one DeepSpeed engine per network, so that a step changes the networks it names
and no others. At stage 3 a network's weights are available only while the module that DeepSpeed
wraps is running. G, F and E, which share one loss, therefore share an engine. D, whose gradient a
penalty differentiates again, and C stay at stage 2. (Stage 0 shards nothing: its engine is DDP.)

One backward passes through several engines. DeepSpeed prepares an engine for a backward when it
reaches an output of the engine's forward. The networks of a loss run several times per backward, so
the engines hold them in a `Relay`, whose forward only passes the finished loss on.
"""

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from accelerate.utils import DeepSpeedPlugin

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

from stargan_dist.config import Config
from stargan_dist.distributed.world import World
from stargan_dist.engines.base import Engine, Moments, TrainedParts
from stargan_dist.launch.deepspeed_settings import read_settings
from stargan_dist.nets.networks import generator_networks

logger.setLevel(logging.ERROR)  # it warns about every torch optimizer
# It warns about every engine but the first, which `Accelerator.backward` would drive.
logging.getLogger("accelerate.accelerator").setLevel(logging.ERROR)

# It calls collectives by names that torch is renaming.
warnings.filterwarnings("ignore", "`torch.distributed.*` is deprecated", FutureWarning)

# On CPUs gloo is enough. DeepSpeed would compile its own extension first, which takes a minute.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class Part(NamedTuple):
    """What one engine trains."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    stage: int
    max_norm: float


def engine_settings(
    config: Config, part: Part, world_size: int, file: Mapping[str, Any]
) -> dict[str, Any]:
    """Build the DeepSpeed configuration of one engine. file: the settings of `deepspeed_config`."""
    engine = config.engine
    zero = {"stage": part.stage} | file.get("zero_optimization", {})
    offloaded = {
        "offload_optimizer": engine.offload_optimizer,
        "offload_param": part.stage == 3 and engine.offload_parameters,
    }
    for key, is_offloaded in offloaded.items():
        rest = zero.pop(key, {})
        zero |= {key: rest | {"device": "cpu"}} if is_offloaded else {}
    return {**file} | {
        "train_micro_batch_size_per_gpu": config.batch_size // world_size // engine.accumulate,
        "gradient_accumulation_steps": 1,  # a loss is divided by it in every engine that it passes
        "gradient_clipping": part.max_norm,  # without a value, Accelerate clips at 1
        "zero_optimization": zero,
        # Any torch optimizer: ZeRO requires only that it works element by element.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


class Relay(nn.Module):
    """Holds a network for an engine, and passes a loss on."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, loss: Tensor) -> Tensor:
        return loss.view_as(loss)


class Plugin(DeepSpeedPlugin):
    """Settings of one DeepSpeed engine."""

    def set_deepspeed_weakref(self) -> None:
        """Do nothing: this would register the settings in the package transformers."""


class Zero(Engine):
    """DeepSpeed engines, by the letters of the networks that they step."""

    def __init__(self, parts: TrainedParts, config: Config, world: World) -> None:
        world.ensure_process_group()
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed requires it even for one process
        networks, optimizers, stage = parts.networks, parts.optimizers, config.engine.zero_stage
        self.keeps_graphs, clip = stage < 3, config.optim.clip
        self._shared = [*generator_networks(networks)] if stage == 3 else []
        trained = {
            n: Part(Relay(network), optimizers[n], min(stage, 2), getattr(clip, n) or 0.0)
            for n, network in networks.items()
            if n not in self._shared
        }
        if self._shared:
            joined = _joined([optimizers[name] for name in self._shared])
            trained["G"] = Part(parts.loss_modules["G"], joined, 3, 0.0)
        file = read_settings(config.engine.deepspeed_config)
        settings = {n: engine_settings(config, p, world.size, file) for n, p in trained.items()}
        plugins = {n: Plugin(hf_ds_config=s, zero3_init_flag=False) for n, s in settings.items()}
        super().__init__(parts, config, world, plugins)
        assert not self.loss_scales
        self._engines = {name: self._prepare(name, part) for name, part in trained.items()}
        self._engines |= dict.fromkeys(self._shared, self._engines["G"])
        if self._shared:
            self._modules["G"] = self._engines["G"]

    def _prepare(self, name: str, part: Part) -> Any:
        """Start a DeepSpeed engine. At stage 3 it shards the module's weights."""
        self.accelerator.state.select_deepspeed_plugin(name)
        engine, _ = self.accelerator.prepare(part.module, part.optimizer)
        return engine

    def _pass(
        self, module: str, trains: tuple[str, ...], *, last: bool
    ) -> AbstractContextManager[None]:
        for engine in self._engines_of(trains):
            engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def _differentiate(self, loss: Tensor, trains: tuple[str, ...]) -> None:
        for engine in self._engines_of(trains):
            # A loss that comes from an engine has passed through it.
            loss = loss if engine is self._modules["G"] else engine(loss)
        loss.backward()

    def _engines_of(self, names: tuple[str, ...]) -> list[Any]:
        """Return the engines of some networks, each once."""
        return list({id(self._engines[n]): self._engines[n] for n in names}.values())

    def _step(self, trains: tuple[str, ...], scale: Tensor | None) -> dict[str, Tensor]:
        for engine in self._engines_of(trains):
            engine.step()  # does nothing if the norm is not finite
        norms = {name: self._engines[name].get_global_grad_norm() for name in trains}
        return {n: torch.as_tensor(norm, device=self.world.device) for n, norm in norms.items()}

    def gathered(self, name: str) -> AbstractContextManager[object]:
        parameters = list(self.parts.networks[name].parameters()) if name in self._shared else []
        return deepspeed.zero.GatheredParameters(parameters, enabled=name in self._shared)

    def moments(self, name: str) -> Moments | None:
        kinds, step = _kinds(self._engines[name].optimizer)
        moments: Moments = {} if step is None else {"step": step}
        for parameter_name, parameter in self.parts.networks[name].named_parameters():
            for kind in kinds:
                value = safe_get_full_optimizer_state(parameter, kind)
                if self.world.is_main:
                    moments[f"{parameter_name}:{kind}"] = value.cpu()
        return moments if self.world.is_main else None

    def load_moments(self, name: str, moments: Mapping[str, Tensor]) -> None:
        if not moments:
            return
        kinds = {key.rpartition(":")[2] for key in moments} - {"step"}
        _make_state(self._engines[name].optimizer, kinds, moments["step"])
        for parameter_name, parameter in self.parts.networks[name].named_parameters():
            for kind in sorted(kinds):
                value = moments[f"{parameter_name}:{kind}"].to(self.world.device)
                _set_moment(parameter, value, kind, self.world.rank)

    def close(self) -> None:
        for engine in self._engines_of(tuple(self._engines)):
            engine.destroy()
        self._engines = {}
        self.accelerator.deepspeed_engine_wrapped = None  # destroyed above
        super().close()


def _joined(optimizers: Sequence[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """Combine several optimizers of one class into one."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return type(optimizers[0])(groups)  # type: ignore[call-arg]


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
