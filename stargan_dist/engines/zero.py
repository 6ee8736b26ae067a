"""DeepSpeed ZeRO: optimizer states, gradients and weights spread over the processes.

Stages 0 to 2 have an engine for each network, so that a step moves the networks it names and no
others. At stage 3 a network's weights are here only while the module that DeepSpeed watches runs;
G, F and E, which one loss runs through, therefore share an engine, and D, whose gradient a penalty
differentiates once more, stays at stage 2.

The prologue and epilogue that DeepSpeed puts around its own `backward` are called around one
backward through several engines. They are private: setup.cfg pins the version.
"""

import json
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

from stargan_dist import storage
from stargan_dist.config import ClipConfig, EngineConfig
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
from stargan_dist.errors import UserError

logger.setLevel(logging.ERROR)  # it warns of every optimizer of torch's

# On CPUs gloo serves; DeepSpeed would compile an extension of its own first, for a minute.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

# What the training decides itself, so that a DeepSpeed configuration may not.
OWN_KEYS = (
    "optimizer",
    "scheduler",
    "fp16",
    "bf16",
    "torch_autocast",
    "amp",
    "gradient_clipping",
    "gradient_accumulation_steps",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "managed_gradient_accumulation",
)
OWN_ZERO_KEYS = ("stage", "compute_grad_norm", "offload_optimizer", "offload_param")  # fmt: skip


def read_settings(path: str) -> dict[str, Any]:
    """A DeepSpeed configuration file; {} for none.

    Raises:
        UserError: it cannot be read, or decides what is the training's.
    """
    if not path:
        return {}
    try:
        settings = json.loads(storage.read_bytes(path))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"engine.deepspeed_config: cannot read {path}: {error}") from error
    taken = [key for key in OWN_KEYS if key in settings]
    zero = settings.get("zero_optimization", {})
    taken += [f"zero_optimization.{key}" for key in OWN_ZERO_KEYS if key in zero]
    if taken:
        raise UserError(
            f"engine.deepspeed_config: {path} sets {', '.join(taken)}, which the training's own "
            "configuration decides (engine.*, optim.*, precision, batch_size)"
        )
    return settings


def settings_of(config: EngineConfig, stage: int, bound: float, rank_batch: int) -> dict[str, Any]:
    """What DeepSpeed is told about one of its engines."""
    settings = read_settings(config.deepspeed_config)
    zero = {"stage": stage} | settings.pop("zero_optimization", {})
    if stage and config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if stage == 3 and config.offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": rank_batch,
        "gradient_clipping": bound,
        "zero_optimization": zero,
        # Any optimizer of torch's: all that ZeRO asks is that it works element by element.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    } | settings


class Zero(Engine):
    """Engines of DeepSpeed, by the names of the networks they step."""

    def __init__(
        self,
        parts: TrainedParts,
        clip: ClipConfig,
        scales: Mapping[str, LossScale],
        world: World,
        config: EngineConfig,
        rank_batch: int,
    ) -> None:
        super().__init__(parts, clip, scales, world)
        assert not scales
        self.stage = config.zero_stage
        self.keeps_graphs = self.stage < 3
        world.ensure_process_group()
        os.environ.setdefault("LOCAL_RANK", "0")  # it asks, even in a world of one
        self._engines: dict[str, Any] = {}
        for name, network in parts.networks.items():
            if self.stage < 3 or name == "D":
                settings = settings_of(config, min(self.stage, 2), getattr(clip, name), rank_batch)
                self._engines[name] = _start(network, parts.optimizers[name], settings)
        if self.stage == 3:
            others = [name for name in parts.networks if name != "D"]
            together = [parts.optimizers[name] for name in others]
            settings = settings_of(config, 3, 0.0, rank_batch)
            engine = _start(parts.sides["G"], _joined(together), settings)
            self._engines |= dict.fromkeys(others, engine)

    def _gradients(
        self, side: str, calls: Sequence[Call], steps: tuple[str, ...], scale: Tensor | None
    ) -> Terms:
        engines, rows = self._of(steps), []
        for number, call in enumerate(calls, start=1):
            for engine in engines:
                _expect_backward(engine, last=number == len(calls))
            loss, terms = self.parts.sides[side](*call)
            self.world.mark_progress()
            for engine in engines:
                engine._backward_prologue()
            loss_share(loss, len(calls), scale).backward()
            for engine in engines:
                engine._backward_epilogue()
            rows.append(terms)
        return mean_terms(rows)

    def _of(self, names: tuple[str, ...]) -> list[Any]:
        """The engines of some networks, each once."""
        return list({id(self._engines[n]): self._engines[n] for n in names}.values())

    def _step(self, steps: tuple[str, ...], scale: Tensor | None) -> dict[str, Tensor]:
        if self.stage == 0:
            return {name: self._plain_step(name, scale) for name in steps}
        for engine in self._of(steps):
            engine.step()  # nothing, where the norm is not finite
        norms = {name: self._engines[name].get_global_grad_norm() for name in steps}
        return {n: torch.as_tensor(norm, device=self.world.device) for n, norm in norms.items()}

    def whole(self, name: str) -> AbstractContextManager[object]:
        if self.stage < 3 or name == "D":
            return nullcontext()
        parameters = list(self.parts.networks[name].parameters())
        return deepspeed.zero.GatheredParameters(parameters)

    def moments(self, name: str) -> Moments | None:
        network = self.parts.networks[name]
        if self.stage == 0:
            return ordinary.moments_of(network, self.parts.optimizers[name])
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
            ordinary.load_moments(network, self.parts.optimizers[name], moments)
        elif moments:
            optimizer = self._engines[name].optimizer
            kinds = {key.rpartition(":")[2] for key in moments} - {"step"}
            _make_state(optimizer, kinds, moments["step"])
            for parameter_name, parameter in network.named_parameters():
                for kind in sorted(kinds):
                    value = moments[f"{parameter_name}:{kind}"].to(self.world.device)
                    _set_moment(parameter, value, kind, self.world.rank)

    def close(self) -> None:
        for engine in self._of(tuple(self._engines)):
            engine.destroy()
        self._engines = {}


def _start(module: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any]) -> Any:
    """A DeepSpeed engine. It keeps the module's class; at stage 3 it takes its weights apart."""
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=optimizer, config=settings, dist_init_required=False
    )
    return engine


def _joined(optimizers: Sequence[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """One optimizer that does what several of one class do."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return type(optimizers[0])(groups)  # type: ignore[call-arg]


def _expect_backward(engine: Any, *, last: bool) -> None:
    """What DeepSpeed's own forward and backward tell an engine ahead of a backward."""
    engine.set_gradient_accumulation_boundary(last)
    engine._running_engine_backward = True  # its hooks leave prologue and epilogue to us
    if engine.zero_optimization():
        engine.optimizer.clear_backward_seen_flag()


def _set_moment(parameter: nn.Parameter, value: Tensor, kind: str, rank: int) -> None:
    if not hasattr(parameter, "ds_tensor"):  # below stage 3
        safe_set_full_optimizer_state(parameter, value, kind)
        return
    # Of a whole value DeepSpeed 0.19 takes this rank's part without regard to where it ends.
    size = parameter.ds_tensor.numel()
    part = value.flatten()[rank * size : (rank + 1) * size]
    part = nn.functional.pad(part, (0, size - part.numel()))
    safe_set_local_optimizer_state(parameter, part, kind)


def _partitions(optimizer: Any) -> list[Tensor]:
    """The flat float32 weights of this rank, by which DeepSpeed's inner optimizer keeps state."""
    if hasattr(optimizer, "single_partition_of_fp32_groups"):
        return list(optimizer.single_partition_of_fp32_groups)
    return list(optimizer.fp32_partitioned_groups_flat)


def _kinds(optimizer: Any) -> tuple[list[str], Tensor | None]:
    """The names of an inner optimizer's states, and its number of steps; nothing before one."""
    for state in optimizer.optimizer.state.values():
        if "step" in state:
            return sorted(state.keys() - {"step"}), torch.as_tensor(state["step"]).clone()
    return [], None


def _make_state(optimizer: Any, names: set[str], step: Tensor) -> None:
    """The state that an inner optimizer would have after its first step, to be filled."""
    for partition in _partitions(optimizer):
        state = optimizer.optimizer.state[partition]
        on_device = optimizer.optimizer.defaults.get("fused")
        state["step"] = step.to(partition.device if on_device else "cpu", copy=True)
        for name in names - state.keys():  # at stage 3 another network may have made it
            state[name] = torch.zeros_like(partition)
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._lazy_init_hp_params_optimizer_state()
