"""Imports run downwards: from the command lines through the rooms of the package to `errors`."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "stargan_dist"
COMMANDS = ("train", "evaluate", "sample", "memory", "status")
# A room may import its own modules and the rooms of lower floors. CONTRIBUTING.md shows this table.
FLOORS = [
    ("errors",),
    ("config",),
    ("console", "nets", "storage", "distributed", "launch"),
    ("data",),
    ("shards", "objectives", "engines", "runs"),
    ("inference",),
    ("evaluation",),
    ("training",),
    COMMANDS,
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MOST_FLOORS = 10
STANDARD = {"math", "typing", "itertools", "contextlib", "functools", "collections"}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts), path


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(dotted):
    """The room of a name such as `stargan_dist.data.order.generator`."""
    return dotted.removeprefix("stargan_dist.").split(".")[0]


def own_imports(path):
    return [name for name in imports(path) if name.startswith("stargan_dist.")]


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: str(value).split("/")[-1])
def test_a_room_imports_only_lower_floors(name, path):
    if name == "__init__":
        assert not own_imports(path)
        return
    room = name.split(".")[0]
    for imported in own_imports(path):
        other = room_of(imported)
        assert other == room or FLOOR_OF[other] < FLOOR_OF[room], f"{name} imports {imported}"


def test_every_room_has_a_floor():
    assert {name.split(".")[0] for name, _ in modules()} - {"__init__"} == FLOOR_OF.keys()


def test_the_top_of_the_package_holds_command_lines_config_and_errors_alone():
    top = {name for name, _ in modules() if "." not in name}
    assert top == {"__init__", "config", "errors", *COMMANDS}


def graph():
    """Module -> modules of ours that it imports."""
    names = {name.removesuffix(".__init__") for name, _ in modules()}
    found = {}
    for name, path in modules():
        targets = [imported.removeprefix("stargan_dist.") for imported in own_imports(path)]
        parents = [target if target in names else target.rpartition(".")[0] for target in targets]
        found[name.removesuffix(".__init__")] = {p for p in parents if p in names}
    return found


def circles(edges):
    """The modules that are left once those that import none of the rest are taken away."""
    left = dict(edges)
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    return left.keys()


def test_modules_import_each_other_in_no_circle():
    assert not circles(graph())
    assert circles({"a": {"b"}, "b": {"a"}, "c": {"a"}, "d": set()}) == {"a", "b", "c"}


def test_the_house_has_few_floors():
    assert len(FLOORS) <= MOST_FLOORS


def test_networks_and_losses_import_torch_alone():
    for name, path in modules():
        if name.startswith("nets.") or name == "objectives.losses":
            foreign = {
                imported.split(".")[0]
                for imported in imports(path)
                if not imported.startswith("stargan_dist.nets")
            }
            assert foreign <= {"torch", *STANDARD}, name


def test_only_the_engines_and_the_world_import_accelerate_and_deepspeed():
    users = {
        name
        for name, path in modules()
        if {imported.split(".")[0] for imported in imports(path)} & {"accelerate", "deepspeed"}
    }
    assert users == {"distributed.world", "engines.zero"}


def test_benchmarks_and_experiments_do_not_import_tests():
    for folder in ("benchmarks", "experiments", "baselines"):
        for path in (PACKAGE.parent / folder).glob("*.py"):
            assert not any(name.split(".")[0] == "tests" for name in imports(path)), path
