"""Faults of what only watches a training: metrics, grids, status. They never end it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from stargan_dist.errors import UserError

logger = logging.getLogger(__name__)


class Tolerance:
    """Faults of the watching parts: each is logged when it first occurs and when it has passed."""

    def __init__(self) -> None:
        self._faults: dict[str, str] = {}

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Log an error that is raised inside this context, and continue after it.

        Any error: clients of object stores raise types of their own.

        Args:
            part: what is written or shown, in words.
        """
        try:
            yield
        except Exception as error:
            fault = one_line(error)
            if self._faults.get(part) != fault:
                logger.warning("%s: %s; training continues, tried again later", part, fault)
            self._faults[part] = fault
        else:
            if self._faults.pop(part, ""):
                logger.info("%s: works again", part)


def one_line(error: BaseException) -> str:
    """Describe an error in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # without the random names of temporary files
    kind = "" if isinstance(error, OSError | UserError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())
