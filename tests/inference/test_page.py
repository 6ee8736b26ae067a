"""The page in a real browser: Debian's Chromium, driven by Playwright. One server for all tests."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from PIL import Image

from stargan_dist.models import folder
from tests.conftest import ROOT
from tests.helpers.models import tiny_model
from tests.helpers.pictures import picture

CHROMIUM = shutil.which("chromium")
SECONDS = 60  # for what usually takes one
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no program chromium: apt-get install chromium"
)
playwright = pytest.importorskip(
    "playwright.sync_api", reason="no package playwright: pip install 'stargan_dist[test]'"
)
pytest.importorskip("gradio", reason="no package gradio: pip install 'stargan_dist[app]'")


class Server(NamedTuple):
    process: subprocess.Popen
    address: str


@contextmanager
def served(*arguments):
    """Run the command; yield its process and the address that it prints."""
    command = [sys.executable, "-m", "stargan_dist.app", *map(str, arguments), "--port", "0"]
    # A proxy that does not exist: nothing may need one.
    env = os.environ | {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    try:
        for line in process.stdout:
            if match := re.fullmatch(r"the page is at (http://127.0.0.1:\d+/)\n", line):
                yield Server(process, match[1])
                break
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of models and pictures."""
    files = tmp_path_factory.mktemp("page")
    folder.write(str(files / "animals"), tiny_model(), "")
    folder.write(str(files / "faces"), tiny_model("stargan", ["blond", "male"], binary=True), "")
    (files / "examples").mkdir()
    picture(seed=3).save(files / "examples" / "example.png")
    picture(80, 40).save(files / "source.png")
    picture(seed=1).save(files / "reference.png")
    picture(300, 300).save(files / "large.png")
    (files / "text.png").write_text("no image")
    return files


@pytest.fixture(scope="module")
def server(files):
    """The process of the command, and its address."""
    options = ["--examples", files / "examples", "--max-pixels", 80_000]
    with served(files / "animals", files / "faces", *options) as server:
        yield server


@pytest.fixture(scope="module")
def address(server):
    return server.address


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_context()  # with one cache for all pages
        browser.close()


@pytest.fixture
def page(browser, address):
    page = browser.new_page()
    page.set_default_timeout(SECONDS * 1000)
    page.requested = []
    page.on("request", lambda request: page.requested.append(request.url))
    page.goto(address)
    page.locator(".outputs").last.wait_for()  # the last component of the page
    yield page
    page.close()


def upload(page, path, where="#source"):
    page.locator(f"{where} input[type=file]").set_input_files(str(path))


def outputs(page, column=0):
    """Return the addresses of a model's outputs, which differ if their contents do."""
    images = page.locator(".outputs").nth(column).locator("img")
    return images.evaluate_all("images => images.map(image => image.src)")


def changed(page, old, column=0):
    """Wait until all outputs differ from the old ones; return them."""
    script = """([column, old]) => {
        const images = document.querySelectorAll('.outputs')[column]?.querySelectorAll('img');
        return images?.length && [...images].every(image => !old.includes(image.src));
    }"""
    page.wait_for_function(script, arg=[column, old])
    return outputs(page, column)


def test_outputs_change_with_the_seed_and_the_domain(page):
    page.locator("#examples_source button.gallery-item").click()
    first = changed(page, [])
    assert len(first) == 4
    page.locator("#seed input[type=number]").fill("7")
    other_seed = changed(page, first)
    page.get_by_label("fox", exact=True).click()
    other_domain = changed(page, first + other_seed)
    page.get_by_text("Other styles").click()
    assert len(changed(page, first + other_seed + other_domain)) == 4
    page.locator("#seed input[type=number]").fill("5000")
    page.get_by_text("seed 1000").wait_for()  # the end of the slider
    page.locator("#seed input[type=number]").fill("")  # counts as the initial value
    page.get_by_text("seed 0").wait_for()


def test_an_upload_is_translated_as_its_fit_says(page, files):
    upload(page, files / "source.png")
    cropped = changed(page, [])
    assert size_of(cropped[0]) == (32, 32)
    page.get_by_label("pad", exact=True).click()
    assert size_of(changed(page, cropped)[0]) == (32, 16)


def size_of(address):
    with urllib.request.urlopen(address) as response:
        return Image.open(response).size


def test_outputs_are_whole_on_a_telephone(page, files):
    page.set_viewport_size({"width": 390, "height": 844})
    upload(page, files / "source.png")
    changed(page, [])
    inside = """gallery => [...gallery.querySelectorAll('img')].every(image =>
        image.getBoundingClientRect().right <= gallery.getBoundingClientRect().right)"""
    assert page.locator(".outputs").first.evaluate(inside)


def test_references_guide(page, files):
    upload(page, files / "source.png")
    by_seeds = changed(page, [])
    page.get_by_label("reference pictures").click()
    upload(page, files / "reference.png", "#references")
    by_reference = changed(page, by_seeds)
    assert len(by_reference) == 1
    page.locator("#strength input[type=number]").fill("0.5")
    changed(page, by_reference)


def test_models_stand_side_by_side(page, files):
    upload(page, files / "source.png")
    changed(page, [])
    page.get_by_text("this model has no bear: it has attributes").wait_for()
    page.get_by_label("attributes", exact=True).click()
    page.get_by_text("this model has no attributes: it has bear, cat, fox").wait_for()
    nothing = changed(page, [], column=1)
    page.get_by_label("male").click()
    changed(page, nothing, column=1)
    page.get_by_label(str(files / "animals"), exact=True).click()
    page.wait_for_function("document.querySelectorAll('.outputs').length == 1")
    with page.expect_download() as started:
        page.get_by_text("Download all as one PNG").click()
    with Image.open(started.value.path()) as sheet:
        assert sheet.size == (5 * 66 + 2, 66 + 2 + 16)
    assert started.value.suggested_filename == "translations.png"


def test_what_cannot_be_translated_is_a_line_on_the_page(page, files):
    page.get_by_role("button", name="Translate").click()
    page.get_by_text("add a picture").wait_for()
    page.locator("#examples_source button.gallery-item").click()
    changed(page, [])
    for name, expected in (("text.png", "not an image that can be decoded"),
                           ("large.png", "300 × 300 pixels are more than 80000")):  # fmt: skip
        page.get_by_label("Remove Image").click()
        page.wait_for_function("!document.querySelector('.outputs img')")
        upload(page, files / name)
        page.get_by_text(f"the picture cannot be used: {expected}").wait_for()
        assert "Traceback" not in page.content()
        assert outputs(page) == []


def test_nothing_is_requested_from_other_hosts(page, address, files):
    upload(page, files / "source.png")
    changed(page, [])
    local = (address, "data:", "blob:")
    assert len(page.requested) > 20
    assert [url for url in page.requested if not url.startswith(local)] == []


def test_only_files_of_the_page_are_served(address, files):
    for path in ("/etc/hostname", ROOT / "setup.cfg", files / "text.png"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{address}gradio_api/file={path}")


@pytest.mark.parametrize("where", ["file", "address"])
def test_a_request_cannot_name_files_elsewhere(address, files, where):
    """Gradio would copy them to where they are served, and download addresses."""
    path = str(files / "source.png") if where == "file" else f"{address}static/img/logo.svg"
    image = {"path": path, "meta": {"_type": "gradio.FileData"}}
    values = {"source": image, "fit": "crop", "target": "fox", "attributes": [],
              "guide": "random styles", "seed": 0, "count": 1, "references": [],
              "strength": 1, "models": [str(files / "animals")]}  # fmt: skip
    with urllib.request.urlopen(f"{address}config") as response:
        functions = json.load(response)["dependencies"]
    [number, *_] = [f["id"] for f in functions if len(f["inputs"]) == len(values)]
    body = {"data": [*values.values()], "fn_index": number, "session_hash": "test"}
    join = urllib.request.Request(
        f"{address}gradio_api/queue/join",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    urllib.request.urlopen(join).close()
    with urllib.request.urlopen(f"{address}gradio_api/queue/data?session_hash=test") as response:
        completed = next(line for line in response if b"process_completed" in line)
    result = json.loads(completed.removeprefix(b"data: "))
    assert result["success"] is False
    if where == "address":
        assert result["output"]["error"] == "upload the picture instead of an address"


@pytest.mark.slow  # a process of its own
def test_an_interrupt_ends_the_server(files):
    with served(files / "animals", "--examples", files / "examples") as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0


def test_a_signal_ends_the_server(page, server):
    """The last test: it ends the server of the others, with an open page."""
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(SECONDS) == 0
