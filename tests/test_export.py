"""`python -m stargan_dist.export`: model folders of runs, graphs, options that are refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from stargan_dist.data import sources
from stargan_dist.data.index import read_index
from stargan_dist.data.reader import ShardReader
from stargan_dist.errors import UserError
from stargan_dist.models import authors, folder, hub
from stargan_dist.models.opening import open_model
from stargan_dist.runs.scores import COMPARISON_FIELDS
from stargan_dist.shards.build import build
from tests.conftest import here
from tests.helpers.models import tiny_model


def names(path):
    return sorted(file.name for file in path.iterdir())


RESULT = dict.fromkeys(COMPARISON_FIELDS) | {
    "protocol": "demo", "precision": "float32", "metrics": ["demo_fid", "demo_kid", "demo_lpips"],
    "extractors": {}, "outputs_per_source": 2, "score": 1.5, "seed": 0, "guides": ["latent"],
    "rows": [], "means": {"demo_fid_latent": 12.5}, "features": 8, "step": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    """Return a run, moved after its training, with an evaluation of step 4."""
    run = tmp_path_factory.mktemp("moved") / "run"
    shutil.copytree(finished_run, run)
    evaluations = run / "evaluation" / "demo"
    evaluations.mkdir(parents=True)
    (evaluations / "step_00000004_seed_0.json").write_text(json.dumps(RESULT))
    return run


def test_a_run_becomes_a_model_folder(run, tmp_path):
    out = tmp_path / "model"
    assert here("export", run, out, "--license", "mit").stdout == f"{out}\n"
    assert names(out) == ["README.md", "config.json", "model.safetensors", "samples.png"]
    of_run, exported = open_model(str(run)), open_model(str(out))
    assert exported.step == of_run.step == 6
    assert exported.letters == ["E", "F", "G"]
    assert all(torch.equal(tensor, of_run.tensors[n]) for n, tensor in exported.tensors.items())
    card = (out / "README.md").read_text()
    assert "license: mit" in card
    assert "`set`, with 3 labels: cat, dog, rabbit." in card
    assert "This step was not evaluated." in card
    grid = Image.open(out / "samples.png")
    assert grid.size == (7 * 66 + 2, 3 * 66 + 2 + 16)


def test_a_step_with_its_discriminator_and_its_metrics(run, tmp_path):
    here("export", run, tmp_path / "model", "--checkpoint", 4, "--discriminator", "--no-grid")
    model = open_model(str(tmp_path / "model"), discriminator=True)
    assert (model.step, model.letters) == (4, ["D", "E", "F", "G"])
    card = (tmp_path / "model" / "README.md").read_text()
    assert "protocol demo" in card
    assert "12.50" in card
    assert names(tmp_path / "model") == ["README.md", "config.json", "model.safetensors"]


def test_a_folder_is_exported_again(run, tmp_path):
    here("export", run, tmp_path / "first", "--no-grid")
    here("export", tmp_path / "first", tmp_path / "second")
    assert "There is no sample grid" in (tmp_path / "second" / "README.md").read_text()
    weights = [(tmp_path / f / "model.safetensors").read_bytes() for f in ("first", "second")]
    assert weights[0] == weights[1]


def test_without_validation_images_there_is_no_grid(run, animals, tmp_path, monkeypatch):
    build(str(animals), str(tmp_path / "set"), val_fraction=0)
    index = read_index(str(tmp_path / "set"))
    monkeypatch.setattr(
        sources, "open_readers", lambda *_: [ShardReader(str(tmp_path / "set"), index, "val")]
    )
    done = here("export", run, tmp_path / "model")
    assert done.stderr.startswith("the model card has no sample grid: ")
    assert "domain cat has no images in split val" in done.stderr
    assert "There is no sample grid" in (tmp_path / "model" / "README.md").read_text()


def test_without_the_shards_there_is_no_grid(run, tmp_path, monkeypatch):
    def fail(*_):
        raise UserError("/shards: there are no shards")

    monkeypatch.setattr(sources, "open_readers", fail)
    done = here("export", run, tmp_path / "model")
    assert done.stderr == "the model card has no sample grid: /shards: there are no shards\n"
    assert "samples.png" not in names(tmp_path / "model")


def test_a_file_of_the_authors_is_exported(tmp_path):
    model = tiny_model("stargan", image_size=64, max_width=2048, binary=True)
    g, d = authors.write(str(tmp_path / "7-G.ckpt"), model)
    options = ["--image-size", 64, "--attribute-labels", "--domains", "bear", "cat", "fox"]
    error = here("export", g, tmp_path / "out", *options[:2], code=2).stderr
    assert "has 3 labels: name them (--domains NAME" in error
    here("export", g, tmp_path / "out", *options)
    exported = open_model(str(tmp_path / "out"))
    assert exported.labels == model.labels
    assert exported.letters == ["G"]
    said = authors.Options(model.labels.names, attributes=True, discriminator=d)
    assert open_model(g, options=said).letters == ["G"]
    assert open_model(g, options=said, discriminator=True).letters == ["D", "G"]


def test_graphs_are_written(tmp_path):
    folder.write(str(tmp_path / "model"), tiny_model("a").without("D"), "")
    options = ["--format", "torch", "--precision", "float16"]
    done = here("export", tmp_path / "model", tmp_path / "graphs", *options)
    assert done.stdout == f"{tmp_path / 'graphs'}\n"
    description = json.loads((tmp_path / "graphs" / "model.json").read_text())
    assert (description["precision"], description["step"]) == ("float16", 7)
    assert names(tmp_path / "graphs") == ["model.json", "translate.pt2"]


def test_a_run_is_never_replaced(run):
    before = names(run)
    error = here("export", run, run, "--no-grid", code=2).stderr
    assert error.startswith("error: ")
    assert "holds other files" in error
    assert names(run) == before


def test_push_uploads_the_folder(run, tmp_path, monkeypatch):
    uploads = []

    def upload(folder, name, *, private):
        uploads.append((names(Path(folder)), name, private))
        return "https://hub/me/cats"

    monkeypatch.setattr(hub, "upload", upload)
    out = tmp_path / "model"
    done = here("export", run, out, "--no-grid", "--push", "me/cats", "--private")
    assert done.stdout == f"{out}\nhttps://hub/me/cats\n"
    assert uploads == [(["README.md", "config.json", "model.safetensors"], "me/cats", True)]
    assert 'from_pretrained("me/cats")' in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "onnx", "--push", "me/cats"], "--push: only with --format folder"),
        (["--format", "torch", "--no-grid"], "--no-grid: only with --format folder"),
        (["--precision", "float16"], "--precision: only with --format torch or onnx"),
        (["--private"], "--private: only with --push"),
        (["--push", "cats"], "cats cannot be a name on the hub"),
        (["--push", "me/cats"], "--push: s3://bucket/model is not a local folder"),
    ],
)
def test_options_that_do_not_suit_are_refused(options, message):
    assert message in here("export", "run", "s3://bucket/model", *options, code=2).stderr
