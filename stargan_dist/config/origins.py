"""Values that options get from other programs' settings, and their origins.

Order: defaults < `accelerate launch` < a DeepSpeed file < configuration files and options of the
training.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from stargan_dist.errors import UserError, printable

OWN = "the training's own options"
LAUNCHER = "accelerate launch"
UNSET = ("", "no", "none", "false", "auto")  # texts that request nothing, in lower case


class Setting(NamedTuple):
    """A row of a table: a setting of another program, and the options that correspond to it."""

    key: str
    """Its key there: an environment variable, or the path of a key in a file."""
    name: str
    """Its name for users: a flag, or the path of a key in a file."""
    options: tuple[str, ...]
    """Options of the training that it sets."""
    convert: Callable[[str], Any]
    """Function from its text to the value of the options; None: it requests nothing. Raises
    LookupError or ValueError where the training has no such value."""
    remedy: str = ""
    """Why the training does not support the values for which `convert` raises, and what to do."""
    needs_deepspeed: bool = False
    """It is dropped where the user's own options have another engine."""
    is_default: bool = False
    """The other program's own default: it yields silently."""
    note: str = ""
    """What differs here, to be printed with the value."""


class Request(NamedTuple):
    """A setting that was found, and the value that it requests for one option.

    Attributes:
        source: what it was found in.
        value: of the option; the setting's own text if the training does not support it.
    """

    source: str
    setting: Setting
    option: str
    value: Any
    supported: bool = True


def lookup(values: Mapping[str, Any]) -> Callable[[str], Any]:
    """Return a function from a text, in any case, to the value that a mapping has for it."""
    return lambda text: values[text.lower()]


def find(
    table: Iterable[Setting], texts: Mapping[str, str], source: str, unset: tuple[str, ...] = UNSET
) -> list[Request]:
    """Find the settings of a table among texts by key.

    Args:
        source: what the texts were found in.
        unset: texts that request nothing, in lower case.
    """
    requests = []
    for setting in table:
        text, supported = texts.get(setting.key), True
        if text is None or text.lower() in unset:
            continue
        try:
            value = setting.convert(text)
        except (LookupError, ValueError):
            value, supported = text, False
        if value is not None:
            requests += [Request(source, setting, o, value, supported) for o in setting.options]
    return requests


class Overridden(NamedTuple):
    """A request that did not take effect, because the winner has a value of its own."""

    request: Request
    winner: str
    value: str


@dataclass(frozen=True)
class Origins:
    """The requests that took effect, and those that did not."""

    effective: tuple[Request, ...] = ()
    overridden: tuple[Overridden, ...] = ()

    @property
    def values(self) -> dict[str, Any]:
        """Values of options, by name."""
        return {request.option: request.value for request in self.effective}

    @property
    def lines(self) -> list[str]:
        """One line for each source: the options that it set."""
        return [f"from {s}: {_describe(r)}" for s, r in groupby(self.effective, _source)]

    @property
    def lines_of_overridden(self) -> list[str]:
        """One line for each source and what overrode it."""
        lines = []
        order = sorted(self.overridden, key=_source_and_winner)
        for (source, winner), group in groupby(order, _source_and_winner):
            items = list(group)
            values = ", ".join(dict.fromkeys(item.value for item in items))
            requests = _describe(item.request for item in items)
            lines.append(f"not from {source}: {requests}, because of {winner}: {values}")
        return lines

    @contextmanager
    def in_errors(self) -> Iterator[None]:
        """Append the origins of the options that a UserError names to its message."""
        try:
            yield
        except UserError as error:
            message = str(error)
            words = {word.strip("-:;,()") for word in message.split()}
            # An error about optim.clip.G may name optim.clip alone.
            named = [r for r in self.effective if words & {r.option, r.option[:-2]}]
            origins = [f"from {_file(s)}: {_describe(r)}" for s, r in groupby(named, _source)]
            error.args = ("; ".join([message, *origins]),)
            raise


def decide(requests: Iterable[Request], own: Mapping[str, Any]) -> Origins:
    """Decide which requests take effect.

    Args:
        requests: the strongest first.
        own: the user's own options by name.

    Raises:
        UserError: the training does not support what would take effect.
    """
    decided = {option: (value, OWN) for option, value in own.items()}
    effective, overridden = list[Request](), list[Overridden]()
    for request in requests:
        engine = decided.get("engine.name", ("deepspeed", ""))[0]
        dropped = request.setting.needs_deepspeed and engine != "deepspeed"
        option = "engine.name" if dropped else request.option
        if option in decided:
            value, winner = decided[option]
            if (dropped or value != request.value) and not request.setting.is_default:
                overridden.append(Overridden(request, winner, f"{option} {_text(value)}"))
        elif request.supported:
            decided[option] = request.value, request.source
            effective.append(request)
        else:
            raise UserError(
                f"{_file(request.source)}: {_describe([request])}: {request.setting.remedy}"
            )
    return Origins(tuple(effective), tuple(overridden))


def _describe(requests: Iterable[Request]) -> str:
    """List requests, options of one setting together: `optim.clip.G/F/E/D/C 1.0 (NAME)`."""
    words = []
    for (setting, value, supported), group in groupby(requests, lambda r: (r.setting, *r[3:])):
        first, *others = [request.option for request in group]
        option = "/".join([first, *(other.rpartition(".")[2] for other in others)])
        ours = f"{option} {_text(value)} ({setting.name}{setting.note})"
        words.append(ours if supported else f"{setting.name} {_text(value)}")
    return ", ".join(words)


def _source(request: Request) -> str:
    return request.source


def _source_and_winner(item: Overridden) -> tuple[str, str]:
    return item.request.source, item.winner


def _file(source: str) -> str:
    return f"{source} or its configuration file" if source == LAUNCHER else source


def _text(value: Any) -> str:
    """Format a value as on the command line."""
    return printable(str(value).lower() if isinstance(value, bool) else str(value))
