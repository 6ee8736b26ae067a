"""Errors that are for a person: one line, what was wrong, where, and what to do."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

# Exit codes of the commands.
USER_ERROR = 2
STOPPED = 75  # EX_TEMPFAIL: a signal came, the state is saved, the same command goes on


class UserError(ValueError):
    """A mistake of the user's or a fault of the surroundings. Its message is the explanation.

    Raised before any process group starts it is the same on every rank, and rank 0 speaks for all.
    """

    exit_code = USER_ERROR


class WorldError(UserError):
    """A UserError that every rank raises at the same step: rank 0 speaks for all."""


class RankError(UserError):
    """A UserError of one rank, once the ranks work together: that rank speaks for itself.

    Without a message it has been told, by this rank or by another.
    """


class LostError(RankError):
    """Another rank has gone, which is nobody's mistake: the same command may well succeed."""

    exit_code = 1


def tell(error: UserError) -> None:
    """Print the error, once for all ranks of a node: a node may have a fault of its own."""
    rank = os.environ.get("RANK", "0")
    if isinstance(error, RankError):
        if not str(error):
            return
        print(f"error (rank {rank}): {error}", file=sys.stderr, flush=True)
    elif os.environ.get("LOCAL_RANK", rank) == "0":
        print(f"error: {error}", file=sys.stderr, flush=True)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a command line's `main`: its result is the exit code; a UserError is one line and 2."""
    try:
        sys.exit(main())
    except UserError as error:
        tell(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
