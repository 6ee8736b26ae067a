"""Each setting that `accelerate launch` passes to its processes has one meaning."""

import dataclasses
import os
import re
import sys
from pathlib import Path

import accelerate
import pytest
from accelerate.commands import launch
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.utils import launch as environments

from stargan_dist import config as configs
from stargan_dist import evaluate
from stargan_dist.errors import UserError
from stargan_dist.launch import launcher_settings
from stargan_dist.launch.launcher_settings import SETTINGS, take_settings
from stargan_dist.training.options import configure

FILES = Path(__file__).resolve().parent.parent / "fixtures" / "accelerate"
REQUIRED = ["--run", "r", "--data.shards", "s"]
SUMMED = ["--schedule", "summed"]
WITHOUT = configs.parse(REQUIRED)
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true"}
# Variables that `accelerate launch` always sets.
DEFAULTS = {
    "ACCELERATE_USE_CPU": "False",
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "False",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "False",
}
CLIPPED = {f"optim.clip.{network}": 1.0 for network in "GFEDC"}
ZERO = {"engine.name": "deepspeed", "engine.zero_stage": 2}


def configured(environment, *options):
    """Return the options that differ from those without a launcher."""
    config, _ = configure([*REQUIRED, *options], requests=take_settings(dict(environment)))
    values, defaults = (configs.flat(configs.to_dict(c)) for c in (config, WITHOUT))
    return {k: v for k, v in values.items() if defaults[k] != v and f"--{k}" not in options}


def test_the_defaults_of_accelerate_request_nothing():
    assert configured(DEFAULTS) == configured({}) == {}
    answers = {  # of `accelerate config`, which always writes them
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
        "ACCELERATE_GRADIENT_CLIPPING": "none",
    }
    assert take_settings(DEFAULTS | answers) == []


# Variable, value, options of the training, and what the configuration then has in addition.
CASES = [
    ("MIXED_PRECISION", "bf16", [], {"precision": "bfloat16"}),
    ("MIXED_PRECISION", "fp16", [], {"precision": "float16"}),
    ("DYNAMO_BACKEND", "INDUCTOR", [], {"engine.compile": True}),
    ("DYNAMO_MODE", "default", [], {}),
    ("USE_DEEPSPEED", "true", [], ZERO),
    ("DEEPSPEED_ZERO_STAGE", "0", [], ZERO | {"engine.zero_stage": 0}),
    ("DEEPSPEED_ZERO_STAGE", "3", SUMMED, ZERO | {"engine.zero_stage": 3}),
    ("DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none", [], ZERO),
    ("DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "cpu", [], ZERO | {"engine.offload_optimizer": True}),
    ("DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none", [], ZERO),
    ("DEEPSPEED_OFFLOAD_PARAM_DEVICE", "cpu", ["--engine.zero_stage", "3", *SUMMED],
     {"engine.name": "deepspeed", "engine.offload_parameters": True}),
    ("DEEPSPEED_CONFIG_FILE", "none", [], ZERO),
    ("DEEPSPEED_CONFIG_FILE", str(FILES / "ds.json"), [],
     {"engine.name": "deepspeed", "engine.deepspeed_config": str(FILES / "ds.json"),
      "engine.offload_optimizer": True, "precision": "bfloat16", **CLIPPED}),
    ("GRADIENT_CLIPPING", "1.0", [], ZERO | CLIPPED),
    ("GRADIENT_CLIPPING", "none", [], ZERO),
    ("GRADIENT_ACCUMULATION_STEPS", "1", [], ZERO),
    ("GRADIENT_ACCUMULATION_STEPS", "auto", [], ZERO),
    ("GRADIENT_ACCUMULATION_STEPS", "2", [], ZERO | {"engine.accumulate": 2}),
    ("DEEPSPEED_ZERO3_INIT", "true", [], ZERO),
    ("DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", "true", [], ZERO),
    ("CONFIG_DS_FIELDS", "zero_stage,mixed_precision", [], ZERO),
]  # fmt: skip


def of_deepspeed(name):
    return DEEPSPEED if re.match("USE_DEEPSPEED|DEEPSPEED|GRADIENT|CONFIG_DS", name) else {}


@pytest.mark.parametrize(("name", "value", "options", "expected"), CASES)
def test_a_setting_sets_options(name, value, options, expected):
    environment = DEFAULTS | of_deepspeed(name) | {f"ACCELERATE_{name}": value}
    assert configured(environment, *options) == expected


# Variable, value, and what the error names.
REFUSED = [
    ("ACCELERATE_MIXED_PRECISION", "fp8", "--precision bfloat16"),
    ("ACCELERATE_DYNAMO_BACKEND", "TENSORRT", "--engine.compile true"),
    ("ACCELERATE_DYNAMO_MODE", "max-autotune", "--engine.compile true"),
    ("ACCELERATE_DYNAMO_USE_FULLGRAPH", "True", "--engine.compile true"),
    ("ACCELERATE_DYNAMO_USE_DYNAMIC", "True", "--engine.compile true"),
    ("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", "True", "--engine.compile true"),
    ("ACCELERATE_USE_DEEPSPEED", "1", "--use_deepspeed 1: must be true or false"),
    ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "two", "--zero_stage two"),
    ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "4", "engine.zero_stage 4 (--zero_stage)"),
    ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3", "engine.zero_stage 3 (--zero_stage)"),
    ("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "nvme", "use cpu"),
    ("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "nvme", "use cpu"),
    ("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "cpu", "engine.zero_stage 2 (--use_deepspeed)"),
    ("ACCELERATE_DEEPSPEED_CONFIG_FILE", "nowhere.json", "(--deepspeed_config_file)"),
    ("ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES", "Expert", "--deepspeed_moe_layer_cls_names"),
    ("ACCELERATE_GRADIENT_CLIPPING", "nan", "optim.clip.G nan (--gradient_clipping)"),
    ("ACCELERATE_GRADIENT_CLIPPING", "much", "--gradient_clipping much"),
    ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "0", "(--gradient_accumulation_steps"),
    ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "x", "--gradient_accumulation_steps x"),
    ("ACCELERATE_USE_FSDP", "true", "--engine.zero_stage 3 --schedule summed"),
    ("ACCELERATE_USE_MEGATRON_LM", "true", "--engine.name ddp"),
    ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "--engine.name ddp"),
    ("ACCELERATE_USE_SAGEMAKER", "true", "SageMaker"),
    ("ACCELERATE_IN_TPU_POD", "1", "--tpu_cluster"),
    ("XLA_USE_BF16", "1", "--tpu"),
    ("XLA_DOWNCAST_BF16", "1", "--downcast_bf16"),
]


@pytest.mark.parametrize(("variable", "value", "named"), REFUSED)
def test_a_setting_that_does_not_work_is_refused_in_one_line(variable, value, named):
    deepspeed = of_deepspeed(variable.removeprefix("ACCELERATE_"))
    with pytest.raises(UserError) as error:
        configured(DEFAULTS | deepspeed | {variable: value})
    assert named in str(error.value)
    assert "accelerate launch or its configuration file: " in str(error.value)
    assert "\n" not in str(error.value)
    remedy = re.search(r"use (--[^,]*)", str(error.value))
    if remedy:  # it works as it is printed
        configured(DEFAULTS | deepspeed | {variable: value}, *remedy[1].split())


def test_fp16_with_deepspeed_names_both_origins():
    with pytest.raises(UserError, match=r"DeepSpeed .* precision float16 \(--mixed_precision"):
        configured(DEEPSPEED | {"ACCELERATE_MIXED_PRECISION": "fp16"})


def test_every_row_has_a_case():
    tested = {f"ACCELERATE_{name}" for name, *_ in CASES} | {variable for variable, *_ in REFUSED}
    assert {setting.key for setting in SETTINGS} <= tested
    assert {s.key for s in SETTINGS if s.remedy} <= {variable for variable, *_ in REFUSED}
    assert all(setting.remedy or setting.key in tested for setting in SETTINGS)


def test_the_settings_are_taken_away():
    others = {"PATH": "/bin", "ACCELERATE_CPU_AFFINITY": "1", "ACCELERATE_DEBUG_MODE": "true"}
    families = {
        "ACCELERATE_USE_IPEX": "true",
        "FSDP_VERSION": "2",
        "MEGATRON_LM_TP_DEGREE": "1",
        "ACCELERATE_FP8_BACKEND": "MSAMP",
    }
    environment = DEFAULTS | DEEPSPEED | others | families | {"ACCELERATE_MIXED_PRECISION": "bf16"}
    requests = take_settings(environment)
    assert [request.option for request in requests][:2] == ["precision", "engine.name"]
    # The last one shows that `accelerate launch` started this process (launcher.find_launcher).
    assert environment == others | {"ACCELERATE_MIXED_PRECISION": "no"}
    untouched = dict(others)
    assert take_settings(untouched) == []
    assert untouched == others


@pytest.mark.parametrize(("value", "hidden"), [("True", True), ("False", False), ("no", False)])
def test_use_cpu_hides_the_gpus(value, hidden):
    environment = {"ACCELERATE_USE_CPU": value, "CUDA_VISIBLE_DEVICES": "0,1"}
    take_settings(environment)
    assert environment == {"CUDA_VISIBLE_DEVICES": "" if hidden else "0,1"}


def test_evaluation_takes_the_settings_away_and_ignores_them(monkeypatch):
    settings = {"ACCELERATE_USE_CPU": "True", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    for name, value in {**settings, "RANK": "1", "CUDA_VISIBLE_DEVICES": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["evaluate", "--compare", "run"])
    assert evaluate.main() == 0
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert not settings.keys() & os.environ.keys()


# Files as `accelerate config` writes them (tests/fixtures/accelerate/make.py): the options that
# they set, or what their error names; options of the training.
BFLOAT16 = {"precision": "bfloat16"}
OF_FILES = {
    "gpu": (BFLOAT16, []),
    "cpu": ({}, []),
    "compiled": ({"engine.compile": True}, []),
    "tuned": ("--dynamo_mode max-autotune", []),
    "tensorrt": ("--dynamo_backend TENSORRT", []),
    "fp8": ("--mixed_precision fp8", []),
    "multi_gpu": (BFLOAT16, []),
    "multi_gpu_nodes": (BFLOAT16, []),
    "multi_cpu": ({}, []),
    "zero2": (ZERO | BFLOAT16, []),
    "zero2_clipped": (
        ZERO | BFLOAT16 | CLIPPED
        | {"engine.offload_optimizer": True, "engine.accumulate": 4}, []),
    "zero3": (
        ZERO | BFLOAT16 | {"engine.zero_stage": 3, "engine.offload_optimizer": True,
                           "engine.offload_parameters": True}, SUMMED),
    "zero3_nvme": ("--offload_param_device nvme", SUMMED),
    "zero_json": (
        {"engine.name": "deepspeed", "engine.deepspeed_config": "ds.json", **BFLOAT16, **CLIPPED,
         "engine.offload_optimizer": True}, []),
    "zero_moe": ("--deepspeed_moe_layer_cls_names Expert", []),
    "zero_nodes": (ZERO | BFLOAT16, []),
    "zero_fp16": ("precision float16 (--mixed_precision)", []),
    "fsdp": ("--use_fsdp true", []),
    "fsdp_parallel": ("--use_fsdp true", []),
    "megatron": ("--use_megatron_lm true", []),
    "tpu": ("--tpu 1", []),
}  # fmt: skip


def exported(monkeypatch, file):
    """Return the environment that `accelerate launch` gives its processes, without the rest."""
    found = {}

    def record(prepare):
        return lambda *args: found.update(prepare(*args))

    launchers = {
        "simple": lambda args: environments.prepare_simple_launcher_cmd_env(args)[1],
        "multi_gpu": environments.prepare_multi_gpu_env,
        "deepspeed": lambda args: environments.prepare_deepspeed_cmd_env(args)[1],
        "tpu": lambda args: environments.prepare_tpu(args, {})[1],
    }
    for name, prepare in launchers.items():
        monkeypatch.setattr(launch, f"{name}_launcher", record(prepare))
    for name, answer in (("is_fp8_available", True), ("is_port_in_use", False)):
        monkeypatch.setattr(environments, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(environments, "is_torch_xla_available", lambda **_: True)
    # No file of `accelerate config` for TPUs has a precision, which alone is exported there.
    flags = ["--mixed_precision", "bf16"] if file.stem == "tpu" else []
    arguments = ["--config_file", str(file), *flags, "-m", "stargan_dist.train"]
    launch.launch_command(launch.launch_command_parser().parse_args(arguments))
    return found


@pytest.mark.parametrize("name", OF_FILES)
def test_a_file_of_accelerate_config_does_what_it_says(name, monkeypatch):
    expected, options = OF_FILES[name]
    environment = exported(monkeypatch, FILES / f"{name}.yaml")
    monkeypatch.chdir(FILES)  # of ds.json
    if isinstance(expected, dict):
        assert configured(environment, *options) == expected
    else:
        with pytest.raises(UserError, match=re.escape(expected)):
            configured(environment, *options)


def test_every_file_of_accelerate_config_is_tested():
    assert {path.stem for path in FILES.glob("*.yaml")} == OF_FILES.keys()


# What `accelerate launch` exports beside its settings: the processes, and their devices.
OF_PROCESSES = (
    "OMP_NUM_THREADS", "MASTER_ADDR", "MASTER_PORT", "KMP_AFFINITY", "KMP_BLOCKTIME", "PYTHONPATH",
    "LOCAL_RANK", "RANK", "FORK_LAUNCHED", "NCCL_P2P_DISABLE", "NCCL_IB_DISABLE",
    "CCL_WORKER_COUNT",  # of former versions
)  # fmt: skip
OF_DEVICES = re.compile(r"\w+_VISIBLE_(DEVICES|MODULES|CORES)|ZE_AFFINITY_MASK|AWS_\w+")


def exports(source):
    """Return the names of the environment variables that code of accelerate sets."""
    names, prefix = set(), ""
    for line in source.splitlines():
        if found := re.search(r'\bprefix = "(\w+)"', line):
            prefix = found[1]
        if found := re.search(r'(?:env|environ)\[(prefix \+ )?"(\w+)"\] = ', line):
            names.add(prefix + found[2] if found[1] else found[2])
        names |= set(re.findall(r'"(ACCELERATE_\w+)(?:=\w+)?"', line))
    return names


def test_no_setting_of_this_version_of_accelerate_is_missing():
    folder = Path(accelerate.__file__).parent
    files = [folder / "utils" / "launch.py", folder / "commands" / "launch.py"]
    names = set.union(*(exports(file.read_text()) for file in files))
    assert {"ACCELERATE_USE_FSDP", "FSDP_VERSION", "MEGATRON_LM_TP_DEGREE"} <= names
    known = {setting.key for setting in SETTINGS} | {
        launcher_settings.ON_CPU, *launcher_settings.IGNORED, *launcher_settings.LEFT_TO_ACCELERATE,
        *OF_PROCESSES, "ACCELERATE_", "ACCELERATE_DEBUG_RDV_FILE",
    }  # fmt: skip
    unknown = {name for name in names - known if not OF_DEVICES.fullmatch(name)}
    assert {n for n in unknown if not n.startswith(launcher_settings.IGNORED_PREFIXES)} == set()


def test_no_key_of_a_file_of_this_version_of_accelerate_is_missing():
    """Keys of settings, and keys that concern the launcher alone."""
    of_settings = {
        "mixed_precision", "use_cpu", "debug", "enable_cpu_affinity", "dynamo_config", "fp8_config",
        "deepspeed_config", "fsdp_config", "parallelism_config", "megatron_lm_config",
        "downcast_bf16", "distributed_type", "compute_environment",
        "ipex_config",  # of former versions
    }  # fmt: skip
    of_launcher = {
        "num_processes", "machine_rank", "num_machines", "gpu_ids", "main_process_ip",
        "main_process_port", "rdzv_backend", "same_network", "main_training_function",
        "mpirun_config", "tpu_name", "tpu_zone", "tpu_use_cluster", "tpu_use_sudo", "command_file",
        "commands", "tpu_vm", "tpu_env",
    }  # fmt: skip
    keys = {field.name for field in dataclasses.fields(ClusterConfig)}
    assert keys <= of_settings | of_launcher


def test_no_flag_of_deepspeed_of_this_version_of_accelerate_is_missing():
    parser = launch.launch_command_parser()
    group = next(g for g in parser._action_groups if g.title == "DeepSpeed Arguments")
    flags = {action.option_strings[0] for action in group._group_actions}
    # The launcher does not pass these on.
    ours = {"--offload_optimizer_nvme_path", "--offload_param_nvme_path", "--deepspeed_hostfile",
            "--deepspeed_exclusion_filter", "--deepspeed_inclusion_filter",
            "--deepspeed_multinode_launcher"}  # fmt: skip
    harmless = {"--zero3_init_flag", "--zero3_save_16bit_model"}
    names = {setting.name for setting in SETTINGS if setting.needs_deepspeed}
    assert flags - ours - harmless == names - {"--use_deepspeed"}
