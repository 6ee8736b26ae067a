"""The command line of the page. The page itself: tests/inference/test_page.py."""

import sys

import pytest

from stargan_dist import app
from stargan_dist.models import folder
from tests.conftest import here
from tests.helpers.models import tiny_model


@pytest.fixture
def model(tmp_path):
    folder.write(str(tmp_path / "model"), tiny_model(), "")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["/nowhere"], "/nowhere holds no model: name a run"),
        (["MODEL", "--examples", "/nowhere.png"], "cannot read the image /nowhere.png"),
        (["MODEL", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1, port 7860"),
    ],
)
def test_a_user_error_is_one_line(model, arguments, expected):
    pytest.importorskip("gradio", reason="no package gradio: pip install 'stargan_dist[app]'")
    given = [model if argument == "MODEL" else argument for argument in arguments]
    error = here("app", *given, code=2).stderr
    assert error.startswith(f"error: {expected}")
    assert len(error.splitlines()) == 1


def test_without_gradio_nothing_is_loaded(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    done = here("app", model, code=2)
    assert done.stderr == "error: the page needs a package: pip install 'stargan_dist[app]'\n"
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--port", 65536, "argument --port: 65536 must be at least 0 and at most 65535"),
        ("--max-pixels", 0, "argument --max-pixels: 0 must be at least 1"),
        ("--batch-size", 0, "argument --batch-size: 0 must be at least 1"),
    ],
)
def test_numbers_have_limits(model, option, value, expected):
    assert expected in here("app", model, option, value, code=2).stderr


def test_the_batch_size_is_that_of_each_model(model, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["app", str(model), "--batch-size", "3"])
    assert [each.batch_size for each in app.load(app.parse_args()).values()] == [3]


def test_the_stores_of_a_run_are_configured(model, monkeypatch):
    configured = []
    monkeypatch.setattr(app.storage, "configure", configured.append)
    monkeypatch.setattr(sys, "argv", ["app", str(model)])
    (translator,) = app.load(app.parse_args()).values()
    assert configured == [translator.saved.config.storage]
