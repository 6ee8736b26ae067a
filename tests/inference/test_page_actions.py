"""The functions of the page, without its server."""

import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stargan_dist.errors import UserError
from stargan_dist.inference import page, page_actions, page_server
from stargan_dist.inference.page_actions import REFERENCES, SEEDS, Actions
from stargan_dist.inference.side_by_side import SideBySide
from stargan_dist.inference.translator import Translator
from tests.helpers.models import tiny_model
from tests.helpers.pictures import picture

MODELS = {
    "animals": Translator(tiny_model(), device="cpu"),
    "<b>": Translator(tiny_model("stargan", ["bear"]), device="cpu"),
}
ACTIONS = Actions(SideBySide(MODELS), max_pixels=10_000)


@pytest.fixture
def translate(tmp_path, monkeypatch):
    """Call `Actions.translate` with a picture and the page's first values, except those given."""
    monkeypatch.setenv(page_actions.FOLDER, str(tmp_path))
    picture().save(tmp_path / "source.png")
    values = {
        "source": str(tmp_path / "source.png"), "target": "fox", "attributes": [], "guide": SEEDS,
        "seed": 0, "count": 2, "references": None, "strength": 1, "fit": "crop",
        "models": [*MODELS],
    }  # fmt: skip
    return lambda **changes: ACTIONS.translate(**values | changes)


def test_each_model_has_a_note_and_captioned_outputs(translate, tmp_path):
    note, outputs, other_note, other_outputs, sheet = translate(seed=4)
    assert note == "**animals** · 32 × 32 pixels · step 7"
    assert [caption for _, caption in outputs] == ["seed 4", "seed 5"]
    expected = MODELS["animals"].translate(picture(), "fox", seed=[4, 5])
    assert all(np.array_equal(o, e) for (o, _), e in zip(outputs, expected, strict=True))
    assert other_outputs == []
    assert other_note.startswith("**&lt;b&gt;**")
    assert other_note.endswith("**this model has no fox: it has bear**")
    assert Image.open(sheet).size == (3 * 66 + 2, 66 + 2 + 16)
    assert Path(sheet).parent.parent == tmp_path


def test_references_guide_if_they_are_chosen(translate, tmp_path):
    files = [(str(tmp_path / f"{n}.png"), None) for n in range(2)]
    for n, (path, _) in enumerate(files):
        picture(seed=n).save(path)
    captions = [caption for _, caption in translate(guide=REFERENCES, references=files)[1]]
    assert captions == ["reference 1", "reference 2"]
    assert [caption for _, caption in translate(references=files)[1]] == ["seed 0", "seed 1"]


def test_models_that_are_not_chosen_translate_nothing(translate):
    one, both = translate(models=["animals"]), translate()
    assert [caption for _, caption in one[1]] == ["seed 0", "seed 1"]
    assert one[2:4] == [ACTIONS.note("<b>"), []]
    assert Image.open(one[-1]).size == Image.open(both[-1]).size
    note, outputs, _, _, sheet = translate(models=["<b>"], target="bear")
    assert (note, outputs) == (ACTIONS.note("animals"), [])
    assert Image.open(sheet).size == (3 * 66 + 2, 66 + 2 + 16)


def test_there_is_no_sheet_without_outputs(translate):
    assert translate(target="none")[-1] is None
    assert ACTIONS.clear() == [ACTIONS.note("animals"), [], ACTIONS.note("<b>"), [], None]


@pytest.mark.parametrize(
    ("mode", "kind"), [("CMYK", "jpeg"), ("RGBA", "png"), ("P", "gif"), ("I;16", "png")]
)
def test_pictures_of_any_mode_are_translated(translate, tmp_path, mode, kind):
    image = picture().convert("I").convert(mode) if mode == "I;16" else picture().convert(mode)
    image.save(tmp_path / "other", kind)
    assert len(translate(source=str(tmp_path / "other"))[1]) == 2


def test_of_an_animation_the_first_frame_is_translated(translate, tmp_path):
    frames = [picture(seed=n) for n in (0, 5)]
    frames[0].save(tmp_path / "x.webp", save_all=True, append_images=frames[1:], lossless=True)
    moving, still = translate(source=str(tmp_path / "x.webp")), translate()
    assert np.array_equal(moving[1][0][0], still[1][0][0])


def test_pictures_that_cannot_be_used_are_one_line(translate, tmp_path):
    (tmp_path / "text.png").write_text("text")
    picture(101, 100).save(tmp_path / "large.png")
    text, large = str(tmp_path / "text.png"), str(tmp_path / "large.png")
    guided = {"guide": REFERENCES}
    cases = [
        ({"source": None}, "add a picture"),
        ({"source": text}, "the picture cannot be used: not an image that can be decoded .*"),
        ({"source": large}, "the picture cannot be used: 101 × 100 pixels are more than 10000: .*"),
        (guided, "add a reference picture"),
        (guided | {"references": [(text, None)]}, "reference 1 cannot be used: not an image .*"),
        (guided | {"references": [(text, None)] * 9}, "9 references are more than 8: remove some"),
        ({"models": []}, "choose a model"),
        ({"count": 9}, "9 outputs are more than 8"),
    ]
    for changes, expected in cases:
        with pytest.raises(UserError, match=f"^{expected}$"):
            translate(**changes)


def test_without_gradio_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"pip install 'stargan_dist\[app\]'"):
        page.import_gradio()


def test_a_busy_port_is_skipped():
    port = page_server.free_port("127.0.0.1", 0)
    with socket.create_server(("127.0.0.1", port)):
        assert page_server.free_port("127.0.0.1", port) > port
    with pytest.raises(UserError, match=r"cannot listen on 192.0.2.1, port 7860: "):
        page_server.free_port("192.0.2.1", 7860)


def test_files_of_the_page_are_removed_at_the_end(monkeypatch):
    monkeypatch.setenv(page_actions.FOLDER, "before")
    with page_server.temporary_files():
        path = page_actions.save_png(picture())
        assert Image.open(path).size == (32, 32)
    with pytest.raises(FileNotFoundError):
        Image.open(path)
