"""The files of launchers/ start what their comments say. Real processes where no GPU is needed."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from accelerate.commands.config import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from stargan_dist import config as configs
from stargan_dist.runs import checkpoint as checkpoints
from tests.conftest import PATIENCE_SECONDS, ROOT, SMOKE

LAUNCHERS = ROOT / "launchers"
ZERO_FILES = ("zero1", "zero2", "zero2_offload", "zero3")  # Accelerate's own files for DeepSpeed
PROCESSES = {"cpu": 2, "gpu1": 1, "gpu8": 8, "nodes": 16} | dict.fromkeys(ZERO_FILES, 8)
ENGINES = {
    "ddp": ("ddp", 1, False, "published"),
    "zero1": ("deepspeed", 1, False, "published"),
    "zero2": ("deepspeed", 2, False, "published"),
    "zero2_offload": ("deepspeed", 2, True, "published"),
    "zero3": ("deepspeed", 3, False, "summed"),
}


def launcher_file(name):
    return str(LAUNCHERS / f"{name}.yaml")


def test_every_file_is_tested():
    assert {path.stem for path in LAUNCHERS.glob("*.yaml")} == PROCESSES.keys()
    assert {path.stem for path in (LAUNCHERS / "engines").glob("*.yaml")} == ENGINES.keys()


@pytest.mark.parametrize("name", PROCESSES)
def test_accelerate_starts_this_number_of_processes_without_warnings(name, caplog):
    file = load_config_from_file(launcher_file(name))
    command = ["--config_file", launcher_file(name), "-m", "stargan_dist.train"]
    launch, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    assert launch.num_processes == file.num_processes == PROCESSES[name]
    assert launch.num_machines == (2 if name == "nodes" else 1)
    assert launch.use_deepspeed == (name in ZERO_FILES)
    # Otherwise accelerate starts one process.
    assert launch.multi_gpu == (name != "gpu1" and not launch.use_deepspeed)
    assert (launch.mixed_precision, launch.dynamo_backend) == ("no", "no")
    assert not (launch.use_fsdp or launch.use_megatron_lm or launch.tpu)
    assert not caplog.records


def test_command_line_options_override_the_numbers_in_nodes_yaml():
    numbers = ("--machine_rank", "3", "--num_machines", "4", "--num_processes", "32")
    address = ("--main_process_ip", "10.0.0.1")
    command = ["--config_file", launcher_file("nodes"), *numbers, *address, "-m", "x"]
    launch, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    assert (launch.machine_rank, launch.num_machines, launch.num_processes) == (3, 4, 32)
    assert launch.main_process_ip == "10.0.0.1"


@pytest.mark.parametrize("name", ENGINES)
def test_engine_files_combine_with_a_preset(name):
    presets = [str(ROOT / "configs" / "afhq.yaml"), str(LAUNCHERS / "engines" / f"{name}.yaml")]
    config = configs.parse([word for preset in presets for word in ("--config", preset)])
    engine = config.engine
    assert (engine.name, engine.zero_stage, engine.offload_optimizer, config.schedule) == (
        ENGINES[name]
    )
    preset_alone = configs.to_dict(configs.parse(["--config", presets[0]]))
    combined = configs.to_dict(config)
    assert {key for key in combined if combined[key] != preset_alone[key]} <= {"engine", "schedule"}


def test_the_deepspeed_file_does_not_override_settings_of_the_training():
    zero = pytest.importorskip("stargan_dist.engines.zero")
    path = str(LAUNCHERS / "deepspeed_gpu.json")
    with_file = configs.Config(engine=configs.EngineConfig("deepspeed", deepspeed_config=path))
    part = zero.Part(None, None, stage=2, max_norm=0.0)
    settings = zero.engine_settings(with_file, part, 1, zero.read_settings(path))
    assert settings["zero_optimization"]["stage"] == 2
    assert settings["zero_optimization"]["overlap_comm"] is True
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    assert zero.read_settings(path)["zero_optimization"].keys() <= (
        DeepSpeedZeroConfig.model_fields.keys()
    )


def test_commands_in_comments_and_docs_name_existing_files():
    documents = [*LAUNCHERS.rglob("*.yaml"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    file = re.compile(r"\b(?:launchers|configs)/[\w/]+\.(?:yaml|json|sh)")
    named = {(doc.name, path) for doc in documents for path in file.findall(doc.read_text())}
    assert named
    assert {(d, path) for d, path in named if not (ROOT / path).is_file()} == set()


def launch(shards, run, home, *options, launcher=()):
    """Run `accelerate launch` on the smoke configuration, with `home` as HF_HOME."""
    accelerate = (sys.executable, "-m", "accelerate.commands.launch", *launcher)
    training = ("-m", "stargan_dist.train", "--config", str(SMOKE), "--data.shards", shards)
    done = subprocess.run(
        [*accelerate, *training, "--run", str(run), *options],
        cwd=ROOT, env=os.environ | {"HF_HOME": str(home)}, text=True, capture_output=True,
        check=False, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_cpu_yaml_trains_with_two_processes_despite_the_users_default_settings(shards, tmp_path):
    (tmp_path / "accelerate").mkdir()
    default = "distributed_type: 'NO'\nmixed_precision: bf16\ndynamo_backend: INDUCTOR\n"
    (tmp_path / "accelerate" / "default_config.yaml").write_text(default)
    launcher = ("--config_file", launcher_file("cpu"))
    done = launch(shards, tmp_path / "run", tmp_path, launcher=launcher)
    assert "2 process(es) on cpu" in done.stdout
    assert done.stderr == ""
    assert checkpoints.find(str(tmp_path / "run")).step == 6


@pytest.mark.slow
def test_accelerate_without_a_configuration_file_trains(shards, tmp_path):
    """On a machine without GPUs, it starts one process."""
    done = launch(shards, tmp_path / "run", tmp_path, "--steps", "2")
    assert "1 process(es) on cpu" in done.stdout
    assert checkpoints.find(str(tmp_path / "run")).step == 2


@pytest.mark.slow
def test_torchrun_trains_with_two_processes(shards, tmp_path):
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2")
    training = ("-m", "--", "stargan_dist.train", "--config", str(SMOKE), "--data.shards", shards)
    done = subprocess.run(
        [*torchrun, *training, "--run", str(tmp_path / "run"), "--steps", "2"],
        cwd=ROOT, text=True, capture_output=True, check=False, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 process(es) on cpu" in done.stdout
    assert checkpoints.find(str(tmp_path / "run")).step == 2


def first_lines(done, launcher_line):
    """Check the lines about a run, and return the first one."""
    lines = [line.partition("  ")[2] for line in done.stdout.splitlines() if " rank 0  " in line]
    assert "2 process(es) on cpu" in lines[0]
    assert lines[2] == launcher_line
    assert "step 1/" in lines[3]
    return lines[0]


def saved_config(run, launcher_line):
    """Return the configuration of a run, once config.yaml and checkpoint agree."""
    text = (run / "config.yaml").read_text()
    assert text.startswith(f"# {launcher_line}\nrun: ")
    manifest = checkpoints.find(str(run)).manifest
    assert configs.to_dict(configs.parse(["--config", str(run / "config.yaml")])) == manifest.config
    return configs.from_dict(manifest.config)


def test_settings_of_the_launcher_are_what_happens(shards, tmp_path):
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (pip install .[deepspeed])")
    flags = ("--use_deepspeed", "--zero_stage", "2", "--gradient_accumulation_steps", "2",
             "--mixed_precision", "bf16", "--num_processes", "2", "--main_process_port", "0",
             "--num_machines", "1", "--dynamo_backend", "no")  # fmt: skip
    run = tmp_path / "run"
    done = launch(shards, run, tmp_path, "--steps", "1", launcher=flags)
    line = (
        "from accelerate launch: precision bfloat16 (--mixed_precision), engine.name deepspeed "
        "(--use_deepspeed), engine.zero_stage 2 (--zero_stage), engine.accumulate 2 "
        "(--gradient_accumulation_steps, which divides batch_size here)"
    )
    assert "ZeRO 2, bfloat16, published schedule, 2 micro-batches" in first_lines(done, line)
    config = saved_config(run, line)
    engine = config.engine
    assert (engine.name, engine.zero_stage, engine.accumulate, config.precision) == (
        "deepspeed", 2, 2, "bfloat16"
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ZERO_FILES)
def test_deepspeed_files_of_accelerate_train(shards, tmp_path, name):
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (pip install .[deepspeed])")
    launcher = ("--config_file", launcher_file(name), "--num_processes", "2")
    _, stage, offload, schedule = ENGINES[name]
    run = tmp_path / "run"
    options = ("--steps", "1", "--schedule", schedule)
    done = launch(shards, run, tmp_path, *options, launcher=launcher)
    line = (
        "from accelerate launch: engine.name deepspeed (--use_deepspeed), "
        f"engine.zero_stage {stage} (--zero_stage)"
    )
    line += ", engine.offload_optimizer true (--offload_optimizer_device)" if offload else ""
    assert f"ZeRO {stage}, float32, {schedule} schedule" in first_lines(done, line)
    engine = saved_config(run, line).engine
    assert (engine.name, engine.zero_stage, engine.offload_optimizer) == (
        "deepspeed",
        stage,
        offload,
    )


@pytest.mark.slow
def test_a_default_file_of_accelerate_config_trains(shards, tmp_path):
    """With an engine, a DeepSpeed file and a precision; options of the training override it."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (pip install .[deepspeed])")
    settings = {"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"},
                "bf16": {"enabled": True}, "gradient_clipping": 1.0,
                "train_micro_batch_size_per_gpu": 2}  # fmt: skip
    (tmp_path / "ds.json").write_text(json.dumps(settings))
    file = yaml.safe_load(
        (ROOT / "tests" / "fixtures" / "accelerate" / "zero_json.yaml").read_text()
    )
    file["deepspeed_config"]["deepspeed_config_file"] = str(tmp_path / "ds.json")
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text(yaml.safe_dump(file))
    run, launcher = tmp_path / "run", ("--num_processes", "2", "--main_process_port", "0")
    done = launch(shards, run, tmp_path, "--steps", "1", "--optim.clip.D", "0", launcher=launcher)
    assert "2 process(es) on cpu, ZeRO 2, bfloat16, published schedule" in done.stdout
    source = str(tmp_path / "ds.json")
    assert (
        f"not from {source}: optim.clip.D 1.0 (gradient_clipping), because of the training's own "
        "options: optim.clip.D 0.0"
    ) in done.stdout
    comments = [line for line in (run / "config.yaml").read_text().splitlines() if line[0] == "#"]
    assert comments == [
        f"# from {source}: engine.zero_stage 2 (zero_optimization.stage), optim.clip.G/F/E/C 1.0 "
        "(gradient_clipping), precision bfloat16 (bf16.enabled)",
        "# from accelerate launch: engine.name deepspeed (--use_deepspeed), "
        f"engine.deepspeed_config {source} (--deepspeed_config_file)",
    ]


def test_a_setting_that_does_not_work_ends_the_start_in_one_line(shards, tmp_path):
    flags = ("--use_fsdp", "--num_processes", "2", "--main_process_port", "0")
    accelerate = (sys.executable, "-m", "accelerate.commands.launch", *flags)
    done = subprocess.run(
        [*accelerate, "-m", "stargan_dist.train", "--config", str(SMOKE)],
        cwd=ROOT, env=os.environ | {"HF_HOME": str(tmp_path)}, text=True, capture_output=True,
        check=False, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert errors == [
        "error: accelerate launch or its configuration file: --use_fsdp true: the training shards "
        "weights with ZeRO 3; use --engine.name deepspeed --engine.zero_stage 3 --schedule summed"
    ]


@pytest.mark.slow
def test_an_engine_file_trains_with_an_agreeing_deepspeed_option_of_accelerate(shards, tmp_path):
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (pip install .[deepspeed])")
    launcher = ("--config_file", launcher_file("cpu"), "--use_deepspeed", "--zero_stage", "2")
    engine = ("--config", str(LAUNCHERS / "engines" / "zero2.yaml"))
    run = tmp_path / "run"
    done = launch(shards, run, tmp_path, *engine, "--steps", "2", launcher=launcher)
    assert "2 process(es) on cpu" in done.stdout
    assert checkpoints.find(str(run)).manifest.config["engine"]["zero_stage"] == 2
    assert checkpoints.find(str(run)).step == 2
