"""Options from the launcher, a DeepSpeed file and the user: order, origins, errors."""

import json
import os
import sys

import pytest

from stargan_dist import config as configs
from stargan_dist import status
from stargan_dist import train as command
from stargan_dist.config import Origins
from stargan_dist.errors import UserError, WorldError
from stargan_dist.launch.launcher_settings import take_settings
from stargan_dist.objectives.recipes import resolve
from stargan_dist.training.options import configure
from stargan_dist.training.trainer import FINISHED, train
from tests.conftest import SMOKE

REQUIRED = ("--run", "r", "--data.shards", "s")
LAUNCHER = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
    "ACCELERATE_GRADIENT_CLIPPING": "1.0",
    "ACCELERATE_MIXED_PRECISION": "bf16",
}
FROM_LAUNCHER = (
    "from accelerate launch: precision bfloat16 (--mixed_precision), engine.name deepspeed "
    "(--use_deepspeed), engine.zero_stage 2 (--zero_stage), optim.clip.G/F/E/D/C 1.0 "
    "(--gradient_clipping)"
)


def configured(*options, launcher=LAUNCHER, required=REQUIRED):
    """Return some fields of the configuration, and the lines about their origins."""
    config, origins = configure([*required, *options], requests=take_settings(dict(launcher)))
    engine, clip = config.engine, config.optim.clip
    fields = (engine.name, engine.zero_stage, config.precision, clip.G, clip.D)
    return fields, [*origins.lines, *origins.lines_of_overridden]


def test_without_a_launcher_nothing_is_printed():
    assert configured(launcher={}) == (("ddp", 1, "float32", 0, 0), [])


def test_what_the_launcher_sets_is_printed():
    assert configured() == (("deepspeed", 2, "bfloat16", 1, 1), [FROM_LAUNCHER])


def test_options_and_files_of_the_user_override_the_launcher(tmp_path):
    (tmp_path / "a.yaml").write_text("precision: float32\noptim: {clip: {D: 2}}\n")
    fields, lines = configured("--config", str(tmp_path / "a.yaml"), "--engine.zero_stage", "1")
    assert fields == ("deepspeed", 1, "float32", 1, 2)
    assert lines == [
        "from accelerate launch: engine.name deepspeed (--use_deepspeed), optim.clip.G/F/E/C 1.0 "
        "(--gradient_clipping)",
        "not from accelerate launch: precision bfloat16 (--mixed_precision), engine.zero_stage 2 "
        "(--zero_stage), optim.clip.D 1.0 (--gradient_clipping), because of the training's own "
        "options: precision float32, engine.zero_stage 1, optim.clip.D 2.0",
    ]


def test_options_of_the_user_that_agree_with_the_launcher_are_not_printed():
    own = ("--precision", "bfloat16", "--engine.name", "deepspeed", "--engine.zero_stage", "2")
    _, lines = configured(*own)
    assert lines == ["from accelerate launch: optim.clip.G/F/E/D/C 1.0 (--gradient_clipping)"]


def test_another_engine_drops_all_of_the_launchers_deepspeed_in_one_line():
    fields, lines = configured("--engine.name", "ddp")
    assert fields == ("ddp", 1, "bfloat16", 0, 0)
    assert lines == [
        "from accelerate launch: precision bfloat16 (--mixed_precision)",
        "not from accelerate launch: engine.name deepspeed (--use_deepspeed), engine.zero_stage 2 "
        "(--zero_stage), optim.clip.G/F/E/D/C 1.0 (--gradient_clipping), because of the training's "
        "own options: engine.name ddp",
    ]


def test_the_stage_that_accelerate_implies_yields_silently():
    launcher = {"ACCELERATE_USE_DEEPSPEED": "true"}
    from_launcher = "from accelerate launch: engine.name deepspeed (--use_deepspeed)"
    assert configured(launcher=launcher)[1] == [
        f"{from_launcher}, engine.zero_stage 2 (--use_deepspeed)"
    ]
    assert configured("--engine.zero_stage", "1", launcher=launcher)[1] == [from_launcher]


def test_a_setting_that_does_not_work_can_be_overridden():
    nvme = LAUNCHER | {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "nvme"}
    with pytest.raises(UserError, match="--offload_optimizer_device nvme"):
        configured(launcher=nvme)
    _, lines = configured("--engine.offload_optimizer", "true", launcher=nvme)
    assert lines == [
        FROM_LAUNCHER,
        "not from accelerate launch: --offload_optimizer_device nvme, because of the training's "
        "own options: engine.offload_optimizer true",
    ]


@pytest.fixture
def ds_json(tmp_path, monkeypatch):
    zero = {"stage": 1, "offload_optimizer": {"device": "cpu"}}
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": zero}))
    monkeypatch.chdir(tmp_path)
    return "ds.json"


def test_a_deepspeed_file_overrides_the_launcher_and_yields_to_the_user(ds_json):
    launcher = LAUNCHER | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": ds_json}
    fields, lines = configured("--engine.offload_optimizer", "false", launcher=launcher)
    assert fields == ("deepspeed", 1, "bfloat16", 1, 1)
    assert lines == [
        "from ds.json: engine.zero_stage 1 (zero_optimization.stage)",
        "from accelerate launch: precision bfloat16 (--mixed_precision), engine.name deepspeed "
        "(--use_deepspeed), engine.deepspeed_config ds.json (--deepspeed_config_file), "
        "optim.clip.G/F/E/D/C 1.0 (--gradient_clipping)",
        "not from accelerate launch: engine.zero_stage 2 (--zero_stage), because of ds.json: "
        "engine.zero_stage 1",
        "not from ds.json: engine.offload_optimizer true "
        "(zero_optimization.offload_optimizer.device), because of the training's own options: "
        "engine.offload_optimizer false",
    ]


def test_the_users_deepspeed_file_is_read_in_place_of_the_launchers(ds_json):
    own = ("--engine.name", "deepspeed", "--engine.deepspeed_config", ds_json)
    launcher = LAUNCHER | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "nowhere.json"}
    for environment in ({}, launcher):
        _, lines = configured(*own, launcher=environment)
        assert lines[0].startswith("from ds.json: engine.zero_stage 1 (zero_optimization.stage)")
    with pytest.raises(UserError, match=r"cannot read nowhere.json.* \(--deepspeed_config_file\)"):
        configured(launcher=launcher)
    assert configured("--engine.name", "ddp", launcher=launcher)[0][0] == "ddp"


@pytest.mark.parametrize(
    ("variable", "value", "options", "message", "expected"),
    [
        ("DEEPSPEED_ZERO_STAGE", "3", (), "engine.zero_stage: 3 needs --schedule summed",
         "engine.zero_stage 3 (--zero_stage)"),
        ("DEEPSPEED_ZERO_STAGE", "3", ("--schedule", "summed"), "optim.clip: ZeRO 3 has one",
         "optim.clip.G/F/E/D/C 1.0 (--gradient_clipping)"),
        ("MIXED_PRECISION", "fp16", (), "precision: DeepSpeed (engine.name) trains in",
         "precision float16 (--mixed_precision), engine.name deepspeed (--use_deepspeed)"),
        ("MIXED_PRECISION", "no", ("--precision", "float64"), "precision: DeepSpeed (engine.name)",
         "engine.name deepspeed (--use_deepspeed)"),
        ("MIXED_PRECISION", "no", ("--engine.channels_last", "on"), "engine.channels_last: ",
         "engine.name deepspeed (--use_deepspeed)"),
    ],
)  # fmt: skip
def test_an_error_names_the_origin_of_what_the_user_did_not_choose(
    variable, value, options, message, expected
):
    with pytest.raises(UserError) as error:
        configured(*options, launcher=LAUNCHER | {f"ACCELERATE_{variable}": value})
    explanation, _, origin = str(error.value).partition(
        "; from accelerate launch or its configuration file: "
    )
    assert explanation.startswith(message)
    assert origin == expected
    assert "\n" not in str(error.value)


def test_later_errors_name_the_origin_too_and_keep_their_kind():
    config, origins = configure(REQUIRED, requests=take_settings(dict(LAUNCHER)))
    saved, resumed = (resolve(c).config for c in (configs.parse(REQUIRED), config))
    changed = pytest.raises(UserError, match=r"precision was float32.*; from accelerate launch or ")
    with changed, origins.in_errors():
        configs.check_resumable(saved, resumed, "r")
    with pytest.raises(WorldError) as error, origins.in_errors():
        raise WorldError("shards are missing", 74)
    assert (str(error.value), error.value.exit_code) == ("shards are missing", 74)


def test_the_command_line_follows_the_launcher_and_names_it_in_errors(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    monkeypatch.setattr(sys, "argv", ["train", *REQUIRED, "--batch_size", "3"])
    with pytest.raises(UserError) as error:
        command.main()
    assert str(error.value) == (
        "batch_size: 3 is the global batch and must be a multiple of the number of processes, 1 "
        "times engine.accumulate, 2; 4 works; from accelerate launch or its configuration file: "
        "engine.accumulate 2 (--gradient_accumulation_steps, which divides batch_size here)"
    )
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" not in os.environ


def test_print_config_shows_what_the_launcher_sets(capsys):
    with pytest.raises(SystemExit):
        configured("--print_config")
    assert "precision: bfloat16" in capsys.readouterr().out


def test_status_accepts_options_that_fit_a_deepspeed_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 3}}')
    options = ("--engine.deepspeed_config", str(tmp_path / "ds.json"), "--schedule", "summed",
               "--engine.name", "deepspeed", "--engine.offload_parameters", "true")  # fmt: skip
    run = str(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["status", "--run", run, "--data.shards", "s", *options])
    status.main()
    assert capsys.readouterr().out == f"0 of 100000 steps saved in {run}\n"


def test_origins_stand_in_the_first_lines_and_in_config_yaml(shards, tmp_path, caplog):
    run = str(tmp_path / "run")
    command = ["--config", str(SMOKE), "--data.shards", shards, "--run", run, "--steps", "1"]
    launcher = {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}
    own = ["--engine.compile", "false"]
    config, origins = configure([*command, *own], requests=take_settings(launcher))
    with caplog.at_level("INFO"):
        assert train(config, origins) == FINISHED
    line = "from accelerate launch: precision bfloat16 (--mixed_precision)"
    assert caplog.messages[2:4] == [
        line,
        "not from accelerate launch: engine.compile true (--dynamo_backend), because of the "
        "training's own options: engine.compile false",
    ]
    saved = tmp_path / "run" / "config.yaml"
    assert saved.read_text().splitlines()[:2] == [f"# {line}", f"run: {run}"]
    # The file holds what took effect: with it, the launcher changes nothing.
    again = configured(launcher={}, required=("--config", str(saved)))
    assert again == (("ddp", 1, "bfloat16", 0, 0), [])
    assert configs.parse(["--config", str(saved)]) == resolve(config).config
    with pytest.raises(UserError, match="precision was bfloat16, is float32"):
        train(configs.parse([*command, "--steps", "2"]), Origins())
