"""Settings of `accelerate launch` that contradict the configuration are rejected."""

from contextlib import ExitStack

import pytest

from stargan_dist import config as configs
from stargan_dist.distributed.world import World
from stargan_dist.errors import UserError
from stargan_dist.launch.launcher_settings import SETTINGS, check_launcher
from stargan_dist.objectives.recipes import resolve
from stargan_dist.training.preparation import prepared_run

REQUIRED = ["--run", "r", "--data.shards", "s"]
# Variables that `accelerate launch` always sets.
DEFAULTS = {
    "ACCELERATE_USE_CPU": "False",
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
    "ACCELERATE_CONFIG_DS_FIELDS": "",
}
ZERO2 = ("--engine.name", "deepspeed", "--engine.zero_stage", "2")
ZERO3 = ("--engine.name", "deepspeed", "--engine.zero_stage", "3", "--schedule", "summed")
CLIP = tuple(word for n in "GFED" for word in (f"--optim.clip.{n}", "1"))


def check(environment, *options):
    check_launcher(DEFAULTS | environment, configs.parse([*REQUIRED, *options]))


def test_the_defaults_of_accelerate_request_nothing():
    check({})
    check({}, *ZERO2, "--precision", "bfloat16", "--engine.accumulate", "2", *CLIP)
    check_launcher({}, configs.parse([*REQUIRED, *ZERO2]))


# Launcher setting, its value, options that agree with it, options that contradict it.
CASES = [
    ("USE_DEEPSPEED", "true", ZERO2, ()),
    ("DEEPSPEED_ZERO_STAGE", "2", ZERO2, (*ZERO2, "--engine.zero_stage", "1")),
    ("DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "cpu",
     (*ZERO2, "--engine.offload_optimizer", "true"), ZERO2),
    ("DEEPSPEED_OFFLOAD_PARAM_DEVICE", "cpu",
     (*ZERO3, "--engine.offload_parameters", "true"), ZERO3),
    ("DEEPSPEED_CONFIG_FILE", "Some/ds.json",
     (*ZERO2, "--engine.deepspeed_config", "Some/ds.json"), ZERO2),
    ("GRADIENT_ACCUMULATION_STEPS", "2", ("--engine.accumulate", "2"), ()),
    ("GRADIENT_ACCUMULATION_STEPS", "1", (), ("--engine.accumulate", "2")),
    ("GRADIENT_CLIPPING", "1.0", CLIP, CLIP[:6]),
    ("MIXED_PRECISION", "bf16", ("--precision", "bfloat16"), ()),
    ("MIXED_PRECISION", "fp16", ("--precision", "float16"), ("--precision", "bfloat16")),
    ("DYNAMO_BACKEND", "INDUCTOR", ("--engine.compile", "true"), ()),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "agreeing", "contradicting"), CASES)
def test_a_contradicting_setting_is_rejected_and_an_agreeing_one_accepted(
    name, value, agreeing, contradicting
):
    setting = {f"ACCELERATE_{name}": value}
    check(setting, *agreeing)
    with pytest.raises(UserError, match=f"ACCELERATE_{name} is {value} ") as caught:
        check(setting, *contradicting)
    message = str(caught.value)
    assert "\n" not in message
    # Both remedies of the message work.
    check(setting, *contradicting, *message.partition("or train with ")[2].split())
    check({}, *contradicting)


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("USE_FSDP", "true", "engine.name"),
        ("USE_MEGATRON_LM", "true", "engine.name"),
        ("USE_PARALLELISM_CONFIG", "true", "engine.name"),
        ("MIXED_PRECISION", "fp8", "precision"),
        ("DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "nvme", "engine.offload_optimizer"),
        ("DYNAMO_BACKEND", "TENSORRT", "engine.compile"),
    ],
)
def test_a_setting_that_the_training_lacks_is_rejected_with_any_options(name, value, field):
    for options in ((), ZERO2):
        with pytest.raises(
            UserError, match=f"{field} .*does not support this setting: launch without it"
        ):
            check({f"ACCELERATE_{name}": value}, *options)


def test_every_setting_has_a_case():
    tested = {f"ACCELERATE_{name}" for name, *_ in CASES}
    unsupported = {setting.variable for setting in SETTINGS} - tested
    assert unsupported == {
        "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM", "ACCELERATE_USE_PARALLELISM_CONFIG",
    }  # fmt: skip


def test_the_launcher_is_checked_before_any_file_is_read(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    expected = "ACCELERATE_MIXED_PRECISION is bf16"
    with pytest.raises(UserError, match=expected), ExitStack() as stack:
        spec = resolve(configs.parse(["--run", "/nowhere/r", "--data.shards", "/nowhere/s"]))
        stack.enter_context(prepared_run(spec, World()))
