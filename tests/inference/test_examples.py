"""Example pictures: validation images of a run, or files."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from stargan_dist.errors import UserError
from stargan_dist.inference import examples
from stargan_dist.shards.build import build
from tests.helpers.models import tiny_model
from tests.helpers.pictures import picture


def model_of(shards):
    """Return a model of a run on some shards."""
    model = tiny_model()
    data = replace(model.config.data, shards=str(shards))
    return replace(model, config=replace(model.config, data=data))


def test_validation_images_of_the_first_run_that_has_them(shards):
    found = examples.validation_images([tiny_model(), model_of(shards)])
    assert [example.domain for example in found] == ["cat", "cat", "dog", "dog", "rabbit", "rabbit"]
    assert found[0].image.size == (32, 32)
    assert np.asarray(found[0].image).std() > 10


def test_shards_that_are_elsewhere_give_no_examples(shards, tmp_path):
    assert examples.validation_images([model_of(tmp_path / "moved")]) == []


def test_shards_without_validation_images_give_no_examples(animals, tmp_path):
    build(str(animals), str(tmp_path / "set"), val_fraction=0)
    model = model_of(tmp_path / "set")
    assert examples.validation_images([model]) == []
    with pytest.raises(UserError, match=r"--sources: name pictures, .* no images in split val"):
        examples.instead_of_sources(model)


def test_examples_stand_for_sources_or_say_why_not(shards, tmp_path):
    assert len(examples.instead_of_sources(model_of(shards))) == 6
    with pytest.raises(UserError, match="--sources: name pictures, as this model has no data"):
        examples.instead_of_sources(tiny_model())
    with pytest.raises(UserError, match=r"--sources: name pictures, .* no shards at .*moved"):
        examples.instead_of_sources(model_of(tmp_path / "moved"))


def test_files_and_folders_are_examples(tmp_path, animals):
    (tmp_path / "folder").mkdir()
    for name in ("b.PNG", "a.png", "notes.txt"):
        shutil.copy(next((animals / "cat").iterdir()), tmp_path / "folder" / name)
    picture(2000, 1000).save(tmp_path / "large.jpg")
    found = examples.from_files([str(tmp_path / "large.jpg"), str(tmp_path / "folder")])
    assert [example.image.size for example in found] == [(512, 256), (40, 40), (40, 40)]


def test_examples_that_cannot_be_read_are_an_error(tmp_path):
    with pytest.raises(UserError, match="--examples: no image files in"):
        examples.from_files([str(tmp_path)])
    (tmp_path / "no.png").write_text("no image")
    with pytest.raises(UserError, match=r"cannot read the image .*no.png: not an image"):
        examples.from_files([str(tmp_path)])
