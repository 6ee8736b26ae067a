"""Direction of imports: from the command lines through the rooms of the package to `errors`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "stargan_dist"
COMMANDS = (
    "train",
    "pairs",
    "evaluate",
    "sample",
    "export",
    "convert",
    "translate",
    "align",
    "video",
    "app",
    "landmarks",
    "memory",
    "status",
)
# A room may import its own modules and the rooms of lower floors. CONTRIBUTING.md shows this table.
FLOORS = [
    ("errors",),
    ("config",),
    ("console", "nets", "storage", "distributed"),
    ("data", "launch"),
    ("shards", "objectives", "engines", "runs"),
    ("models",),
    ("inference",),
    ("evaluation", "faces"),
    ("training",),
    COMMANDS,
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MAX_FLOORS = 10
STANDARD_MODULES = {
    "math",
    "dataclasses",
    "typing",
    "itertools",
    "contextlib",
    "functools",
    "collections",
}


def modules():
    """Yield the dotted name below the package and the path of every module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts), path


def imports(path):
    """Yield the dotted names that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(dotted):
    """Return the room of a name such as `stargan_dist.data.order.seeded_rng`."""
    return dotted.removeprefix("stargan_dist.").split(".")[0]


def package_imports(path):
    """List the dotted names of this package that a file imports."""
    return [name for name in imports(path) if name.startswith("stargan_dist.")]


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: str(value).split("/")[-1])
def test_a_room_imports_only_lower_floors(name, path):
    if name == "__init__":  # for type checkers alone
        assert package_imports(path) == ["stargan_dist.inference.translator.Translator"]
        return
    room = name.split(".")[0]
    for imported in package_imports(path):
        imported_room = room_of(imported)
        is_allowed = imported_room == room or FLOOR_OF[imported_room] < FLOOR_OF[room]
        assert is_allowed, f"{name} imports {imported}"


def test_importing_the_package_imports_nothing_else():
    code = "import sys, stargan_dist; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"


def test_every_room_has_a_floor():
    assert {name.split(".")[0] for name, _ in modules()} - {"__init__"} == FLOOR_OF.keys()


def test_only_command_lines_and_errors_are_at_the_top_of_the_package():
    top = {name for name, _ in modules() if "." not in name}
    assert top == {"__init__", "errors", *COMMANDS}


def import_graph():
    """Return the modules of this package that each module imports, by name."""
    names = {name.removesuffix(".__init__") for name, _ in modules()}
    edges = {}
    for name, path in modules():
        targets = [imported.removeprefix("stargan_dist.") for imported in package_imports(path)]
        parents = [target if target in names else target.rpartition(".")[0] for target in targets]
        edges[name.removesuffix(".__init__")] = {p for p in parents if p in names}
    return edges


def modules_with_cyclic_imports(edges):
    """Return the modules that import a cycle, directly or not: remove the others one by one."""
    remaining = dict(edges)
    while acyclic := [n for n, targets in remaining.items() if not targets & remaining.keys()]:
        for name in acyclic:
            del remaining[name]
    return remaining.keys()


def test_imports_have_no_cycles():
    assert not modules_with_cyclic_imports(import_graph())
    edges = {"a": {"b"}, "b": {"a"}, "c": {"a"}, "d": set()}
    assert modules_with_cyclic_imports(edges) == {"a", "b", "c"}


def test_the_number_of_floors_is_limited():
    assert len(FLOORS) <= MAX_FLOORS


def test_networks_and_losses_import_only_torch_and_the_standard_library():
    for name, path in modules():
        if name.startswith("nets.") or name == "objectives.losses":
            packages = {
                imported.split(".")[0]
                for imported in imports(path)
                if not imported.startswith("stargan_dist.nets")
            }
            assert packages <= {"torch", *STANDARD_MODULES}, name


def test_only_these_modules_import_accelerate_and_deepspeed():
    importers = {
        name
        for name, path in modules()
        if {imported.split(".")[0] for imported in imports(path)} & {"accelerate", "deepspeed"}
    }
    assert importers == {
        "distributed.world",
        "engines.base",
        "engines.optimizer_steps",
        "engines.zero",
        "launch.__main__",
        "launch.deepspeed_settings",
        "training.trackers",
    }


def test_benchmarks_experiments_and_baselines_do_not_import_tests():
    for folder in ("benchmarks", "experiments", "baselines"):
        for path in (PACKAGE.parent / folder).glob("*.py"):
            assert not any(name.split(".")[0] == "tests" for name in imports(path)), path
