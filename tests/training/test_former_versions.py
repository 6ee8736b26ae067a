"""Files written by version 0.1.0 are still read (tests/fixtures/version_0_1_0)."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from stargan_dist import config as configs
from stargan_dist.evaluation import report
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.runs import scores
from stargan_dist.shards.verify import verify
from stargan_dist.training.trainer import FINISHED, train
from tests.conftest import here

FIXTURE = Path(__file__).resolve().parent.parent / "fixtures" / "version_0_1_0"


@pytest.fixture
def former(tmp_path, monkeypatch) -> Path:
    """Copy the fixture and make it the current folder: its configuration has relative paths."""
    shutil.copytree(FIXTURE, tmp_path / "former")
    monkeypatch.chdir(tmp_path / "former")
    return tmp_path / "former"


def test_a_former_run_resumes_with_the_losses_of_the_former_version(former):
    """In float64. TensorBoard stored the expected losses in float32."""
    config = configs.parse(["--config", "config.yaml", "--steps", "4"])
    assert train(config) == FINISHED
    assert checkpoints.list_steps("run") == [2, 4]
    lines = map(json.loads, (former / "run" / "metrics.jsonl").read_text().splitlines())
    logged = {str(line["step"]): line for line in lines}
    expected = json.loads((FIXTURE / "losses_of_steps_3_and_4.json").read_text())
    assert logged.keys() == expected.keys() == {"3", "4"}
    for step, losses in expected.items():
        assert "D/latent/real" in losses
        for name, loss in losses.items():
            assert logged[step][name] == pytest.approx(loss, rel=1e-6), (step, name)


def test_the_former_name_of_a_schedule_is_accepted_with_a_warning(former, caplog):
    assert yaml.safe_load((former / "config.yaml").read_text())["schedule"] == "exact"
    assert configs.parse(["--config", "config.yaml"]).schedule == "published"
    assert configs.parse(["--config", "config.yaml", "--schedule", "exact"]).schedule == "published"
    assert caplog.messages == ["schedule: exact is now called published"] * 2


def test_former_evaluations_are_read(former):
    (result,) = scores.complete_results("run")
    assert (result["step"], result["protocol"], result["seed"]) == (2, "demo", 0)
    assert checkpoints.find("run", "best").step == 2
    assert "cat → dog" in report.table(result)
    assert "cat → dog" not in here("evaluate", "--compare", "run").stdout
    assert "demo fid latent" in here("evaluate", "--compare", "run").stdout


def test_former_shards_pass_verification(former):
    assert verify("shards") == []


def test_a_former_run_can_be_sampled(former):
    images = here("sample", "--run", "run", "--count", "1").stdout.split()
    assert [Path(image).name for image in images] == [
        "latent_step_00000002.png",
        "reference_step_00000002.png",
    ]
