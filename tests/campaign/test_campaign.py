"""A short campaign with fixed seeds. `make campaign` runs a long one."""

import json
import subprocess
import sys

from tests.conftest import PATIENCE_SECONDS, ROOT


def campaign(tmp_path, *args):
    """Run the campaign's command; return its exit code and the outcomes of its tries."""
    words = ["--folder", tmp_path / "campaign", "--json", tmp_path / "outcomes", "--jobs", 1, *args]
    command = [sys.executable, "-m", "tests.campaign", *map(str, words)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    lines = (tmp_path / "outcomes").read_text().splitlines()
    return done, [json.loads(line) for line in lines]


def test_a_short_campaign_finds_nothing(tmp_path):
    """Killed trainings and damaged files: nothing hangs, and nothing is wrong."""
    done, outcomes = campaign(tmp_path, "--seed", 1, "--kills", 4, "--files", 60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(outcomes) >= 64
