"""Log lines with time and rank: progress on standard output, warnings on standard error."""

import logging
import os
import sys


def setup_logging() -> None:
    """Print the package's log records, on whatever the standard streams are now.

    A record is one line, `13:12:34 rank 0  step 20/820 …`. The rank is that of the launcher (RANK).
    """
    rank = os.environ.get("RANK", "0")
    formatter = logging.Formatter(f"%(asctime)s rank {rank}  %(message)s", "%H:%M:%S")
    output, errors = logging.StreamHandler(sys.stdout), logging.StreamHandler(sys.stderr)
    output.addFilter(lambda record: record.levelno < logging.WARNING)
    errors.setLevel(logging.WARNING)
    logger = logging.getLogger("stargan_dist")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [output, errors]
    for handler in logger.handlers:
        handler.setFormatter(formatter)
