"""A configuration from YAML files and the command line, or from plain values."""

import dataclasses
import logging
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, get_loader, set_loader

from stargan_dist.config.fields import Config, ModelConfig
from stargan_dist.config.rules import MAX_ERROR, check
from stargan_dist.errors import UserError, printable

logger = logging.getLogger(__name__)


PROGRAM = "stargan_dist.train"


def parse(
    argv: Sequence[str] | None = None,
    prog: str = PROGRAM,
    defaults: Mapping[str, Any] | None = None,
) -> Config:
    """Build the configuration from a command line.

    Args:
        defaults: values of options in place of their defaults, by dotted name.

    Raises:
        UserError: unknown key, wrong type or invalid value.
    """
    parser, start = _parser(prog), Namespace()
    for name, value in (defaults or {}).items():
        start[name] = value
    with _parse_errors():
        namespace = parser.parse_args(_words(argv), start)
    del namespace["config"]
    config = _build(parser, namespace)
    if config.schedule == "exact":
        logger.warning("schedule: exact is now called published")
    return _checked(config)


def given(argv: Sequence[str] | None = None, prog: str = PROGRAM) -> dict[str, Any]:
    """Return the options that a command line and its files set, nested as in `to_dict`.

    Raises:
        UserError: unknown key or wrong type.
    """
    asked = [
        word for word in _words(argv) if not word.startswith("--print_config")
    ]  # that is for `parse`
    with _parse_errors():
        namespace = _parser(prog).parse_args(asked, defaults=False)
    return {name: value for name, value in namespace.as_dict().items() if name != "config"}


def _words(argv: Sequence[str] | None) -> list[str]:
    """Return the words of a command line, with `--init` by its full name."""
    words = sys.argv[1:] if argv is None else argv
    return [re.sub(r"^--init(?==|$)", "--init.model", word) for word in words]


@cache
def _parser(prog: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=f"python -m {prog}",
        description="Train StarGAN v2, or another recipe of its table (--recipe). "
        "The same command resumes the run.",
        exit_on_error=False,
        allow_abbrev=True,
    )
    parser.add_argument("--config", action="config", help="YAML file; may be given several times.")
    parser.add_class_arguments(Config)
    return parser


def from_dict(values: dict[str, Any]) -> Config:
    """Build a configuration from plain values: the inverse of `to_dict`, with all checks.

    Raises:
        UserError: unknown key, wrong type or invalid value.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Config)
    with _parse_errors():
        namespace = parser.parse_object(values)
    return _checked(_build(parser, namespace))


def model_from_dict(values: dict[str, Any]) -> ModelConfig:
    """Build the section `model` of a configuration from plain values.

    Raises:
        UserError: unknown key, wrong type or invalid value.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ModelConfig)
    with _parse_errors():
        namespace = parser.parse_object(values)
    _check_groups(ModelConfig, namespace)
    return ModelConfig(**_plain(parser.instantiate(namespace).as_dict()))


# Phrases of jsonargparse's errors, and clearer ones.
CLEARER_ERRORS = (
    (r'^Parser key "([^"]*)": ', r"\1: "),
    (r"Not of type \w+: (\S+) does not conform to restriction v(.*)$", r"must be \2, not \1"),
    (r"(must be .*) and v<inf, not", r"\1 and finite, not"),
    (r"must be >-inf and finite", "must be finite"),
    (r"(must be .*) and v<", r"\1 and <"),
    (r"(<class ')?jsonargparse\.typing\.FiniteFloat('>)?", "a finite number"),
    (r"Not of type \w+: ", ""),
    (r"Does not validate .* Subtypes: \[(.*?)\] Errors: .* Given value: (.*)$",
     r"expected \1, not \2"),
    (r"<class '(\w+)'>", r"\1"),
    (r", NoneType", " or null"),
    (r"Expected a typing\.Literal\[(.*)\]\. Got value: (.*)$", r"must be one of \1, not \2"),
)  # fmt: skip


# YAML.

MAX_YAML_CHARACTERS = 2**20
MAX_YAML_VALUES = 100_000  # with aliases expanded, as all later code sees them
_load_any_yaml = get_loader("yaml")


def _load_yaml(text: str) -> Any:
    """Load YAML of bounded size: ten lines of aliases of aliases can stand for billions of values.

    Raises:
        yaml.YAMLError: it is not YAML, or too large.
    """
    if len(text) > MAX_YAML_CHARACTERS:
        raise yaml.YAMLError(f"more than {MAX_YAML_CHARACTERS} characters")
    try:
        value = _load_any_yaml(text)
    except yaml.YAMLError:
        raise
    except Exception as error:  # constructors of dates and numbers raise errors of their own
        raise yaml.YAMLError(str(error).partition(";")[0]) from error
    if _count_values(value, {}) > MAX_YAML_VALUES:
        raise yaml.YAMLError(f"aliases that expand to more than {MAX_YAML_VALUES} values")
    return value


set_loader("yaml", _load_yaml, exceptions=(yaml.YAMLError,))


def _count_values(value: Any, counts: dict[int, float]) -> float:
    """Count the values in a list or mapping and below; infinitely many if it contains itself.

    Args:
        value: a value loaded from YAML. Aliases are the same object.
        counts: results by identity, which are added here.
    """
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in counts:
        counts[id(value)] = math.inf  # found again inside itself
        children = value.values() if isinstance(value, dict) else value
        counts[id(value)] = 1 + sum(_count_values(child, counts) for child in children)
    return counts[id(value)]


@contextmanager
def _parse_errors() -> Iterator[None]:
    """Convert errors of the parser to UserErrors of one line."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"--config: a file is not UTF-8 ({error}); save it as UTF-8") from error
    except ArgumentError as error:
        message = " ".join(str(error).split())
        for pattern, replacement in CLEARER_ERRORS:
            message = re.sub(pattern, replacement, message)
        raise UserError(printable(message, MAX_ERROR)) from error


def _check_groups(kind: Any, values: Any, name: str = "") -> None:
    """Check what the parser does not: groups of settings are not single values, numbers not null.

    Raises:
        UserError: one is.
    """
    if not isinstance(values, Namespace | dict):
        raise UserError(f"{name}: expected settings by name, not {values!r:.200}")
    for field_ in dataclasses.fields(kind):
        field_name = f"{name}.{field_.name}" if name else field_.name
        if dataclasses.is_dataclass(field_.type):
            _check_groups(field_.type, values.get(field_.name), field_name)
        elif values.get(field_.name) is None and field_.default is not None:
            raise UserError(f"{field_name}: must have a value, not null")


def _build(parser: ArgumentParser, namespace: Namespace) -> Config:
    _check_groups(Config, namespace)
    return Config(**_plain(parser.instantiate(namespace).as_dict()))


def _plain(value: Any) -> Any:
    """Convert jsonargparse's restricted numbers to int and float."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    number_types = (kind for kind in (bool, int, float) if isinstance(value, kind))
    return next(number_types, lambda same: same)(value)


def _checked(config: Config) -> Config:
    """Return a valid configuration, with present names in place of former ones."""
    if config.schedule == "exact":
        config = dataclasses.replace(config, schedule="published")
    check(config)
    return config
