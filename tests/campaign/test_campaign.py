"""A short campaign with fixed seeds, and that a campaign can find something."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.campaign.faults import ROWS
from tests.campaign.outcomes import Outcome, compare, count, tracebacks
from tests.campaign.setups import STEPS, Place, Setup
from tests.conftest import PATIENCE_SECONDS, ROOT

TRACEBACK = """\
Traceback (most recent call last):
  File "/lib/{file}", line 1, in <module>
    main()
{last}
"""
LAUNCHERS = TRACEBACK.format(file="torch/distributed/run.py", last="ChildFailedError: rank 1")
OURS = TRACEBACK.format(file="stargan_dist/train.py", last="OSError: no space left")


@pytest.fixture(scope="module", params=[(1, 15), pytest.param((2, 30), marks=pytest.mark.slow)])
def campaign(request, tmp_path_factory):
    """A campaign of one process on local files: the command and its folder."""
    folder = tmp_path_factory.mktemp("campaign")
    kills, files = request.param
    words = ["--seed", 1671, "--kills", kills, "--files", files, "--only", "kill", "bytes"]
    words += ["--engines", "one", "--jobs", 1, "--folder", folder, "--json", f"{folder}.json"]
    command = [sys.executable, "-m", "tests.campaign", *map(str, words)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    return done, folder, {"kill": kills, "bytes": files}


def test_a_short_campaign_finds_nothing(campaign):
    """Killed trainings and damaged files: nothing hangs, and nothing is wrong."""
    done, folder, tries = campaign
    assert done.returncode == 0, done.stdout + done.stderr
    lines = Path(f"{folder}.json").read_text().splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    assert {kind: kinds.count(kind) for kind in kinds} == tries


def test_a_single_other_bit_is_found(campaign):
    _, folder, _ = campaign
    unbroken = folder / "references" / f"one-{STEPS}"
    shutil.copytree(unbroken / "run", folder / "changed" / "run")
    file = folder / "changed" / "run" / "checkpoints" / f"step_{STEPS:08d}" / "ema.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values())).view(-1).view(torch.int32)[0] ^= 1
    save_file(tensors, file)
    places = [Place(path, Setup(), folder / "shards") for path in (file.parents[3], unbroken)]
    outcome = Outcome("kill-0", "kill", "", "")
    compare(outcome, *places)
    assert outcome.verdict == "wrong"
    assert outcome.wrong[0].startswith("1 of ")


def test_tracebacks_of_launchers_are_not_counted():
    ranks = OURS.replace("\n", "\n[rank1]: ").removesuffix("[rank1]: ")
    assert tracebacks(LAUNCHERS) == []
    assert tracebacks(ranks + LAUNCHERS + OURS) == ["OSError: no space left"] * 2


def test_several_complaints_are_wrong():
    outcome = Outcome("kill-0", "kill", "", "")
    count(outcome, "error: one\n", allowed_errors=1)
    assert outcome.wrong == []
    count(outcome, "error: one\nerror (rank 1): two\n", allowed_errors=1)
    assert outcome.wrong == ["2 error lines"]


def test_rows_have_names_of_their_own():
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
