"""JSON files of DeepSpeed settings.

Keys for which the training has options set them, like the settings of `accelerate launch`
(config/origins.py). The others are passed on to DeepSpeed. DeepSpeed itself is not imported here.
"""

import json
from collections.abc import Mapping
from typing import Any

from stargan_dist import storage
from stargan_dist.config import Config, Request
from stargan_dist.config.origins import Setting, find, lookup
from stargan_dist.config.rules import MAX_ERROR
from stargan_dist.config.values import flat
from stargan_dist.errors import UserError, explained, printable
from stargan_dist.launch.launcher_settings import CLIP, NO_NVME

OFFLOAD = lookup({"cpu": True, "none": False})


def _setting(key: str, options: tuple[str, ...], convert: Any, remedy: str) -> Setting:
    return Setting(key, key, options, convert, remedy, needs_deepspeed=True)


# Off means unset for both precisions: a file often has one of them on and the other one off.
SETTINGS = (
    _setting("zero_optimization.stage", ("engine.zero_stage",), int, "must be 0, 1, 2 or 3"),
    _setting("zero_optimization.offload_optimizer.device", ("engine.offload_optimizer",), OFFLOAD,
             NO_NVME),
    _setting("zero_optimization.offload_param.device", ("engine.offload_parameters",), OFFLOAD,
             NO_NVME),
    _setting("gradient_clipping", CLIP, float, "must be a number"),
    _setting("gradient_accumulation_steps", ("engine.accumulate",), int, "must be a whole number"),
    _setting("fp16.enabled", ("precision",), lookup({"true": "float16", "false": None}),
             "must be true or false"),
    _setting("bf16.enabled", ("precision",), lookup({"true": "bfloat16", "false": None}),
             "must be true or false"),
)  # fmt: skip
BATCH_SIZES = ("train_batch_size", "train_micro_batch_size_per_gpu")  # must agree with batch_size
IGNORED = ("fp16.",)  # loss scales: DeepSpeed is never in float16 here
GROUPS = (
    "zero_optimization", "zero_optimization.offload_optimizer", "zero_optimization.offload_param",
    "fp16", "bf16",
)  # fmt: skip
# What the training decides. A file must not set it.
OWN_KEYS = (
    "optimizer", "scheduler", "bf16", "torch_autocast", "amp", "managed_gradient_accumulation",
    "zero_optimization.compute_grad_norm", "zero_optimization.cpu_offload",
    "zero_optimization.cpu_offload_params",
)  # fmt: skip


def read_requests(path: str) -> list[Request]:
    """Return what a file requests for options of the training.

    Raises:
        UserError: the file cannot be read, or sets what the training decides.
    """
    read_settings(path)
    texts = {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in _read(path).items()}
    return find(SETTINGS, texts, path, unset=())


def read_settings(path: str) -> dict[str, Any]:
    """Return the settings that a file has for DeepSpeed alone; {} if the path is empty.

    Raises:
        UserError: the file cannot be read, or sets what the training decides.
    """
    values = _read(path) if path else {}
    taken = {*BATCH_SIZES, *(setting.key for setting in SETTINGS)}
    rest = {k: v for k, v in values.items() if k not in taken and not k.startswith(IGNORED)}
    keys = {key for own in OWN_KEYS for key in rest if key == own or key.startswith(f"{own}.")}
    if keys:
        raise UserError(
            f"engine.deepspeed_config: {path} sets {', '.join(sorted(keys))}, which the training's "
            "own configuration decides (engine.*, optim.*, precision, recipe); remove these keys"
        )
    return _nested(rest)


def check_settings(config: Config, world_size: int) -> None:
    """Check the values in the settings file, if there is one. DeepSpeed must be installed.

    Raises:
        UserError: the file cannot be read, its batch sizes are not those of the training, or
            DeepSpeed does not accept its settings.
    """
    _check_values(config.engine.deepspeed_config)
    _check_batch_sizes(config, world_size)


def _check_values(path: str) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    settings = read_settings(path)
    try:
        DeepSpeedZeroConfig(**settings.get("zero_optimization", {}))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("zero_optimization", *first["loc"])))
        raise UserError(f"engine.deepspeed_config: {path}, {key}: {first['msg']}") from error
    try:
        DeepSpeedConfig({BATCH_SIZES[1]: 1} | settings)
    except Exception as error:  # of many types
        message = printable(" ".join(str(error).split()), MAX_ERROR)
        raise UserError(f"engine.deepspeed_config: {path}: {message}") from error


def _check_batch_sizes(config: Config, world_size: int) -> None:
    path, size = config.engine.deepspeed_config, config.batch_size
    values = _read(path) if path else {}
    share = size // world_size // config.engine.accumulate
    for key, expected in zip(BATCH_SIZES, (size, share), strict=True):
        if values.get(key, expected) != expected:
            raise UserError(
                f"engine.deepspeed_config: {path} has {key} {values[key]!r}, but it is {expected} "
                f"(batch_size {size}, {world_size} process(es), engine.accumulate "
                f"{config.engine.accumulate}); remove this key, or set batch_size"
            )


def _read(path: str) -> dict[str, Any]:
    """Read a file as values by dotted key, without those that are null or "auto".

    Raises:
        UserError: it is no readable JSON file with settings by name.
    """
    try:
        values = json.loads(storage.read_bytes(path))
        named = flat(values) if isinstance(values, dict) else {"settings": True}
    except (OSError, ValueError, RecursionError) as error:
        raise explained(f"engine.deepspeed_config: cannot read {path}: {error}", error) from error
    named = {key: value for key, value in named.items() if value not in (None, "auto")}
    for group in sorted({"settings", *GROUPS} & named.keys()):
        raise UserError(f"engine.deepspeed_config: {path}, {group}: expected values by name, {{…}}")
    return named


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by dotted name as nested values: the inverse of `flat`."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *groups, last = name.split(".")
        group = nested
        for word in groups:
            group = group.setdefault(word, {})
        group[last] = value
    return nested
