"""A model as graphs that run without this package: files of torch.export or ONNX.

| graph | inputs | output | of which models |
|---|---|---|---|
| `translate` | image, latent, label | output | all; without a latent where G is not given a style |
| `encoder` | image | bottleneck | those whose G encodes a source, into one tensor, without guide |
| `decoder` | bottleneck, style, label | output | the same; each input where G depends on it |
| `mapping` | latent, label | style | with F |
| `style_encoder` | image, label | style | guided by references |

A label is the index of a domain, or the label vector of models that were trained on attributes.
`model.json` describes files, inputs and outputs.
"""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stargan_dist import storage
from stargan_dist.console.progress import progress_bar
from stargan_dist.errors import explained
from stargan_dist.inference import onnx_files
from stargan_dist.inference.model import TrainedModel
from stargan_dist.models import folder
from stargan_dist.models.saved import SavedModel
from stargan_dist.nets.blocks import Encoded
from stargan_dist.nets.fusing import fuse_kernels
from stargan_dist.nets.masks import LandmarkMasks

DESCRIPTION = "model.json"
FORMAT, VERSION = "stargan_dist.graphs", 1
EXAMPLES = 2  # in the batch that is traced; torch.export takes 1 for a constant
PRECISIONS = {"float32": torch.float32, "float16": torch.float16}


class Graph(NamedTuple):
    """A function of a model.

    Attributes:
        inputs: names of its arguments.
        output: name of what it returns.
        compute: the function; it gets the model and the inputs by name.
        letters: the networks that it uses.
        unused: modules of G that it does not use, where G has them.
    """

    inputs: tuple[str, ...]
    output: str
    compute: Callable[..., Tensor]
    letters: str
    unused: tuple[str, ...] = ()


def _translate(
    model: TrainedModel, image: Tensor, label: Tensor, latent: Tensor | None = None
) -> Tensor:
    style = None if latent is None else model.conditioning.style_from_latents(latent, label)
    return _decode_features(model, model.G.encode(image, model.masks(image)), style, label)


def _encode(model: TrainedModel, image: Tensor) -> Tensor:
    bottleneck: Tensor = model.G.encode(image).bottleneck
    return bottleneck


def _decode(
    model: TrainedModel,
    bottleneck: Tensor,
    style: Tensor | None = None,
    label: Tensor | None = None,
) -> Tensor:
    return _decode_features(model, Encoded(bottleneck, {}, model.G.candidates), style, label)


def _decode_features(
    model: TrainedModel, encoded: Encoded, style: Tensor | None, label: Tensor | None
) -> Tensor:
    if style is None:  # len() would fix the batch
        style = encoded.bottleneck.new_zeros(encoded.bottleneck.shape[0], 0)
    vector = style if label is None else model.conditioning.vector(style, label)
    output: Tensor = model.G.decode(encoded, vector)
    return output


def _map(model: TrainedModel, latent: Tensor, label: Tensor) -> Tensor:
    return model.conditioning.style_from_latents(latent, label)


def _encode_style(model: TrainedModel, image: Tensor, label: Tensor) -> Tensor:
    return model.conditioning.style_from_images(image, label)


def graphs_of(model: TrainedModel) -> dict[str, Graph]:
    """Return the graphs of a model by name."""
    latent, style = (("latent",), ("style",)) if model.diverse else ((), ())
    label = ("label",) if model.conditioning.with_label else ()
    letters = "GF" if "F" in model.networks else "G"
    graphs = {
        "translate": Graph(("image", *latent, "label"), "output", _translate, letters),
    }
    # Other encoders return the source, or with the high-pass option several tensors.
    if model.G.encodes and not model.config.model.w_hpf:
        graphs |= {
            "encoder": Graph(("image",), "bottleneck", _encode, "G", ("decoder", "to_rgb")),
            "decoder": Graph(
                ("bottleneck", *style, *label), "output", _decode, "G", ("from_rgb", "encoder")
            ),
        }
    if "F" in model.networks:
        graphs["mapping"] = Graph(("latent", "label"), "style", _map, "F")
    if model.guided_by_references:
        graphs["style_encoder"] = Graph(("image", "label"), "style", _encode_style, "E")
    return graphs


class Value(NamedTuple):
    """An input or output.

    Attributes:
        meaning: what it is, and its range.
        shape: of one item of the batch.
        dtype: `float32` or `int64`.
    """

    meaning: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    def example(self) -> Tensor:
        """Return zeros, a batch of `EXAMPLES`."""
        return torch.zeros(EXAMPLES, *self.shape, dtype=getattr(torch, self.dtype))


def values_of(model: TrainedModel) -> dict[str, Value]:
    """Return the inputs and outputs of the graphs of a model by name."""
    size, dim = model.config.model.image_size, model.config.model.latent_dim
    labels, style_dim = model.labels, model.conditioning.style.dim(model.config.model)
    bottleneck = model.encode(torch.zeros(1, 3, size, size)).bottleneck
    return {
        "image": Value("an RGB image in [-1, 1]", (3, size, size)),
        "latent": Value("drawn from the standard normal distribution", (dim,)),
        "label": Value(f"index of a domain, 0 to {labels.num_labels - 1}", (), "int64")
        if labels.by_domain
        else Value("label vector of the target: 0 or 1 for each name", (labels.vector_dim,)),
        "style": Value("a style code", (style_dim,)),
        "bottleneck": Value("features of the source", tuple(bottleneck.shape[1:])),
        "output": Value("an RGB image in about [-1, 1]: clamp it", (3, size, size)),
    }


# Modules that are traced.


class _Float32Norm(nn.Module):
    """A norm in float32 between layers in float16: squares of large features overflow there."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm.float()

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.norm(x.float())
        return normalised.to(x.dtype)


def _to_float16(network: nn.Module) -> None:
    """Convert a network, except for its norms, in place."""
    network.half()
    for module in [*network.modules()]:
        for name, child in [*module.named_children()]:
            if isinstance(child, nn.InstanceNorm2d | nn.GroupNorm):
                setattr(module, name, _Float32Norm(child))


class GraphModule(nn.Module):
    """A graph and the weights that it uses.

    Its floating-point inputs and its output are float32, whatever the precision of the weights.

    Args:
        graph: one of `graphs_of`.
        model: its model. It is copied.
        dtype: of weights and computation.
    """

    def __init__(
        self, graph: Graph, model: TrainedModel, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.graph, self.model, self.dtype = graph, copy.deepcopy(model), dtype
        for name in {*graph.unused} & {name for name, _ in self.model.G.named_children()}:
            delattr(self.model.G, name)
        self.networks = nn.ModuleDict({name: self.model.networks[name] for name in graph.letters})
        if dtype == torch.float16:
            _to_float16(self.networks)
        if "image" in graph.inputs and isinstance(self.model.masks, LandmarkMasks):
            self.landmarks = self.model.masks.network  # in float32

    def forward(self, *inputs: Tensor) -> Tensor:
        """Compute the output from the inputs in their order."""
        cast = [x.to(self.dtype) if x.is_floating_point() else x for x in inputs]
        named = dict(zip(self.graph.inputs, cast, strict=True))
        return self.graph.compute(self.model, **named).float()


def trace(module: GraphModule, values: dict[str, Value]) -> Any:
    """Return the torch.export program of a graph, for batches of any size."""
    batch = {0: torch.export.Dim("batch")}
    names = module.graph.inputs
    with torch.no_grad():
        program = torch.export.export(
            module.eval(),
            tuple(values[name].example() for name in names),
            dynamic_shapes=(tuple(batch for _ in names),),  # of *inputs
            strict=False,
        )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # has paths of this machine
    return program


# Files.


class FileFormat(NamedTuple):
    """A format of graphs.

    Attributes:
        suffix: of its files.
        save: writes a torch.export program, given its path and the names of inputs and output.
    """

    suffix: str
    save: Callable[[Any, Path, tuple[str, ...], str], None]


def _save_program(program: Any, path: Path, _inputs: tuple[str, ...], _output: str) -> None:
    torch.export.save(program, str(path))


FORMATS = {
    "torch": FileFormat(".pt2", _save_program),
    "onnx": FileFormat(".onnx", onnx_files.save),
}


def write(url: str, saved: SavedModel, file_format: str, precision: str = "float32") -> None:
    """Publish the graphs of a model and their description, complete or not at all.

    An earlier export at the URL is replaced.

    Args:
        url: a folder.
        saved: the model.
        file_format: `torch` or `onnx`.
        precision: `float32` or `float16`, of weights and computation. Inputs and outputs are
            float32.

    Raises:
        UserError: the URL holds other files or cannot be written, a package is missing, or the
            model has the high-pass option and no landmark network.
    """
    model, suffix = inference_model(saved), FORMATS[file_format].suffix
    files = {name: f"{name}{suffix}" for name in graphs_of(model)}
    folder.check_replaceable(url, {DESCRIPTION, *files.values()})
    text = json.dumps(describe(model, files, precision), indent=1, ensure_ascii=False) + "\n"
    try:
        with storage.published_folder(url, last=DESCRIPTION) as staging:
            for name in _with_progress(files):
                save_graph(model, name, staging / files[name], file_format, precision)
            (staging / DESCRIPTION).write_text(text, encoding="utf-8")
    except OSError as error:
        raise explained(f"cannot write {url}: {error}", error) from error


def save_graph(
    model: TrainedModel, name: str, path: Path, file_format: str, precision: str = "float32"
) -> None:
    """Write a graph of a model, whose kernels may be fused, to a local file. See `write`."""
    graph = graphs_of(model)[name]
    program = trace(GraphModule(graph, model, PRECISIONS[precision]), values_of(model))
    FORMATS[file_format].save(program, path, graph.inputs, graph.output)


def inference_model(saved: SavedModel) -> TrainedModel:
    """Return the model in float32 with fused kernels, on the CPU."""
    tensors = {name: tensor.float() for name, tensor in saved.tensors.items()}
    model = TrainedModel.from_saved(replace(saved, tensors=tensors))
    for network in model.networks.values():
        fuse_kernels(network)
    return model


def _with_progress(names: dict[str, str]) -> Iterator[str]:
    with progress_bar(len(names), "graphs", description="export") as bar:
        for name in names:
            yield name
            bar.update(1)


def describe(model: TrainedModel, files: dict[str, str], precision: str) -> dict[str, Any]:
    """Return the contents of `model.json`.

    Args:
        files: the files by graph.
        precision: of weights and computation.
    """
    graphs, values = graphs_of(model), values_of(model)
    used = {name for graph in graphs.values() for name in (*graph.inputs, graph.output)}
    return {
        "format": FORMAT,
        "version": VERSION,
        "recipe": model.config.recipe,
        "step": model.step,
        "image_size": model.config.model.image_size,
        "domains": model.domains,
        "labels": None if model.labels.by_domain else model.labels.to_dict(),
        "precision": precision,
        "graphs": {
            name: {"file": file, "inputs": [*graphs[name].inputs], "output": graphs[name].output}
            for name, file in files.items()
        },
        "values": {
            name: {
                "dtype": value.dtype, "shape": ["batch", *value.shape], "meaning": value.meaning
            }
            for name, value in values.items() if name in used
        },
    }  # fmt: skip
