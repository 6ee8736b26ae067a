"""JSON files of DeepSpeed settings: what sets options, what is passed on, what is refused."""

import ast
import json
from pathlib import Path

import pytest

from stargan_dist import config as configs
from stargan_dist.errors import UserError
from stargan_dist.launch import deepspeed_settings
from stargan_dist.launch.deepspeed_settings import check_settings, read_requests, read_settings
from stargan_dist.training.options import configure

ZERO = ["--engine.name", "deepspeed"]


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a file, and returns its name."""

    def write_file(settings):
        path = tmp_path / "ds.json"
        path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
        return str(path)

    return write_file


CLIPPED = {f"optim.clip.{network}": 0.5 for network in "GFEDC"}
ROWS = [
    ({"zero_optimization": {"stage": 2}}, {"engine.zero_stage": 2}),
    ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
     {"engine.offload_optimizer": True}),
    ({"zero_optimization": {"offload_optimizer": {"device": "none"}}},
     {"engine.offload_optimizer": False}),
    ({"zero_optimization": {"offload_param": {"device": "cpu"}}},
     {"engine.offload_parameters": True}),
    ({"gradient_clipping": 0.5}, CLIPPED),
    ({"gradient_accumulation_steps": 1}, {"engine.accumulate": 1}),
    ({"gradient_accumulation_steps": 4}, {"engine.accumulate": 4}),
    ({"bf16": {"enabled": True}, "fp16": {"enabled": False}}, {"precision": "bfloat16"}),
    ({"fp16": {"enabled": True, "loss_scale": 0}}, {"precision": "float16"}),
    ({"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2}, {}),
    ({"zero_optimization": None, "gradient_clipping": None}, {}),
    ({"zero_optimization": {"stage": "auto", "offload_param": {"device": "auto"}},
      "bf16": {"enabled": "auto"}, "gradient_accumulation_steps": "auto",
      "train_batch_size": "auto"}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "expected"), ROWS)
def test_a_key_of_an_option_sets_it_and_is_not_passed_on(write, settings, expected):
    path = write(settings)
    assert {request.option: request.value for request in read_requests(path)} == expected
    assert read_settings(path) == {}


def test_the_other_keys_are_passed_on_without_auto(write):
    others = {"zero_optimization": {"overlap_comm": True}, "steps_per_print": 7}
    zero = {"stage": 2, "overlap_comm": True, "reduce_bucket_size": "auto",
            "offload_optimizer": {"device": "cpu", "pin_memory": True}}  # fmt: skip
    path = write(others | {"zero_optimization": zero, "zero_allow_untested_optimizer": None})
    others["zero_optimization"]["offload_optimizer"] = {"pin_memory": True}
    assert read_settings(path) == others
    assert read_settings("") == {}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"optimizer": {"type": "Adam", "params": {"lr": "auto"}}}, "sets optimizer.type, which"),
        (
            {"scheduler": {"type": "WarmupLR"}, "amp": {"enabled": True}},
            "sets amp.enabled, scheduler.type, which",
        ),
        ({"torch_autocast": {"enabled": True}}, "sets torch_autocast.enabled, which"),
        (
            {"bf16": {"enabled": True, "immediate_grad_update": True}},
            "sets bf16.immediate_grad_update, which",
        ),
        ({"managed_gradient_accumulation": True}, "sets managed_gradient_accumulation, which"),
        (
            {"zero_optimization": {"compute_grad_norm": False, "cpu_offload": True}},
            "sets zero_optimization.compute_grad_norm, zero_optimization.cpu_offload, which",
        ),
        ({"zero_optimization": {"stage": 5}}, "engine.zero_stage 5 (zero_optimization.stage)"),
        ({"zero_optimization": {"stage": "two"}}, "zero_optimization.stage two: must be 0, 1, 2"),
        ({"zero_optimization": {"offload_param": {"device": "nvme"}}}, "use cpu"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, "use cpu"),
        ({"gradient_clipping": "much"}, "gradient_clipping much: must be a number"),
        ({"gradient_clipping": -1}, "from ds.json: optim.clip.G -1.0 (gradient_clipping)"),
        ({"gradient_accumulation_steps": 0}, "(gradient_accumulation_steps)"),
        ({"gradient_accumulation_steps": 1.5}, "must be a whole number"),
        ({"bf16": {"enabled": 2}}, "bf16.enabled 2: must be true or false"),
        ({"fp16": {"enabled": "yes"}}, "fp16.enabled yes: must be true or false"),
        ({"fp16": {"enabled": True}}, "from ds.json: precision float16 (fp16.enabled)"),
        ({"bf16": True}, "ds.json, bf16: expected values by name"),
        ({"zero_optimization": 2}, "ds.json, zero_optimization: expected values by name"),
        ([1], "ds.json, settings: expected values by name"),
        ("null", "ds.json, settings: expected values by name"),
        ('"auto"', "ds.json, settings: expected values by name"),
        ("stage: 2", "cannot read ds.json: Expecting value"),
        ("\x00", "cannot read ds.json"),
        ('{"a": ' * 5000 + "1" + "}" * 5000, "cannot read ds.json"),
    ],
)
def test_a_file_that_does_not_work_costs_one_line(write, monkeypatch, tmp_path, settings, named):
    write(settings)
    monkeypatch.chdir(tmp_path)
    required = ["--run", "r", "--data.shards", "s"]
    with pytest.raises(UserError) as error:
        configure([*required, *ZERO, "--engine.deepspeed_config", "ds.json"])
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2}, None),
        ({"train_batch_size": 16}, "has train_batch_size 16, but it is 8 (batch_size 8, "),
        ({"train_micro_batch_size_per_gpu": 4}, "has train_micro_batch_size_per_gpu 4, but it"),
        ({"train_batch_size": "8"}, "has train_batch_size '8', but it is 8 "),
        ({"elasticity": {"enabled": True}}, "ds.json: Elastic training has been removed"),
        ({"zero_optimization": {"bucket": 1}}, "zero_optimization.bucket: Extra inputs are not"),
        ({"zero_optimization": {"offload_param": {"pin_memory": "x"}}},
         "zero_optimization.offload_param.pin_memory: Input should be a valid boolean"),
    ],
)  # fmt: skip
def test_batch_sizes_and_settings_of_zero_are_checked(write, settings, message):
    pytest.importorskip("stargan_dist.engines.zero", reason="DeepSpeed is not installed")
    options = ["--engine.deepspeed_config", write(settings), "--engine.accumulate", "2"]
    config = configs.parse(["--run", "r", "--data.shards", "s", *ZERO, *options])
    if message is None:
        check_settings(config, world_size=2)
    else:
        with pytest.raises(UserError) as error:
            check_settings(config, world_size=2)
        assert message in str(error.value)


def test_the_files_are_read_without_importing_deepspeed():
    module = ast.parse(Path(deepspeed_settings.__file__).read_text())
    imports = [ast.unparse(n) for n in module.body if isinstance(n, ast.Import | ast.ImportFrom)]
    assert "from stargan_dist import storage" in imports
    assert not [line for line in imports if "deepspeed" in line or "pydantic" in line]
