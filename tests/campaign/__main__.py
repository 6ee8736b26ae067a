"""Command line of the campaign: `python -m tests.campaign --seed S --minutes M`.

Exit code 1 if a try hung or was wrong.
"""

import argparse
import gc
import importlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import torch

from stargan_dist.console.tables import format_table
from tests.campaign.outcomes import Outcome, summarise
from tests.campaign.programs import ROOT, fork, send
from tests.campaign.setups import ENGINES, References
from tests.campaign.tries import ALL_KINDS, run_try

# Tries of the other kinds for each kill.
SHARES = {
    "stop": 0.1,
    "signal": 0.25,
    "disk": 0.15,
    "server": 0.15,
    "race": 0.15,
    "slow step": 0.08,
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    add = parser.add_argument
    add("--seed", type=int, default=0)
    add("--minutes", type=float, default=30.0, help="no try begins later")
    add("--kills", type=int, default=100, help="number of kills; other faults in proportion")
    add("--files", type=int, default=500, help="number of damaged files")
    add(
        "--only", choices=ALL_KINDS, nargs="+", default=ALL_KINDS, help="only faults of these kinds"
    )
    add("--engines", choices=ENGINES, nargs="+", default=list(ENGINES), help="one: one process")
    add("--try", dest="names", action="append", help="only this try, such as kill-17")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="tries at a time")
    add("--json", type=Path, help="write the outcome of each try, one object a line")
    add("--folder", type=Path, default=ROOT / "build" / "campaign", help="is emptied first")
    return parser.parse_args()


def plan(args: argparse.Namespace) -> list[str]:
    """Return the names of the tries, kinds interleaved in proportion to their numbers."""
    counts = {"kill": args.kills, "bytes": args.files}
    counts |= {kind: round(args.kills * share) for kind, share in SHARES.items()}
    places = (((i + 0.5) / counts[k], f"{k}-{i}") for k in args.only for i in range(counts[k]))
    return args.names or [name for _, name in sorted(places)]


def warm_up() -> None:
    """Import what the commands import, so that forked processes have it."""
    for name in ("accelerate.commands.launch", "stargan_dist.training.trainer"):
        importlib.import_module(name)
    torch.set_num_threads(1)
    gc.freeze()  # forked processes do not collect it, which would copy all of it


class Campaign:
    """Tries in processes of their own, several at a time."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        shutil.rmtree(args.folder, ignore_errors=True)
        self.references = References(args.folder / "references")
        self.references.prepare()
        self.running: dict[int, str] = {}

    def outcomes(self) -> Iterator[Outcome]:
        """Yield the outcome of each try as it ends."""
        deadline = time.monotonic() + 60 * self.args.minutes
        for name in plan(self.args):
            if len(self.running) >= self.args.jobs:
                yield self._next()
            if time.monotonic() > deadline:
                break
            self.running[fork(lambda name=name: self._run(name))] = name
        while self.running:
            yield self._next()

    def close(self) -> None:
        """End the tries that still run, and wait until they have ended their trainings."""
        for pid in self.running:
            send(pid, signal.SIGTERM)
        for pid in self.running:
            os.waitpid(pid, 0)

    def _folder(self, name: str) -> Path:
        return Path(self.args.folder, name.replace(" ", "_"))

    def _run(self, name: str) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends what the try has started
        args = self.args
        outcome = run_try(name, args.seed, args.engines, self.references, self._folder(name))
        self._file(name).write_text(json.dumps(asdict(outcome)))

    def _file(self, name: str) -> Path:
        return self._folder(name).with_suffix(".json")

    def _next(self) -> Outcome:
        pid = 0
        while pid not in self.running:
            pid, _ = os.wait()
        name = self.running.pop(pid)
        try:
            outcome = Outcome(**json.loads(self._file(name).read_text()))
        except (OSError, ValueError):
            kind = name.rpartition("-")[0]
            outcome = Outcome(name, kind, "the campaign itself failed", "", codes=[], wrong=["?"])
        if not outcome.fell_short and not self.args.names:
            shutil.rmtree(self._folder(name), ignore_errors=True)
        return outcome


def describe(outcome: Outcome) -> str:
    """Return the line of a try."""
    last = f"last line after {outcome.seconds_to_last_line:.1f} s"
    parts = [
        f"{outcome.name:<12}", f"{outcome.verdict:<20}", f"{outcome.seconds:5.1f} s",
        f"{outcome.fault} ({outcome.setup})", last,
        *dict.fromkeys(outcome.wrong),
    ]  # fmt: skip
    return "  ".join(parts)


def run(args: argparse.Namespace) -> list[Outcome]:
    """Run the campaign; print and write each outcome as it comes."""
    outcomes = []
    with closing(Campaign(args)) as campaign:
        for outcome in campaign.outcomes():
            outcomes.append(outcome)
            print(describe(outcome), flush=True)
            if args.json:
                with args.json.open("a") as file:
                    file.write(json.dumps(asdict(outcome) | {"verdict": outcome.verdict}) + "\n")
    return outcomes


def main() -> int:
    args = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    warm_up()
    outcomes = run(args)
    print(f"\nseed {args.seed}\n{format_table(summarise(outcomes, ALL_KINDS), left=[0])}")
    short = [outcome for outcome in outcomes if outcome.fell_short]
    options = f"--seed {args.seed} --engines {' '.join(args.engines)}"
    for outcome in short:
        again = f"python -m tests.campaign {options} --try '{outcome.name}'"
        print(f"{again}   # {outcome.fault}: {outcome.verdict}, {'; '.join(outcome.wrong)}")
    return int(bool(short))


if __name__ == "__main__":
    sys.exit(main())
