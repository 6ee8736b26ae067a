"""The model card: what it says, and that its examples run."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import Image

from stargan_dist.config import DataConfig, SourceConfig
from stargan_dist.inference import card
from stargan_dist.inference.translator import Translator
from stargan_dist.models import folder
from tests.conftest import here
from tests.helpers.models import tiny_model


def test_the_front_matter_is_that_of_the_hub():
    text = card.text(replace(card.of_model(tiny_model()), license="cc-by-4.0"))
    _, front_matter, body = text.split("---\n", 2)
    fields = yaml.safe_load(front_matter)
    assert fields["license"] == "cc-by-4.0"
    assert (fields["library_name"], fields["pipeline_tag"]) == ("stargan_dist", "image-to-image")
    assert "recipe-f" in fields["tags"]
    assert body.strip().startswith("# Image translation: bear, cat, fox")


def test_the_card_describes_the_model():
    model = tiny_model().without("D")
    text = card.text(card.of_model(model))
    assert "E with diversity regularisation: StarGAN v2" in text
    assert "32 × 32 pixels" in text
    assert "7 iterations" in text
    assert f"| {sum(t.numel() for t in model.tensors.values()):,} (generator " in text
    assert "discriminator" not in text
    assert "discriminator" in card.text(card.of_model(tiny_model()))
    assert "with 3 labels: bear, cat, fox." in text


def test_what_is_not_known_is_said():
    text = card.text(card.of_model(replace(tiny_model(), step=0)))
    assert "license: unknown" in text
    assert "Its license is not known" in text
    assert "iterations not known" in text
    assert "This step was not evaluated." in text
    assert "There is no sample grid" in text
    assert "Shards that are not known" in text


def test_metrics_and_the_grid_are_shown():
    values = card.of_model(tiny_model())
    text = card.text(replace(values, metrics=[("step 7", "fid\n1.25")], grid="samples.png"))
    assert "step 7:\n\n```\nfid\n1.25\n```" in text
    assert "(samples.png)" in text
    assert "no sample grid" not in text


def test_secrets_in_urls_of_shards_are_not_shown():
    sources = {
        "one": SourceConfig("s3://key:secret@bucket/animals/?signature=secret"),
        "two": SourceConfig("/home/secret/faces"),
    }
    model = tiny_model()
    model = replace(model, config=replace(model.config, data=DataConfig(sources=sources)))
    assert card.data_names(model.config) == ["animals", "faces"]


def test_many_labels_are_cut():
    names = [f"n{i}" for i in range(60)]
    text = card.text(card.of_model(tiny_model("c_acgan", names)))
    assert "n49 and 10 more" in text
    assert "n55" not in text.partition("## Use")[0]


@pytest.mark.parametrize(
    ("recipe", "binary", "images"),
    [("f", False, 2), ("munit", False, 2), ("c", False, 1), ("stargan", True, 1)],
)
def test_the_examples_run(tmp_path, monkeypatch, recipe, binary, images):
    model = tiny_model(recipe, ("bear", 'a "cat"'), binary=binary).without("D")
    monkeypatch.chdir(tmp_path)
    text = card.text(replace(card.of_model(model), address="model"))
    folder.write("model", model, text)
    for name in ("photo.jpg", "other.jpg"):
        Image.new("RGB", (50, 40), "red").save(name)
    python, command = re.findall(r"```(?:python)?\n(.*?)```", text, re.DOTALL)
    assert python.count("translate(") == images
    names = {}
    exec(python, names)
    assert isinstance(names["translator"], Translator)
    assert names["image"].size == (32, 32)
    _, _, module, *arguments = shlex.split(command)
    here(module.removeprefix("stargan_dist."), *arguments)
    assert len(list(Path("translations").glob("photo_*.png"))) == 1
