"""Model folders: read back as they were written, strictly."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from stargan_dist.errors import UserError
from stargan_dist.models import folder
from stargan_dist.models.opening import open_model
from tests.helpers.models import tiny_model


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def written(model, tmp_path):
    folder.write(str(tmp_path / "model"), model, "# A model\n")
    return tmp_path / "model"


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


@pytest.mark.parametrize("recipe", ["f", "stargan", "d", "drit"])
def test_a_model_is_read_back_as_it_was_written(tmp_path, recipe):
    model = tiny_model(recipe)
    folder.write(str(tmp_path / "model"), model, "# A model\n")
    read = folder.read(str(tmp_path / "model"), discriminator=True)
    assert same(read.tensors, model.tensors)
    assert (read.labels, read.step, read.config.recipe) == (model.labels, model.step, recipe)
    assert read.spec.config.model == model.spec.config.model
    assert not {*"DC"} & {*folder.read(str(tmp_path / "model")).letters}
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip


def test_attribute_labels_are_kept(tmp_path):
    model = tiny_model("stargan", binary=True)
    folder.write(str(tmp_path / "model"), model, "")
    assert folder.read(str(tmp_path / "model")).labels == model.labels
    assert model.labels.spaces[0].binary


def change_config(written, **fields):
    path = written / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(("fields", "message"), [
    ({"format": "other"}, "of format 'other'"),
    ({"version": 2}, "version 2"),
    ({"recipe": "z"}, "z is not one of"),
    ({"model": {"image_size": 33}}, r"config\.json: model\."),
    ({"model": {"image_size": 1024, "base_width": 10**6}}, "G has other shapes|G lacks"),
    ({"domains": ["a", "b"]}, "F has other shapes"),
    ({"domains": 3}, "is invalid"),
])  # fmt: skip
def test_descriptions_that_do_not_fit_are_refused(written, fields, message):
    change_config(written, **fields)
    with pytest.raises(UserError, match=message):
        folder.read(str(written))


def test_a_flipped_bit_is_noticed(written):
    path = written / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="its hash differs"):
        folder.read(str(written))
    path.write_bytes(data[:100])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        folder.read(str(written))


def test_weights_of_other_programs_have_no_hash(written, model):
    path = written / "model.safetensors"
    save_file(load_file(path), path)
    assert same(folder.read(str(written), discriminator=True).tensors, model.tensors)


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.pop("G.from_rgb.bias"), r"G lacks from_rgb\.bias"),
    (lambda t: t.update({"G.extra": torch.zeros(1)}), "G has extra, unknown"),
    (lambda t: t.update({"Q.extra": torch.zeros(1)}), "no network Q"),
])  # fmt: skip
def test_loading_is_strict(tmp_path, model, change, message):
    tensors = dict(model.tensors)
    change(tensors)
    folder.write(str(tmp_path / "model"), replace(model, tensors=tensors), "")
    with pytest.raises(UserError, match=message):
        folder.read(str(tmp_path / "model"))


def test_a_model_is_opened_from_anything(finished_run, written, tmp_path):
    of_run = open_model(str(finished_run))
    [*_, newest] = sorted((finished_run / "checkpoints").glob("step_*"))
    assert same(open_model(str(newest)).tensors, of_run.tensors)
    assert of_run.letters == ["E", "F", "G"]
    with_d = open_model(str(finished_run), discriminator=True)
    assert with_d.letters == ["D", "E", "F", "G"]
    folder.write(str(tmp_path / "copy"), with_d, "")
    assert same(open_model(str(tmp_path / "copy"), discriminator=True).tensors, with_d.tensors)
    with pytest.raises(UserError, match="holds no model: name a run"):
        open_model(str(tmp_path))
