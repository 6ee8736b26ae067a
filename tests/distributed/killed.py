"""A training process that kills itself, as `kill -9` would, at the n-th call of a function.

Usage: KILL_AT=module:name:n python killed.py …options of stargan_dist.train
With KILL_BY another signal is sent; with KILL_BY=sleep it stays there for an hour instead.
"""

import importlib
import os
import signal
import sys
import time

from stargan_dist.errors import run_command
from stargan_dist.train import main


def leave(how):
    if how == "sleep":
        time.sleep(3600)
    else:
        os.kill(os.getpid(), getattr(signal, how))


def arm(moment):
    path, name, number = moment.split(":")
    module_name, *attributes = path.split("/")
    owner = importlib.import_module(module_name)
    for attribute in attributes:
        owner = getattr(owner, attribute)
    original, calls = getattr(owner, name), []

    def last_call(*args, **kwargs):
        calls.append(None)
        if len(calls) == int(number):
            sys.stdout.flush()
            leave(os.environ.get("KILL_BY", "SIGKILL"))
        return original(*args, **kwargs)

    setattr(owner, name, last_call)


if __name__ == "__main__":
    if os.environ.get("RANK", "0") == os.environ.get("KILL_RANK", "0"):
        arm(os.environ["KILL_AT"])
    run_command(main)
