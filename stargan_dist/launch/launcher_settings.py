"""What a launcher asks for in the environment, beside processes.

Accelerate's `Accelerator` would follow these settings. The training does not use it: engine and
precision are of its own configuration. A launcher that asks for something else is refused.
"""

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

from stargan_dist.config import Config
from stargan_dist.errors import UserError

# Values that ask for nothing, in whatever case.
NOTHING = ("", "no", "none", "false", "auto")


def one_of(meanings: Mapping[str, str]) -> Callable[[str], str]:
    return lambda value: meanings.get(value.lower(), "")


class Setting(NamedTuple):
    """A setting of a launcher, and the training's options that it would have to agree with."""

    variable: str
    """Of the environment: what `accelerate launch` sets."""
    flag: str
    """Of `accelerate launch`; its configuration file has it too."""
    options: tuple[str, ...]
    meaning: Callable[[str], str]
    """The options' value that says the same; "": none does."""


IN_USE = one_of({"true": "deepspeed"})
NOT_HERE = one_of({})
IN_MEMORY = one_of({"cpu": "true"})

SETTINGS = (
    Setting("ACCELERATE_USE_DEEPSPEED", "--use_deepspeed", ("engine.name",), IN_USE),
    Setting("ACCELERATE_USE_FSDP", "--use_fsdp", ("engine.name",), NOT_HERE),
    Setting("ACCELERATE_USE_MEGATRON_LM", "--use_megatron_lm", ("engine.name",), NOT_HERE),
    Setting("ACCELERATE_USE_PARALLELISM_CONFIG", "--use_parallelism_config", ("engine.name",),
            NOT_HERE),
    Setting("ACCELERATE_DEEPSPEED_ZERO_STAGE", "--zero_stage", ("engine.zero_stage",), str),
    Setting("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "--offload_optimizer_device",
            ("engine.offload_optimizer",), IN_MEMORY),
    Setting("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "--offload_param_device",
            ("engine.offload_parameters",), IN_MEMORY),
    Setting("ACCELERATE_DEEPSPEED_CONFIG_FILE", "--deepspeed_config_file",
            ("engine.deepspeed_config",), str),
    Setting("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "--gradient_accumulation_steps",
            ("engine.accumulate",), str),
    Setting("ACCELERATE_GRADIENT_CLIPPING", "--gradient_clipping",
            tuple(f"optim.clip.{network}" for network in "GFED"), lambda value: str(float(value))),
    Setting("ACCELERATE_MIXED_PRECISION", "--mixed_precision", ("precision",),
            one_of({"bf16": "bfloat16", "fp16": "float16"})),
    Setting("ACCELERATE_DYNAMO_BACKEND", "--dynamo_backend", ("engine.compile",),
            one_of({"inductor": "true"})),
)  # fmt: skip


def check_launcher(environment: Mapping[str, str], config: Config) -> None:
    """Raises UserError if a launcher asks for what the configuration does not."""
    for setting in SETTINGS:
        value = environment.get(setting.variable, "")
        meant = setting.meaning(value) if value.lower() not in NOTHING else ""
        now = {name: _text(attrgetter(name)(config)) for name in setting.options}
        if value.lower() in NOTHING or set(now.values()) == {meant}:
            continue
        remedy = "it has nothing like it: launch without"
        if meant:
            options = " ".join(f"--{name} {meant}" for name in setting.options)
            remedy = f"launch without, or train with {options}"
        raise UserError(
            f"{setting.variable} is {value} (accelerate launch {setting.flag}, or its "
            f"configuration file), but the training goes by its own configuration, which has "
            f"{', '.join(f'{name} {text}' for name, text in now.items())}; {remedy}"
        )


def _text(value: Any) -> str:
    """As on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)
