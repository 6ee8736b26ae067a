"""The documentation names what exists, and its code runs."""

import re
import shutil
from functools import cache
from pathlib import Path

import pytest

from tests.test_imports import COMMANDS, FLOORS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "stargan_dist"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# The site does not check links of these files, which code hosts show.
TOP_FILES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
FOLDERS = "tests|baselines|benchmarks|experiments|configs|launchers|slurm|docs"


def inline_code(page):
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`]+)`", text)


@cache
def sources():
    """Return the source of each module by its dotted name."""
    paths = PACKAGE.rglob("*.py")
    names = ((".".join(path.relative_to(ROOT).with_suffix("").parts), path) for path in paths)
    return {name.removesuffix(".__init__"): path.read_text() for name, path in names}


def exists(dotted):
    """Return whether a dotted name is a module, or a name in one."""
    module, _, name = dotted.rpartition(".")
    if dotted in sources():
        return True
    return module in sources() and re.search(rf"\b{name}\b", sources()[module]) is not None


def is_member(owner, member):
    """Return whether a class has a member. Names of other packages' classes are not checked."""
    defining = [text for text in sources().values() if re.search(rf"^class {owner}\b", text, re.M)]
    return not defining or any(re.search(rf"\b{member}\b", text) for text in defining)


def test_every_room_has_a_page_in_the_api_reference():
    rooms = {room for floor in FLOORS for room in floor} - {"errors", *COMMANDS}
    assert {page.stem for page in (ROOT / "docs" / "api").glob("*.md")} == rooms | {"index"}


@pytest.mark.parametrize("name", TOP_FILES)
def test_relative_links_lead_to_files(name):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_in_the_documentation_exist(page):
    code = " ".join(inline_code(page))
    rooms = "|".join(path.name for path in PACKAGE.iterdir() if path.is_dir())
    paths = re.findall(rf"(?<![\w/])(?:(?:{FOLDERS}|{rooms}|stargan_dist)/[\w/.]+\.\w+)\b", code)
    written_by_users = {"slurm/site.sh"}
    assert [
        path
        for path in {*paths} - written_by_users
        if not ((ROOT / path).exists() or (PACKAGE / path).exists())
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_the_documentation_exist(page):
    dotted = re.findall(r"\bstargan_dist(?:\.\w+)+", page.read_text())
    assert [name for name in dotted if not exists(name)] == []
    members = re.findall(r"\b([A-Z][a-z]\w+)\.(\w+)", " ".join(inline_code(page)))
    assert [f"{owner}.{member}" for owner, member in members if not is_member(owner, member)] == []


def test_commands_name_files_before_the_options_that_override_them():
    """A file after an option overrides it: a command would train another run than it names."""
    files = [path for f in ("configs", "launchers", "slurm") for path in (ROOT / f).rglob("*.*")]
    for path in (*PAGES, *files):
        text = re.sub(r"\\\n[#\s]*", "", path.read_text())
        for options in re.findall(r"-m stargan_dist\.(?:train|pairs|memory)\b([^\n`]*)", text):
            assert not re.search(r"--(?!config )[\w.]+ [^-].*--config ", options), (path, options)


@pytest.mark.parametrize("page", ["README.md", "docs/inference.md"])
def test_examples_in_python_translate_images(page, finished_run, animals, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "rex", "luna", "a", "b"):
        shutil.copy(next((animals / "dog").iterdir()), f"{name}.jpg")
    code = "".join(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL))
    names = {}
    exec(code.replace("runs/afhq", str(finished_run)), names)
    assert names["image"].size == (32, 32)
