"""User-facing errors: one line that says what is wrong, where, and what to do."""

import errno
import io
import os
import re
import sys
import time
import unicodedata
from collections.abc import Callable
from typing import NoReturn

# Exit codes of the commands.
USER_ERROR = 2
OUTSIDE_FAULT = 74  # EX_IOERR: storage, a disk or the machine failed; the same command may succeed
STOPPED = 75  # EX_TEMPFAIL: a signal came, the state is saved, the same command resumes
MEANINGS = {
    USER_ERROR: "correct what is reported above",
    OUTSIDE_FAULT: "a fault of storage or the machine; the same command may succeed",
    STOPPED: "stopped with the state saved; the same command resumes",
}

FIRST_RANK_SECONDS = 5.0  # in which rank 0 prints an error that all ranks have


class UserError(ValueError):
    """A mistake of the user or a fault of the environment. The message is the explanation.

    Before a process group exists, ranks usually raise the same UserError, and rank 0 of each node
    prints it. If a single other rank raises one, that rank prints it.
    """

    exit_code = USER_ERROR

    def __init__(self, message: str = "", exit_code: int | None = None) -> None:
        super().__init__(message)
        if exit_code is not None:
            self.exit_code = exit_code


class OutsideFault(UserError):
    """A fault of storage, a disk or the machine that may pass: no mistake of the user."""

    exit_code = OUTSIDE_FAULT


class PermanentError(OSError):
    """A failed read or write that another try does not cure: damaged data, a refused request."""


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


# Errors that the same command meets again. Any other OSError may pass.
PERMANENT_ERRORS = (
    PermanentError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError,
    FileExistsError, ValueError, TypeError, ImportError, NotImplementedError,
)  # fmt: skip
PERMANENT_CODES = (errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG, errno.EROFS)

SHARED_MEMORY_FULL = (
    "the shared memory of this machine, /dev/shm, is full ({}): give it more space (docker run "
    "--shm-size), or use fewer loader processes (--data.workers)"
)
LOADER_ENDED = (
    "a loader process {}: the machine is probably out of memory; use fewer loader processes "
    "(--data.workers) or request more memory"
)
# Faults of the machine for which torch raises a RuntimeError: pattern, explanation, and a
# second pattern. The first one's group is part of the explanation.
MACHINE_FAULTS = (
    (r"(No space left on device|Bus error|unable to (?:open|resize|allocate) shared memory)",
     SHARED_MEMORY_FULL,
     r"/torch_|shared memory"),
    (r"DataLoader worker \(pid.*?\) (is killed by signal: \w+|exited unexpectedly)",
     LOADER_ENDED,
     ""),
)  # fmt: skip


def may_pass(error: BaseException) -> bool:
    """Return True if another try may succeed after an error."""
    code = getattr(error, "errno", None)
    return not (isinstance(error, PERMANENT_ERRORS) or code in PERMANENT_CODES)


def explained(message: str, cause: BaseException) -> UserError:
    """Return a UserError: an OutsideFault if its cause is one, or is an OSError that may pass."""
    outside = isinstance(cause, OSError) and may_pass(cause)
    code = getattr(cause, "exit_code", OUTSIDE_FAULT if outside else USER_ERROR)
    return OutsideFault(message) if code == OUTSIDE_FAULT else UserError(message)


def as_user_error(error: Exception) -> Exception:
    """Return the UserError that explains a fault of storage or the machine, else the error itself.

    A BrokenPipeError is returned as it is: the reader of the output has exited.
    """
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        return explained(" ".join(f"{type(error).__name__}: {error}".split()), error)
    if isinstance(error, RuntimeError):
        for pattern, explanation, context in MACHINE_FAULTS:
            match = re.search(pattern, str(error))
            if match and re.search(context, str(error)):
                return OutsideFault(explanation.format(match[1]))
    return error


def print_error(error: UserError) -> bool:
    """Print the error to stderr, once per node unless it is a RankError.

    Once per node and not once per run, because a fault may affect a single node.

    Returns:
        False if another process prints it.
    """
    rank = os.environ.get("RANK", "0")
    is_first = os.environ.get("LOCAL_RANK", rank) == "0"
    if is_first and not isinstance(error, RankError):
        print(f"error: {error}", file=sys.stderr, flush=True)
        return True
    if str(error) and not isinstance(error, WorldError):
        if not isinstance(error, RankError):
            # If rank 0 fails alike, it prints the error, and the launcher ends this process now.
            time.sleep(FIRST_RANK_SECONDS)
        print(f"error (rank {rank}): {error}", file=sys.stderr, flush=True)
        return True
    return False


def print_meaning(code: int) -> None:
    """Print what an exit code means to stderr, if it has a meaning."""
    if code in MEANINGS:
        print(f"exit code {code}: {MEANINGS[code]}", file=sys.stderr, flush=True)


def run_command(
    main: Callable[[], int | None], hides_exit_codes: Callable[[], bool] = lambda: False
) -> NoReturn:
    """Run the `main` of a command line and exit with its result.

    A UserError is printed as one line and ends the process with the error's exit code. So is a
    fault of storage or the machine.

    Args:
        main: returns the exit code.
        hides_exit_codes: returns True if nobody will see the exit code of this process. It is then
            explained in the last line, once.
    """
    _escape_unprintable()
    explain = print_meaning if hides_exit_codes() else lambda _: None
    try:
        _check_arguments()
        code = main() or 0
        if os.environ.get("RANK", "0") == "0":
            explain(code)
        sys.exit(code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader (head, less) has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        explanation = as_user_error(error)
        if not isinstance(explanation, UserError):
            raise
        if print_error(explanation):
            explain(explanation.exit_code)
        sys.exit(explanation.exit_code)


def _escape_unprintable() -> None:
    """Let the standard streams escape characters that they cannot encode, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _check_arguments() -> None:
    """Raise a UserError if an argument is not UTF-8: it could not be written into any file."""
    for argument in sys.argv[1:]:
        if not is_utf8(argument):
            raise UserError(f"the argument {argument!a} is not UTF-8: rename the file")
