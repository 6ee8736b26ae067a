"""Consistency of the scripts, checked without running them."""

import re

import pytest

from tests.conftest import ROOT

SCRIPTS = ["train_8gpu.sh", "train_multinode.sh", "pairs.sh", "evaluate.sh", "build_shards.sh"]
NODES = ["train_8gpu.sh", "train_multinode.sh"]
TRAINING = [*NODES, "pairs.sh"]
SHARED = ["common.sh", "site.example.sh"]


def text(name):
    return (ROOT / "slurm" / name).read_text()


def test_every_script_is_tested():
    found = {path.name for path in (ROOT / "slurm").glob("*.sh")}
    assert found - {"site.sh"} == {*SCRIPTS, *SHARED}


@pytest.mark.parametrize("name", SCRIPTS)
def test_slurm_accepts_the_script(cluster, name):
    output = cluster.client("sbatch", "--test-only", ROOT / "slurm" / name, cwd=ROOT).stderr
    assert re.search(r"Job \d+ to start at", output)


@pytest.mark.parametrize("name", TRAINING)
def test_the_time_reserved_for_saving_is_the_default_of_the_check(name):
    reserved = re.search(r"^#SBATCH --signal=B:USR1@(\d+)$", text(name), re.M)[1]
    assert f"${{SBATCH_SIGNAL:-B:USR1@{reserved}}}" in text("common.sh")


def test_the_training_scripts_differ_only_in_the_number_of_nodes():
    one_node, several_nodes = (
        [line for line in text(name).splitlines() if not line.startswith("# ")] for name in NODES
    )
    assert [line for line in several_nodes if line not in one_node] == ["#SBATCH --nodes=2"]


def test_every_variable_of_the_site_file_is_read():
    documented = set(re.findall(r"\b(STARGAN_\w+)", text("site.example.sh")))
    scripts = "".join(map(text, ["common.sh", *SCRIPTS]))
    assert {name for name in documented if name not in scripts} == set()
