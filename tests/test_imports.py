"""Arrows go one way: command lines → trainer → parts → {storage, config}."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "stargan_dist"
COMMANDS = {
    "train", "evaluate", "sample", "memory", "status", "node", "slurm", "shards.__main__",
    "data.demo",
}  # fmt: skip
METRICS = {
    "metrics.protocol", "metrics.resize", "metrics.fid", "metrics.kid", "metrics.lpips",
    "metrics.weights", "metrics.networks", "metrics.demo", "metrics.measure", "metrics.statistics",
    "metrics.store", "metrics.collect",
}  # fmt: skip
# A module may import those of lower levels, and its own folder.
LEVELS = [
    {"errors", "losses", "batch", "progress", "nets.blocks",
     "nets.precision", "nets.v2", "nets.v1"},
    {"access", "network", "pulse", "labels"},
    {"storage", "world", "data.order", "data.transforms", "data.skipped"},
    {"config", "scores"},
    {"shards.index", "shards.sources", "shards.pack", "shards.build", "shards.verify",
     "shards.processes", "shards.publish", "shards.summary"},
    {"engines.base", "engines.steps", "engines.ddp", "engines.zero",
     "launched"},
    {"objectives.parts", "objectives.codes", "objectives.sides", "objectives.objective",
     "objectives.recipes", "data.cache", "data.reader", "data.sets", "data.workers",
     "data.stream", "data.images", "checkpoint"},
    {"shards.preview", "translate"},
    {"grids", "monitor", "state", "saver", "nonfinite"} | METRICS,
    {"results"},
    {"compare", "evaluation"},
    {"reporter"},
    {"trainer"},
    COMMANDS,
]  # fmt: skip
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if not name.endswith("__init__"):
            yield name, path


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: str(value).split("/")[-1])
def test_a_module_imports_only_lower_ones(name, path):
    for imported in imports(path):
        ours = imported.removeprefix("stargan_dist.")
        if imported.startswith("stargan_dist.") and ours in LEVEL_OF:
            same_folder = "." in name and name.split(".")[0] == ours.split(".")[0]
            lower = LEVEL_OF[ours] < LEVEL_OF[name]
            assert (lower or same_folder) and ours not in COMMANDS, f"{name} imports {ours}"


def test_every_module_has_a_level():
    assert {name for name, _ in modules()} == LEVEL_OF.keys()


def test_networks_and_losses_import_torch_alone():
    for name, path in modules():
        if name.startswith("nets.") or name == "losses":
            roots = {
                i.split(".")[0] for i in imports(path) if not i.startswith("stargan_dist.nets")
            }
            standard = {"math", "typing", "itertools", "contextlib", "functools", "collections"}
            assert roots <= {"torch", *standard}


def test_only_the_engines_import_accelerate_and_deepspeed():
    users = {
        name for name, path in modules()
        if {i.split(".")[0] for i in imports(path)} & {"accelerate", "deepspeed"}
    }  # fmt: skip
    assert users == {"world", "engines.zero"}
