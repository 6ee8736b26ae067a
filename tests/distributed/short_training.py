"""Driver: the evaluation command with a short training of classifiers.

Usage: python short_training.py …options of stargan_dist.evaluate
"""

import pytest

from stargan_dist.errors import run_command
from stargan_dist.evaluate import main
from tests.helpers.labelled import shorten_training

if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as monkeypatch:
        shorten_training(monkeypatch)
        run_command(main)
