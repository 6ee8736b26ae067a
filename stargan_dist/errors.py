"""User-facing errors: one line that says what is wrong, where, and what to do."""

import os
import sys
import time
import unicodedata
from collections.abc import Callable
from typing import NoReturn

# Exit codes of the commands.
USER_ERROR = 2
STOPPED = 75  # EX_TEMPFAIL: a signal came, the state is saved, the same command resumes

FIRST_RANK_SECONDS = 5.0  # in which rank 0 prints an error that all ranks have


class UserError(ValueError):
    """A mistake of the user or a fault of the environment. The message is the explanation.

    Before a process group exists, ranks usually raise the same UserError, and rank 0 of each node
    prints it. If a single other rank raises one, that rank prints it.
    """

    exit_code = USER_ERROR


class WorldError(UserError):
    """A UserError that every rank raises at the same step. Rank 0 of each node prints it."""


class RankError(UserError):
    """A UserError of a single rank of a running world. That rank prints it.

    An empty message means that this rank or another one has already printed the error.
    """


class LostRankError(RankError):
    """Another rank has died or hangs.

    This is not a mistake of the user: the same command may succeed when it is run again.
    """

    exit_code = 1


def printable(text: str, limit: int | None = None) -> str:
    """Return the text of others (names of files, contents) so that it stays on one line.

    Control characters, line breaks and lone surrogates are escaped.

    Args:
        text: any text.
        limit: number of characters after which it is cut; None: not cut.
    """
    cut = text if limit is None or len(text) <= limit else text[:limit] + "…"
    return cut if cut.isprintable() else "".join(map(_escape, cut))


def _escape(character: str) -> str:
    category = unicodedata.category(character)
    changes_the_line = category[0] == "C" or category in ("Zl", "Zp")
    return ascii(character)[1:-1] if changes_the_line else character


def is_utf8(name: str) -> bool:
    """Return False if a name has lone surrogates, which stand for bytes that are not UTF-8."""
    try:
        name.encode()
        return True
    except UnicodeEncodeError:
        return False


def print_error(error: UserError) -> None:
    """Print the error to stderr, once per node unless it is a RankError.

    Once per node and not once per run, because a fault may affect a single node.
    """
    rank = os.environ.get("RANK", "0")
    is_first = os.environ.get("LOCAL_RANK", rank) == "0"
    if is_first and not isinstance(error, RankError):
        print(f"error: {error}", file=sys.stderr, flush=True)
    elif str(error) and not isinstance(error, WorldError):
        if not isinstance(error, RankError):
            # If rank 0 fails alike, it prints the error, and the launcher ends this process now.
            time.sleep(FIRST_RANK_SECONDS)
        print(f"error (rank {rank}): {error}", file=sys.stderr, flush=True)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run the `main` of a command line and exit with its result.

    A UserError is printed as one line and ends the process with the error's exit code.
    """
    try:
        sys.exit(main())
    except UserError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader (head, less) has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
