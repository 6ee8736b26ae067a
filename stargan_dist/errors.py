"""Errors that are for a person: one line, what was wrong, where, and what to do."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

import torch

USER_ERROR = 2


class UserError(ValueError):
    """A mistake of the user's or a fault of the surroundings. Its message is the explanation."""


def _tell(error: Exception) -> None:
    """Print the error once.

    Before the process group starts every rank meets the same error, so rank 0 speaks for all.
    Afterwards the rank that failed speaks for itself.
    """
    rank = os.environ.get("RANK", "0")
    if torch.distributed.is_initialized():
        print(f"error (rank {rank}): {error}", file=sys.stderr, flush=True)
    elif rank == "0":
        print(f"error: {error}", file=sys.stderr, flush=True)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a command line's `main`: its result is the exit code; a UserError is one line and 2."""
    try:
        sys.exit(main())
    except UserError as error:
        _tell(error)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
