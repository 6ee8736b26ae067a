"""`benchmarks/gpu.py` on the CPU, with tiny networks: no GPU is needed to see that it runs."""

import json
import subprocess
import sys

from tests.conftest import PATIENCE_SECONDS, ROOT

CASES = ("literal", "tf32", "schedule_sparse", "translation")
TINY = ("--model.base_width", "4", "--model.max_width", "8", "--model.mapping_dim", "8")


def test_every_kind_of_case_is_timed():
    options = ("--size", "32", "--batch", "2", "--iterations", "1", "--cases", *CASES)
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", *options, *TINY],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    figures = json.loads(done.stdout.splitlines()[-1])
    assert all(figures[name] > 0 for name in CASES)
    assert figures["ours_to_literal"] > 0
