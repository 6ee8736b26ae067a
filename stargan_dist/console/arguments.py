"""Arguments of command lines, whose errors are one line."""

import argparse
from collections.abc import Callable
from typing import NoReturn

from stargan_dist.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser that reports errors on one line, as UserError."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def integer(minimum: int, maximum: float = float("inf")) -> Callable[[str], int]:
    """Return a parser of integers in [minimum, maximum]."""

    def parse(text: str) -> int:
        value = int(text)
        if not minimum <= value <= maximum:
            limits = f"at least {minimum}" + (f" and at most {maximum}" if maximum < 1e9 else "")
            raise argparse.ArgumentTypeError(f"{value} must be {limits}")
        return value

    parse.__name__ = "whole number"  # argparse's message is "invalid whole number value"
    return parse
