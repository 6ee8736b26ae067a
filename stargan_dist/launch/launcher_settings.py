"""Reject launcher settings that contradict the configuration.

`accelerate launch` passes settings such as the precision to the processes in environment variables.
Accelerate's `Accelerator` would follow them. The training does not use `Accelerator`: engine and
precision come from its own configuration. Contradicting settings are an error.
"""

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

from stargan_dist.config import Config
from stargan_dist.errors import UserError

# Values that request nothing, in lower case.
UNSET = ("", "no", "none", "false", "auto")


def lookup(option_values: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function from a launcher's value, in any case, to an option's value or ""."""
    return lambda value: option_values.get(value.lower(), "")


class Setting(NamedTuple):
    """A setting of `accelerate launch` and the options of the training that correspond to it."""

    variable: str
    """Environment variable that `accelerate launch` sets."""
    flag: str
    """Flag of `accelerate launch`. Its configuration file has the setting, too."""
    options: tuple[str, ...]
    """Options of the training."""
    to_option_value: Callable[[str], str]
    """Function from the variable's value to the options' value; "" where the training has none."""


DEEPSPEED = lookup({"true": "deepspeed"})
UNSUPPORTED = lookup({})
CPU_OFFLOAD = lookup({"cpu": "true"})

SETTINGS = (
    Setting("ACCELERATE_USE_DEEPSPEED", "--use_deepspeed", ("engine.name",), DEEPSPEED),
    Setting("ACCELERATE_USE_FSDP", "--use_fsdp", ("engine.name",), UNSUPPORTED),
    Setting("ACCELERATE_USE_MEGATRON_LM", "--use_megatron_lm", ("engine.name",), UNSUPPORTED),
    Setting("ACCELERATE_USE_PARALLELISM_CONFIG", "--use_parallelism_config", ("engine.name",),
            UNSUPPORTED),
    Setting("ACCELERATE_DEEPSPEED_ZERO_STAGE", "--zero_stage", ("engine.zero_stage",), str),
    Setting("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "--offload_optimizer_device",
            ("engine.offload_optimizer",), CPU_OFFLOAD),
    Setting("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "--offload_param_device",
            ("engine.offload_parameters",), CPU_OFFLOAD),
    Setting("ACCELERATE_DEEPSPEED_CONFIG_FILE", "--deepspeed_config_file",
            ("engine.deepspeed_config",), str),
    Setting("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "--gradient_accumulation_steps",
            ("engine.accumulate",), str),
    Setting("ACCELERATE_GRADIENT_CLIPPING", "--gradient_clipping",
            tuple(f"optim.clip.{network}" for network in "GFED"), lambda value: str(float(value))),
    Setting("ACCELERATE_MIXED_PRECISION", "--mixed_precision", ("precision",),
            lookup({"bf16": "bfloat16", "fp16": "float16"})),
    Setting("ACCELERATE_DYNAMO_BACKEND", "--dynamo_backend", ("engine.compile",),
            lookup({"inductor": "true"})),
)  # fmt: skip


def check_launcher(environment: Mapping[str, str], config: Config) -> None:
    """Check that the launcher requests nothing that the configuration does not.

    Args:
        environment: the environment variables of this process.
        config: the configuration of the training.

    Raises:
        UserError: a setting of the launcher contradicts the configuration.
    """
    for setting in SETTINGS:
        value = environment.get(setting.variable, "")
        if value.lower() not in UNSET:
            _check_setting(setting, value, config)


def _check_setting(setting: Setting, value: str, config: Config) -> None:
    requested = setting.to_option_value(value)
    configured = {name: _text(attrgetter(name)(config)) for name in setting.options}
    if set(configured.values()) == {requested}:
        return
    remedy = "it does not support this setting: launch without it"
    if requested:
        options = " ".join(f"--{name} {requested}" for name in setting.options)
        remedy = f"launch without it, or train with {options}"
    raise UserError(
        f"{setting.variable} is {value} (accelerate launch {setting.flag}, or its configuration "
        "file), but the training uses its own configuration, which has "
        f"{', '.join(f'{name} {text}' for name, text in configured.items())}; {remedy}"
    )


def _text(value: Any) -> str:
    """Format a value as on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)
