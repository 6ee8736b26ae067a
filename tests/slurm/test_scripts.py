"""What can be said of the scripts without running them."""

import re

import pytest

from tests.conftest import ROOT

SCRIPTS = ["train_8gpu.sh", "train_multinode.sh", "evaluate.sh", "build_shards.sh"]
TRAINING = ["train_8gpu.sh", "train_multinode.sh"]
SHARED = ["common.sh", "site.example.sh"]


def text(name):
    return (ROOT / "slurm" / name).read_text()


def test_every_script_is_looked_at():
    found = {path.name for path in (ROOT / "slurm").glob("*.sh")}
    assert found - {"site.sh"} == {*SCRIPTS, *SHARED}


@pytest.mark.parametrize("name", SCRIPTS)
def test_slurm_would_take_it(cluster, name):
    told = cluster.client("sbatch", "--test-only", ROOT / "slurm" / name, cwd=ROOT).stderr
    assert re.search(r"Job \d+ to start at", told)


@pytest.mark.parametrize("name", TRAINING)
def test_the_time_kept_for_saving_is_the_one_that_is_checked(name):
    kept = re.search(r"^#SBATCH --signal=B:USR1@(\d+)$", text(name), re.M)[1]
    assert f"${{SBATCH_SIGNAL:-B:USR1@{kept}}}" in text("common.sh")


def test_several_nodes_are_one_node_but_for_their_number():
    one, several = ([line for line in text(name).splitlines() if not line.startswith("# ")]
                    for name in TRAINING)  # fmt: skip
    assert [line for line in several if line not in one] == ["#SBATCH --nodes=2"]


def test_what_the_site_file_offers_is_read():
    offered = set(re.findall(r"\b(STARGAN_\w+)", text("site.example.sh")))
    scripts = "".join(map(text, ["common.sh", *SCRIPTS]))
    assert {name for name in offered if name not in scripts} == set()
