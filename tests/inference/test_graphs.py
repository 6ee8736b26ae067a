"""Exported graphs compute what the networks compute, in other programs and for any batch."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from stargan_dist.errors import UserError
from stargan_dist.inference import graphs
from stargan_dist.objectives.recipes import TABLE
from tests.helpers.models import tiny_model

TOLERANCE = 1e-4  # of images in [-1, 1] in float32, by other kernels
ALL = {"translate", "encoder", "decoder", "mapping", "style_encoder"}
GRAPHS = dict.fromkeys(TABLE, ALL) | {
    "cyclegan": {"translate"}, "stargan": {"translate"}, "a": {"translate"}, "b": {"translate"},
    "c": {"translate", "encoder", "decoder"}, "c_acgan": {"translate", "encoder", "decoder"},
    "d": {"translate", "encoder", "decoder"},
    "munit": {"translate", "encoder", "decoder", "style_encoder"},
    "drit": ALL - {"mapping"}, "msgan": ALL - {"mapping"},
}  # fmt: skip
# Those that run always, by format; the others have the same networks, or other tests export them.
QUICK = {"torch": ("stargan",), "onnx": ()}
CASES = [
    pytest.param(recipe, name, marks=() if recipe in QUICK[name] else pytest.mark.slow)
    for name in graphs.FORMATS
    for recipe in TABLE
]

# A program of others, with torch alone.
PROGRAM = """
import sys
sys.modules["stargan_dist"] = None  # an import of it fails
import torch
from PIL import Image
from torch import nn
program = torch.export.load(sys.argv[1]).module()
batches = torch.load(sys.argv[2])
torch.save([program(*inputs) for inputs in batches], sys.argv[3])
"""


def model_of(recipe, **options):
    """Return a model for inference whose styles and biases matter."""
    saved = tiny_model(recipe, **options).without("D")
    g = torch.Generator().manual_seed(1)
    for tensor in saved.tensors.values():
        if tensor.dim() == 1:
            tensor.copy_(torch.randn(tensor.shape, generator=g).to(tensor.dtype) / 2)
    return graphs.inference_model(saved)


def draw(model, names, batch):
    """Return random inputs."""
    g = torch.Generator().manual_seed(batch)
    values = graphs.values_of(model)
    return [
        torch.randint(len(model.domains), (batch,), generator=g)
        if values[name].dtype == "int64"
        else torch.randn(batch, *values[name].shape, generator=g).clamp(-1, 1)
        for name in names
    ]


@torch.no_grad()
def expected(model, name, inputs):
    """Return the output of a graph, from the functions that translate elsewhere."""
    graph = graphs.graphs_of(model)[name]
    given = dict(zip(graph.inputs, inputs, strict=True))
    if name == "translate":
        z = given.get("latent", torch.zeros(len(inputs[0]), model.config.model.latent_dim))
        return model.from_latents(given["image"], given["label"], z)
    if name == "encoder":
        return model.encode(given["image"]).bottleneck
    if name == "mapping":
        return model.condition_on_latents(given["latent"], given["label"])
    if name == "style_encoder":
        return model.condition_on_references(given["image"], given["label"])
    return graph.compute(model, **given)


def run_torch(path, _names, inputs):
    return torch.export.load(path).module()(*inputs)


def run_onnx(path, names, inputs):
    session = onnxruntime.InferenceSession(str(path))
    feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    return torch.from_numpy(session.run(None, feed)[0])


def close(outputs, wanted, tolerance=TOLERANCE):
    return outputs.dtype == torch.float32 and (outputs - wanted).abs().max() <= tolerance


@pytest.mark.parametrize("recipe", TABLE)
def test_the_graphs_of_every_recipe(recipe):
    assert graphs.graphs_of(model_of(recipe)).keys() == GRAPHS[recipe]


@pytest.mark.parametrize("recipe", ["d", "munit"])
def test_encoder_and_decoder_translate_together(recipe):
    """The style of these recipes is the latent."""
    model = model_of(recipe, domains=("bear", "cat"))
    image, latent, _ = draw(model, ("image", "latent", "label"), 3)
    for label in (torch.tensor([0, 1, 0]), torch.tensor([1, 0, 1])):
        values = {"image": image, "style": latent, "label": label}
        for name in ("encoder", "decoder"):
            graph = graphs.graphs_of(model)[name]
            module = graphs.GraphModule(graph, model)
            with torch.no_grad():
                values[graph.output] = module(*(values[name] for name in graph.inputs))
        wanted = expected(model, "translate", (image, latent, label))
        assert close(values["output"], wanted)
        assert not close(values["output"], wanted.roll(1, 0))


@pytest.mark.parametrize(("recipe", "file_format"), CASES)
def test_every_recipe_translates_in_other_programs(tmp_path, recipe, file_format):
    model = model_of(recipe)
    names = graphs.graphs_of(model)["translate"].inputs
    path = tmp_path / f"translate{graphs.FORMATS[file_format].suffix}"
    graphs.save_graph(model, "translate", path, file_format)
    run = run_onnx if file_format == "onnx" else run_torch
    for batch in (1, 3):
        inputs = draw(model, names, batch)
        wanted = expected(model, "translate", inputs)
        assert wanted.abs().max() > 0.1
        assert close(run(path, names, inputs), wanted)


@torch.no_grad()
def test_a_decoder_chooses_among_the_features_of_encoders_of_both_domains():
    model = model_of("drit", domains=["bear", "cat"])
    encoder, decoder, whole = (
        graphs.GraphModule(graphs.graphs_of(model)[name], model)
        for name in ("encoder", "decoder", "translate")
    )
    image, latent, label = draw(model, ("image", "latent", "label"), 4)
    output = decoder(encoder(image), latent, label)
    assert output.abs().max() > 0.1
    assert torch.equal(output, whole(image, latent, label))


@pytest.fixture(scope="module", params=["torch", "onnx"])
def written(request, tmp_path_factory):
    """Return a model, the folder of all of its graphs, and their format."""
    saved = tiny_model("f").without("D")
    path = tmp_path_factory.mktemp("graphs") / "out"
    graphs.write(str(path), saved, request.param)
    return graphs.inference_model(saved), path, request.param


def test_the_description_is_enough_to_run_every_graph(written, tmp_path):
    model, path, file_format = written
    description = json.loads((path / "model.json").read_text())
    assert description["domains"] == model.domains
    assert description["graphs"].keys() == ALL
    assert {p.name for p in path.iterdir()} == {
        "model.json", *(graph["file"] for graph in description["graphs"].values())
    }  # fmt: skip
    for name, graph in description["graphs"].items():
        run = run_onnx if file_format == "onnx" else run_torch
        for batch in (1, 3):
            inputs = draw(model, graph["inputs"], batch)
            output = run(path / graph["file"], graph["inputs"], inputs)
            assert close(output, expected(model, name, inputs)), name
            for value, x in zip(
                (*graph["inputs"], graph["output"]), (*inputs, output), strict=True
            ):
                described = description["values"][value]
                assert described["shape"] == ["batch", *x.shape[1:]]
                assert getattr(torch, described["dtype"]) == x.dtype


def test_files_hold_no_unused_weights_and_no_paths(written):
    _, path, _ = written
    package = str(Path(graphs.__file__).parent.parent).encode()
    for file in path.iterdir():
        assert package not in file.read_bytes(), file
    (encoder,) = path.glob("encoder.*")
    (decoder,) = path.glob("decoder.*")
    assert b"encoder" in encoder.read_bytes()
    assert b"decoder" not in encoder.read_bytes()
    assert b"from_rgb" not in decoder.read_bytes()


@pytest.mark.parametrize("written", ["torch"], indirect=True)
def test_a_program_runs_in_a_process_without_this_package(written, tmp_path):
    model, path, _ = written
    batches = [draw(model, ("image", "latent", "label"), batch) for batch in (1, 3)]
    torch.save(batches, tmp_path / "inputs.pt")
    files = [path / "translate.pt2", tmp_path / "inputs.pt", tmp_path / "outputs.pt"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, files)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for inputs, output in zip(batches, torch.load(files[2]), strict=True):
        assert close(output, expected(model, "translate", inputs))


def test_label_vectors_of_attributes(tmp_path):
    model = model_of("a", domains=("black", "blond", "male"), binary=True)
    graphs.save_graph(model, "translate", tmp_path / "translate.onnx", "onnx")
    image, _ = inputs = [draw(model, ["image"], 3)[0], torch.eye(3)]
    output = run_onnx(tmp_path / "translate.onnx", ("image", "label"), inputs)
    wanted = model.translate(image, inputs[1])
    assert close(output, wanted)
    assert not close(output, wanted.roll(1, 0))
    assert graphs.values_of(model)["label"].shape == (3,)


def test_the_program_of_a_model_in_float64_computes_in_float32():
    saved = tiny_model("f", dtype=torch.float64)
    assert graphs.inference_model(saved).dtype == torch.float32


# float16.


@pytest.mark.parametrize("file_format", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_float16_has_float32_inputs_and_outputs_and_smaller_files(tmp_path, file_format):
    model = model_of("f", base_width=64, max_width=64)
    names, path = ("bottleneck", "style"), tmp_path / f"decoder{graphs.FORMATS[file_format].suffix}"
    graphs.save_graph(model, "decoder", path, file_format, "float16")
    parameters = sum(p.numel() for p in model.G.decoder.parameters())
    assert 2 * parameters < path.stat().st_size < 3.5 * parameters  # float32: 4
    run = run_onnx if file_format == "onnx" else run_torch
    inputs = draw(model, names, 3)
    wanted = expected(model, "decoder", inputs)
    output = run(path, names, inputs)
    assert close(output, wanted, 1e-2 * wanted.abs().max())
    assert not close(output, wanted, 1e-6)


def test_norms_of_float16_compute_in_float32():
    model = model_of("f")
    graph = graphs.graphs_of(model)["encoder"]
    module = graphs.GraphModule(graph, model, torch.float16)
    dtypes = {nn.InstanceNorm2d: set(), nn.Conv2d: set()}
    for layer in module.modules():
        if type(layer) in dtypes:
            layer.register_forward_pre_hook(lambda m, x: dtypes[type(m)].add(x[0].dtype))
    with torch.no_grad():
        module(*draw(model, graph.inputs, 1))
    assert dtypes == {nn.InstanceNorm2d: {torch.float32}, nn.Conv2d: {torch.float16}}


# Refusals.


def test_other_files_are_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"holds other files \(thesis.tex\): name a new folder"):
        graphs.write(str(tmp_path), tiny_model("a").without("D"), "torch")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_earlier_export_is_replaced(tmp_path):
    for step in (1, 2):
        saved = replace(tiny_model("a").without("D"), step=step)
        graphs.write(str(tmp_path / "out"), saved, "torch")
    assert json.loads((tmp_path / "out" / "model.json").read_text())["step"] == 2


def test_a_missing_package_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"pip install 'stargan_dist\[onnx\]'"):
        graphs.write(str(tmp_path / "out"), tiny_model("a").without("D"), "onnx")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("file_format", ["onnx", pytest.param("torch", marks=pytest.mark.slow)])
def test_a_graph_of_the_high_pass_option_makes_its_own_masks(tmp_path, file_format):
    model = model_of("f", w_hpf=1.0)
    assert graphs.graphs_of(model).keys() == {"translate", "mapping", "style_encoder"}
    path, names = tmp_path / f"x{graphs.FORMATS[file_format].suffix}", ("image", "latent", "label")
    graphs.save_graph(model, "translate", path, file_format)
    run = run_onnx if file_format == "onnx" else run_torch
    for batch in (1, 3):
        inputs = draw(model, names, batch)
        wanted = expected(model, "translate", inputs)
        assert close(run(path, names, inputs), wanted)
        other = draw(model, names, batch + 7)[0][:batch]
        masks = model.masks(other)
        mixed = model.G(inputs[0], model.condition_on_latents(*inputs[1:]), masks)
        assert (mixed - wanted).abs().max() > 10 * TOLERANCE  # masks matter


def test_the_high_pass_option_without_masks_is_refused(tmp_path):
    model = replace(tiny_model("f", image_size=64, w_hpf=1), landmarks=None)
    with pytest.raises(UserError, match="high-pass option"):
        graphs.write(str(tmp_path / "out"), model, "torch")


def test_the_example_of_the_documentation_runs(written, tmp_path, monkeypatch):
    _, path, file_format = written
    page = Path(graphs.__file__).parents[2] / "docs" / "export.md"
    blocks = re.findall(r"```\n(import .*?)```", page.read_text(), re.DOTALL)
    (code,) = [block for block in blocks if ("onnxruntime" in block) == (file_format == "onnx")]
    code = re.sub(r'"exported/\w+/', f'"{path}/', code)
    code = code.replace("256", "32").replace("1, 16", "1, 4")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (50, 40), "red").save("cat.jpg")
    names = {"image": torch.zeros(1, 3, 32, 32)}
    exec(code, names)
    assert names["output"].shape == (1, 3, 32, 32)
    if file_format == "onnx":
        assert Image.open("output.png").size == (32, 32)
