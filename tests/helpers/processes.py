"""Processes that must end by themselves."""

import time
from contextlib import suppress

import psutil

SECONDS = 60  # they take less than five


def is_alive(process) -> bool:
    """Return False for a zombie, too. In some containers nobody reaps orphans."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def wait_for_end(processes) -> list[psutil.Process]:
    """Wait until all processes have ended. Kill those that do not, and return them."""
    deadline = time.monotonic() + SECONDS
    while (alive := list(filter(is_alive, processes))) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in alive:
        process.kill()
    return alive
