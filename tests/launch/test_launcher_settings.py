import pytest

from stargan_dist import config as configs
from stargan_dist.errors import UserError
from stargan_dist.launch.launcher_settings import SETTINGS, check_launcher
from stargan_dist.training import trainer

NAMED = ["--run", "r", "--data.shards", "s"]
# What `accelerate launch` sets of itself.
ORDINARY = {
    "ACCELERATE_USE_CPU": "False",
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
    "ACCELERATE_CONFIG_DS_FIELDS": "",
}
ZERO2 = ("--engine.name", "deepspeed", "--engine.zero_stage", "2")
ZERO3 = ("--engine.name", "deepspeed", "--engine.zero_stage", "3", "--schedule", "summed")
CLIPPED = tuple(word for n in "GFED" for word in (f"--optim.clip.{n}", "1"))


def check(environment, *options):
    check_launcher(ORDINARY | environment, configs.parse([*NAMED, *options]))


def test_what_accelerate_sets_of_itself_asks_for_nothing():
    check({})
    check({}, *ZERO2, "--precision", "bfloat16", "--engine.accumulate", "2", *CLIPPED)
    check_launcher({}, configs.parse([*NAMED, *ZERO2]))


# A launcher's setting, options that agree with it, and others that do not.
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
    ("GRADIENT_CLIPPING", "1.0", CLIPPED, CLIPPED[:6]),
    ("MIXED_PRECISION", "bf16", ("--precision", "bfloat16"), ()),
    ("MIXED_PRECISION", "fp16", ("--precision", "float16"), ("--precision", "bfloat16")),
    ("DYNAMO_BACKEND", "INDUCTOR", ("--engine.compile", "true"), ()),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "agreeing", "others"), CASES)
def test_a_launcher_may_agree_and_is_refused_otherwise(name, value, agreeing, others):
    asked = {f"ACCELERATE_{name}": value}
    check(asked, *agreeing)
    with pytest.raises(UserError, match=f"ACCELERATE_{name} is {value} ") as caught:
        check(asked, *others)
    told = str(caught.value)
    assert "\n" not in told
    check(asked, *others, *told.partition("or train with ")[2].split())
    check({}, *others)  # "launch without" helps as well


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
def test_what_the_training_has_not_is_refused_whatever_its_options(name, value, field):
    for options in ((), ZERO2):
        with pytest.raises(UserError, match=f"{field} .*nothing like it: launch without"):
            check({f"ACCELERATE_{name}": value}, *options)


def test_every_setting_has_a_case():
    tested = {f"ACCELERATE_{name}" for name, *_ in CASES}
    assert {setting.variable for setting in SETTINGS} - tested == {
        "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM", "ACCELERATE_USE_PARALLELISM_CONFIG",
    }  # fmt: skip


def test_a_run_asks_before_it_looks_at_anything_else(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(UserError, match="ACCELERATE_MIXED_PRECISION is bf16"):
        trainer.plan(configs.parse(["--run", "/nowhere/r", "--data.shards", "/nowhere/s"]))
