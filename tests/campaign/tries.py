"""A try: a training, a fault, the same command until it has finished, the verdict."""

import random
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.campaign import damage
from tests.campaign.faults import KINDS, Row, Scene, draw_row
from tests.campaign.outcomes import (
    Outcome,
    compare,
    count,
    count_leftovers,
    digest,
    error_lines,
    first_step,
)
from tests.campaign.programs import Program
from tests.campaign.setups import BOUND_SECONDS, Place, References, Setup, draw_setup

BYTES = "bytes"
ALL_KINDS = (*KINDS, BYTES)
MAX_STARTS = 4


def run_try(
    name: str, seed: int, engines: Sequence[str], references: References, folder: Path
) -> Outcome:
    """Run a try in a folder of its own, which stays."""
    kind, _, _ = name.rpartition("-")
    rng = random.Random(f"{seed} {name}")
    began = time.monotonic()
    if kind == BYTES:
        outcome = damage_files(name, rng, references, folder)
    else:
        fault = draw_row(kind, rng, engines)
        setup = draw_setup(rng, {"engine": engines, **fault.where})
        outcome = meet_fault(name, fault, setup, rng, references, folder)
    outcome.folder, outcome.seconds = str(folder), time.monotonic() - began
    return outcome


# Damaged files.


def damage_files(name: str, rng: random.Random, references: References, folder: Path) -> Outcome:
    """Damage a file of a copied run, its shards or its cache, and resume the run."""
    target = damage.draw_target(rng)
    place = copy_halfway(references, folder, cached=target.pattern.startswith("cache"))
    intended = _choose_latest(place, target, rng)
    path = rng.choice([p for p in sorted(folder.glob(target.pattern)) if p.is_file()])
    how = damage.damage(path, rng)
    if not path.exists():
        intended = None
    outcome = Outcome(name, BYTES, f"{path.relative_to(folder)}: {how}", str(place.setup))
    before = digest(place.run_folder / "checkpoints")
    try:
        program = place.start()
        program.wait(BOUND_SECONDS)
        outcome.seconds_to_last_line = program.last_line_time() - program.began
        _judge_damage(outcome, place, references, intended)
        _check_told(outcome, target.ignorable and how != "a folder in its place")
        if program.code and digest(place.run_folder / "checkpoints") != before:
            outcome.wrong.append("checkpoints were changed")
    finally:
        place.close()
    return outcome


def copy_halfway(references: References, folder: Path, *, cached: bool) -> Place:
    """Return a copy of a run that is to be resumed, with shards or a cache of its own."""
    halfway = references.halfway(cached=cached)
    shards = references.shards if cached else folder / "shards"
    if cached:
        shutil.copytree(halfway.cache, folder / "cache")
    else:
        shutil.copytree(references.shards, shards)
    shutil.copytree(halfway.run_folder, folder / "run")
    return Place(folder, halfway.setup, shards)


def _choose_latest(place: Place, target: damage.Target, rng: random.Random) -> int | None:
    """Set a run back before `latest` is damaged; return the step that is meant."""
    if not target.pattern.endswith("/latest"):
        return None
    step = rng.choice([8, 9])
    (place.run_folder / "checkpoints" / "latest").write_text(f"step_{step:08d}\n")
    return step


def _judge_damage(
    outcome: Outcome, place: Place, references: References, intended: int | None
) -> None:
    program = place.programs[0]
    text = program.text()
    outcome.codes.append(program.code)
    count(outcome, text, allowed_errors=1)
    _count_alive(outcome, program)
    if program.code == 0:
        compare(outcome, place, references.unbroken("one"))
        count_leftovers(outcome, place)
        if intended not in (None, first_step(text)) and "latest" not in text:
            outcome.wrong.append(f"began at step {first_step(text)}, not at {intended}, silently")


def _check_told(outcome: Outcome, ignorable: bool) -> None:
    """Check that a run that was not finished was told in exactly one line."""
    code = outcome.codes[0]
    if code in (None, 0):
        return
    outcome.told = "told"
    if code not in (2, 74):
        outcome.wrong.append(f"exit code {code}")
    if outcome.error_lines == 0:
        outcome.wrong.append("no error line")
    if ignorable:
        outcome.wrong.append("a file that decides nothing ended the run")


# Faults of a running training.


def meet_fault(
    name: str, fault: Row, setup: Setup, rng: random.Random, references: References, folder: Path
) -> Outcome:
    """Train, apply a fault, start the same command until the run has finished, and compare."""
    outcome = Outcome(name, fault.kind, fault.name, str(setup))
    unbroken = references.unbroken(setup.engine)
    place = Place(folder, setup, references.shards)
    try:
        _train_to_the_end(outcome, fault, Scene(place, rng))
        if None not in outcome.codes:
            compare(outcome, place, unbroken)
            count_leftovers(outcome, place)
    finally:
        place.close()
        _unmount(folder)
    return outcome


def _train_to_the_end(outcome: Outcome, fault: Row, scene: Scene) -> None:
    _apply(outcome, fault, scene)
    place = scene.place
    scene.repair()
    while outcome.codes[-1] not in (0, None) and len(place.programs) < MAX_STARTS:
        program = place.start()
        program.wait(BOUND_SECONDS)
        _count_start(outcome, program, allowed_errors=0)
    if outcome.codes[-1] not in (0, None):
        outcome.wrong.append(f"not finished after {MAX_STARTS} starts: exit codes {outcome.codes}")
    _check_nothing_lost(outcome, fault, scene)


def _apply(outcome: Outcome, fault: Row, scene: Scene) -> None:
    """Start the training, apply the fault and wait for the end of all that was started."""
    steps = fault.fault(scene)
    next(steps)
    scene.program = scene.place.start()
    for _ in steps:
        pass
    scene.program.wait(BOUND_SECONDS)
    outcome.seconds_to_last_line = max(0.0, scene.program.last_line_time() - scene.began)
    for program in list(scene.place.programs):
        _count_start(outcome, program, allowed_errors=scene.place.setup.processes)
    _check_codes(outcome, fault, scene)


def _count_start(outcome: Outcome, program: Program, allowed_errors: int) -> None:
    """Count what one start of the command printed and left."""
    outcome.codes.append(program.code)
    count(outcome, program.text(), allowed_errors)
    _count_alive(outcome, program)
    program.end()


def _count_alive(outcome: Outcome, program: Program) -> None:
    if program.code is not None and (left := program.left_alive()):
        outcome.alive += left
        outcome.wrong.append(f"{len(left)} processes alive after 10 s")


def _check_codes(outcome: Outcome, fault: Row, scene: Scene) -> None:
    allowed = (0,) if fault.goes_on else fault.codes
    alone = scene.place.setup.processes == 1
    for program in scene.place.programs:
        if not allowed or program.code in (None, *allowed) or (not fault.goes_on and not alone):
            continue
        lines = error_lines(program.text())
        outcome.wrong.append(f"exit code {program.code} ({lines[0][:200] if lines else ''})")


def _check_nothing_lost(outcome: Outcome, fault: Row, scene: Scene) -> None:
    """Check that the second start continued at least at what was saved, or had to be."""
    begun = [first_step(program.text()) for program in scene.place.programs[1:]]
    resumed = next((step for step in begun if step is not None), None)
    needed = scene.stepped if fault.keeps_step else scene.saved
    if fault.kind != "race" and resumed is not None and resumed < needed:
        outcome.wrong.append(f"steps lost: resumed at {resumed}, though {needed} had been reached")


def _unmount(folder: Path) -> None:
    """Unmount everything below a folder, the last mount first."""
    lines = Path("/proc/mounts").read_text().splitlines()
    for line in reversed(lines):
        point = line.split()[1]
        if point.startswith(f"{folder}/"):
            subprocess.run(["umount", "-l", point], check=False)
