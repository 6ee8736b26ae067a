"""Cases of tests/distributed/engines.py in processes of their own, and what they computed."""

import subprocess

from safetensors.torch import load_file

from tests.conftest import PATIENCE_SECONDS, ROOT, launch


def results(processes, cases, out):
    out.mkdir()
    driver = str(ROOT / "tests" / "distributed" / "engines.py")
    command = [*launch(processes), driver, str(out), *cases]
    subprocess.run(command, cwd=ROOT, check=True, timeout=PATIENCE_SECONDS)
    return {case: load_file(out / f"{case}.safetensors") for case in cases}


def max_difference(result, other, prefix=""):
    """Return the largest absolute difference of parameters whose names begin with the prefix."""
    assert result.keys() == other.keys()
    names = [name for name in result if name.startswith(prefix) and name != "all_reduces"]
    return max((result[name] - other[name]).abs().max().item() for name in names)
