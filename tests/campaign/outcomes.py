"""What is counted after a try, and its verdict."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stargan_dist.storage import PARTIAL_PREFIX
from tests.campaign.programs import is_locked
from tests.campaign.setups import Place

CONTINUED, TOLD, HUNG, WRONG = "continued to the bit", "told in one line", "hung", "wrong"
VERDICTS = (CONTINUED, TOLD, HUNG, WRONG)
# A launcher prints a traceback of its own when a rank has failed.
LAUNCHERS = ("torch/distributed/elastic", "torch/distributed/run.py", "accelerate/commands/launch")


@dataclass
class Outcome:
    """The counts of a try.

    Attributes:
        name: of the try, such as kill-17.
        fault: the row, or the damage and the file.
        codes: the exit code of each start; None: it hung.
        told: the last line of an error, if the run could not be finished.
        alive: command lines of processes that were alive 10 s after their command had ended.
        locks: lock files that are held, relative to the try's folder.
        partials: incomplete files that the finished run holds.
        seconds_to_last_line: from the fault to the last output of the command that met it.
        wrong: what fell short, in words.
    """

    name: str
    kind: str
    fault: str
    setup: str
    folder: str = ""
    codes: list[int | None] = field(default_factory=list)
    told: str = ""
    alive: list[str] = field(default_factory=list)
    locks: list[str] = field(default_factory=list)
    partials: list[str] = field(default_factory=list)
    tracebacks: int = 0
    error_lines: int = 0
    seconds_to_last_line: float = 0.0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        if None in self.codes:
            return HUNG
        if self.wrong:
            return WRONG
        return TOLD if self.told else CONTINUED

    @property
    def fell_short(self) -> bool:
        return self.verdict in (HUNG, WRONG)


def error_lines(text: str) -> list[str]:
    """Return the lines with which commands report errors."""
    return re.findall(r"^error(?: \(rank \d+\))?: .*$", text, re.M)


def tracebacks(text: str) -> list[str]:
    """Return the last lines of the tracebacks that are not a launcher's."""
    rank = r"(?:\[rank\d+\]: )?"
    traceback = rf"Traceback \(most recent call last\):\n((?:{rank} +.*\n)*){rank}(.*)"
    found = re.findall(traceback, text)
    return [last for calls, last in found if not any(name in calls for name in LAUNCHERS)]


def first_step(text: str) -> int | None:
    """Return the number of finished steps with which a training began; None: it did not begin."""
    match = re.search(r": steps (\d+) to \d+, \d+ process", text)
    return int(match[1]) if match else None


def count(outcome: Outcome, text: str, allowed_errors: int) -> None:
    """Count the tracebacks and error lines of one start of the command."""
    found, lines = tracebacks(text), error_lines(text)
    outcome.tracebacks += len(found)
    outcome.error_lines += len(lines)
    outcome.wrong += [f"traceback ({last[:160]})" for last in found]
    if len(lines) > allowed_errors:
        outcome.wrong.append(f"{len(lines)} error lines")


def count_leftovers(outcome: Outcome, place: Place) -> None:
    """Count locks that are held and incomplete files of a run that has ended."""
    local = [folder for folder in (place.run_folder, place.cache) if folder.is_dir()]
    locks = [p for folder in local for p in folder.glob(".lock*") if p.is_file() and is_locked(p)]
    outcome.locks = [str(path.relative_to(place.folder)) for path in locks]
    outcome.partials = [name for name in place.names() if PARTIAL_PREFIX in name]
    outcome.partials += [p.name for p in place.cache.glob("*.partial")]
    for what, found in (("locks held", outcome.locks), ("partial files", outcome.partials)):
        if found:
            outcome.wrong.append(f"{what}: {', '.join(found)[:160]}")


def compare(outcome: Outcome, place: Place, unbroken: Place) -> None:
    """Compare every tensor of the finished run with those of the unbroken one."""
    try:
        tensors, fields = place.contents()
    except (OSError, ValueError, KeyError) as error:
        outcome.wrong.append(f"no finished run ({type(error).__name__}: {error})")
        return
    expected, expected_fields = unbroken.contents()
    names = tensors.keys() | expected.keys()
    differing = [n for n in names if not _same(tensors.get(n), expected.get(n))]
    if differing:
        outcome.wrong.append(f"{len(differing)} of {len(names)} tensors differ")
    other = [k for k, v in expected_fields.items() if fields.get(k) != v]
    if other:
        outcome.wrong.append(f"the manifest differs: {', '.join(other)}")


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is not None and b is not None and a.dtype == b.dtype and torch.equal(a, b)


def digest(folder: Path) -> dict[str, Any]:
    """Return the contents of the files below a folder."""
    files = (p for p in folder.rglob("*") if p.is_file() and PARTIAL_PREFIX not in str(p))
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def summarise(outcomes: Iterable[Outcome], kinds: Iterable[str]) -> list[list[str]]:
    """Return a table: a row for each kind, and their sum."""
    outcomes = list(outcomes)
    lines = [["fault", "tries", *VERDICTS]]
    groups = {k: [o for o in outcomes if o.kind == k] for k in kinds} | {"all": outcomes}
    for kind, group in groups.items():
        if group:
            verdicts = [o.verdict for o in group]
            lines.append([kind, str(len(group)), *(str(verdicts.count(v)) for v in VERDICTS)])
    return lines
