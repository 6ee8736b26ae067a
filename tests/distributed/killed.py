"""Driver: a training process that kills itself at the n-th call of a function, as by `kill -9`.

Usage: KILL_AT=module:name:n python killed.py …options of stargan_dist.train
KILL_BY names another signal. With KILL_BY=sleep the process hangs there for KILL_SECONDS instead
(default: an hour).
With several processes, KILL_RANK is the rank that is killed (default: 0).
"""

import importlib
import os
import signal
import sys
import time

from stargan_dist.errors import run_command
from stargan_dist.train import main


def kill_or_hang(how):
    if how == "sleep":
        time.sleep(float(os.environ.get("KILL_SECONDS", "3600")))
    else:
        os.kill(os.getpid(), getattr(signal, how))


def install(kill_point):
    """Replace the function that the kill point MODULE[/ATTRIBUTE…]:FUNCTION:N names."""
    path, name, number = kill_point.split(":")
    module_name, *attributes = path.split("/")
    owner = importlib.import_module(module_name)
    for attribute in attributes:
        owner = getattr(owner, attribute)
    original, calls = getattr(owner, name), []

    def wrapper(*args, **kwargs):
        calls.append(None)
        if len(calls) == int(number):
            sys.stdout.flush()
            kill_or_hang(os.environ.get("KILL_BY", "SIGKILL"))
        return original(*args, **kwargs)

    setattr(owner, name, wrapper)


if __name__ == "__main__":
    if os.environ.get("RANK", "0") == os.environ.get("KILL_RANK", "0"):
        install(os.environ["KILL_AT"])
    run_command(main)
