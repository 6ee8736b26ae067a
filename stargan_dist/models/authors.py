"""Checkpoints of the papers' authors: read into a `SavedModel`, and written in their format.

StarGAN v2 (`NNNNNN_nets_ema.ckpt`, `NNNNNN_nets.ckpt`): a state dict for each network. StarGAN
(`NNNNNN-G.ckpt`, `NNNNNN-D.ckpt`): one state dict in each file. `RULES` name their tensors by ours;
a stacked tensor of ours is one tensor per domain there. Sizes follow from shapes, and every name
must match.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stargan_dist import config as configs
from stargan_dist import storage
from stargan_dist.config import Config
from stargan_dist.data.labels import Labels, LabelSpace, domain_labels
from stargan_dist.errors import UserError, explained
from stargan_dist.models import landmarks, torch_file
from stargan_dist.models.saved import SavedModel, expected_shapes
from stargan_dist.models.tensors import some_names
from stargan_dist.nets.blocks import HighPass

Tensors = dict[str, Tensor]
StateDicts = dict[str, Tensors]  # of their file, by the name of the network

# Domains of the published files, by the number of domains.
KNOWN_DOMAINS = {2: "female male (CelebA-HQ)", 3: "cat dog wild (AFHQ)"}
KNOWN_ATTRIBUTES = "Black_Hair Blond_Hair Brown_Hair Male Young (CelebA)"
MAPPING_LAYERS = 4  # shared, and of each domain


class Rule(NamedTuple):
    """How a tensor of ours is named in the authors' file.

    Attributes:
        ours: pattern of its name.
        network: key of the network in their file.
        theirs: its name there. `{k}` is the domain, where each has a tensor; `{head}` is the index
            of D's last layer.
    """

    ours: str
    network: str
    theirs: str


STARGAN_V2 = (
    Rule(r"G\.(from_rgb|to_rgb)\.(.*)", "generator", r"\1.\2"),
    Rule(r"G\.encoder\.(.*)", "generator", r"encode.\1"),
    Rule(r"G\.decoder\.(\d+)\.adain(\d)\.affine\.(.*)", "generator", r"decode.\1.norm\2.fc.\3"),
    Rule(r"G\.decoder\.(.*)", "generator", r"decode.\1"),
    *(
        Rule(rf"F\.shared\.{i}\.(.*)", "mapping_network", rf"shared.{2 * i}.\1")
        for i in range(MAPPING_LAYERS)
    ),
    *(
        Rule(rf"F\.branches\.{i}\.(.*)", "mapping_network", rf"unshared.{{k}}.{2 * i}.\1")
        for i in range(MAPPING_LAYERS)
    ),
    Rule(r"E\.trunk\.(.*)", "style_encoder", r"shared.\1"),
    Rule(r"E\.head\.(.*)", "style_encoder", r"unshared.{k}.\1"),
    Rule(r"D\.trunk\.(.*)", "discriminator", r"main.\1"),
    Rule(r"D\.head\.(.*)", "discriminator", r"main.{head}.\1"),  # a 1×1 convolution there
)
STARGAN = (
    Rule(r"G\.body\.(.*)", "G", r"main.\1"),
    Rule(r"G\.to_rgb\.0\.(.*)", "G", r"main.21.\1"),
    Rule(r"D\.trunk\.(.*)", "D", r"main.\1"),
    Rule(r"D\.src\.(.*)", "D", r"conv1.\1"),
    Rule(r"D\.cls\.(.*)", "D", r"conv2.\1"),
)
# Buffers of theirs without a meaning here: their norms never used the statistics that they track.
STATISTICS = re.compile(r".*\.(running_mean|running_var|num_batches_tracked)")
HIGH_PASS = "hpf.filter"


@dataclass(frozen=True)
class Options:
    """What the authors' files do not say.

    Attributes:
        domains: names of the domains or, of StarGAN, perhaps of the attributes. In the order of
            training: sorted names of folders, or the order of --selected_attrs.
        attributes: the names are binary attributes.
        rafd_labels: names of the categories of RaFD, of a StarGAN that was trained on CelebA and
            RaFD; `domains` are then the attributes of CelebA.
        w_hpf: weight of the high-pass option, for files without `hpf.filter`.
        image_size: of StarGAN, in pixels, where its D is not given.
        discriminator: file of StarGAN's D.
        landmarks: landmark network of the high-pass option. Empty: the model's own.
    """

    domains: Sequence[str] = ()
    attributes: bool = False
    w_hpf: float | None = None
    image_size: int | None = None
    discriminator: str = ""
    landmarks: str = ""
    rafd_labels: Sequence[str] = ()


# Reading.


def read(url: str, options: Options = Options()) -> SavedModel:
    """Read a checkpoint of the authors.

    Raises:
        UserError: it is not one of theirs, holds code, does not match the options, or the options
            lack what it does not say.
    """
    content = torch_file.load(url)
    if isinstance(content.get("generator"), dict):
        if "param_groups" in content["generator"]:
            raise UserError(f"{url} is a file of optimizers: name the networks' (…_nets_ema.ckpt)")
        return _read_v2(
            url,
            {name: torch_file.without_prefix(value) for name, value in content.items()},
            options,
        )
    networks = {"G": torch_file.without_prefix(content)}
    if "conv2.weight" in networks["G"]:
        raise UserError(f"{url} is D of StarGAN: name G's file, and this one as --discriminator")
    if "main.21.weight" not in networks["G"]:
        raise UserError(f"{url} is not a checkpoint of the authors, with networks by name or one G")
    if options.discriminator:
        networks["D"] = torch_file.without_prefix(torch_file.load(options.discriminator))
    return _read_stargan(url, networks, options)


def _read_v2(url: str, networks: StateDicts, options: Options) -> SavedModel:
    fan = networks.pop("fan", None)  # the landmark network of the high-pass option
    unknown = networks.keys() - {rule.network for rule in STARGAN_V2}
    if unknown:
        raise UserError(
            f"{url} has the networks {some_names(unknown)}, which StarGAN v2 does not have"
        )
    sizes = _sizes_of_v2(url, networks)
    num_domains = len({n.split(".")[1] for n in networks["mapping_network"] if "unshared" in n})
    filter_ = networks["generator"].pop(HIGH_PASS, None)
    sizes["w_hpf"] = _weight_of_high_pass(url, networks, sizes["image_size"], filter_, options)
    labels = domain_labels(list(_names(url, num_domains, options, KNOWN_DOMAINS.get(num_domains))))
    config = Config(recipe="f", model=_model(url, sizes))
    model = _convert(url, networks, STARGAN_V2, config, labels)
    if fan is None or not model.config.model.w_hpf:
        return model
    return replace(model, landmarks=landmarks.of_authors(f"{url}: fan", fan))


def _model(url: str, sizes: dict[str, Any]) -> configs.ModelConfig:
    try:
        return configs.model_from_dict(sizes)
    except UserError as error:
        raise UserError(f"{url}: the shapes of its tensors do not fit: {error}") from error


def _sizes_of_v2(url: str, networks: StateDicts) -> dict[str, Any]:
    """Return the sizes of the networks by the names of `ModelConfig`."""
    try:
        generator, mapping = networks["generator"], networks["mapping_network"]
        hidden, latent_dim = mapping["shared.0.weight"].shape
        return {
            "image_size": 2**14 // len(generator["from_rgb.weight"]),
            "max_width": 512,
            "latent_dim": latent_dim,
            "style_dim": generator["decode.0.norm1.fc.weight"].shape[1],
            "mapping_dim": hidden,
        }
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise UserError(
            f"{url} is not a checkpoint of StarGAN v2's authors: it lacks {error}"
        ) from error


def _weight_of_high_pass(
    url: str, networks: StateDicts, image_size: int, kernel: Tensor | None, options: Options
) -> float:
    """Return w_hpf: 8 by the centre of the filter, or as given. 0 for G without the option."""
    blocks = {name.split(".")[1] for name in networks["generator"] if name.startswith("encode.")}
    if len(blocks) == int(math.log2(max(image_size, 1))) - 2:
        return 0.0
    if kernel is not None:
        return float(f"{8 / float(kernel.flatten()[4]):.6g}")  # of a float32
    if options.w_hpf is None:
        raise UserError(
            f"{url} was trained with the high-pass option and does not say its weight: name it "
            "(--w-hpf; 1 for the published CelebA-HQ file)"
        )
    return options.w_hpf


def _names(url: str, count: int, options: Options, known: str | None) -> Sequence[str]:
    """Return the names of the labels.

    Raises:
        UserError: there are none, or their number is not `count`.
    """
    if len(options.domains) == count:
        return options.domains
    advice = f"; those of the published file: {known}" if known else ""
    given = f", not {len(options.domains)}" if options.domains else ""
    raise UserError(f"{url} has {count} labels: name them{given} (--domains NAME …{advice})")


def _read_stargan(url: str, networks: StateDicts, options: Options) -> SavedModel:
    networks = {
        letter: {name: t for name, t in tensors.items() if not STATISTICS.fullmatch(name)}
        for letter, tensors in networks.items()
    }
    width, channels = networks["G"]["main.0.weight"].shape[:2]
    sizes = {
        "image_size": _size_of_stargan(url, networks, options),
        "base_width": width,
        "max_width": 2048,
    }
    config = Config(recipe="stargan", model=_model(url, sizes))
    labels = Labels(_label_spaces(url, channels - 3, options))
    return _convert(url, networks, STARGAN, config, labels)


def _label_spaces(url: str, count: int, options: Options) -> tuple[LabelSpace, ...]:
    """Return the labels of StarGAN, given the number of inputs of its G beside the image."""
    if not options.rafd_labels:
        known = f"{KNOWN_ATTRIBUTES}; a model of CelebA and RaFD needs --rafd-labels too"
        names = _names(url, count, options, known)
        return (LabelSpace("", tuple(names), binary=options.attributes),)
    others = len(options.rafd_labels) + 2  # the mask has an input for each set
    names = _names(f"{url}, beside RaFD's,", count - others, options, KNOWN_ATTRIBUTES)
    return (
        LabelSpace("celeba", tuple(names), binary=True),
        LabelSpace("rafd", tuple(options.rafd_labels)),
    )


def _size_of_stargan(url: str, networks: StateDicts, options: Options) -> int:
    """Return the image size, which D's shapes show and G's do not."""
    tensors = networks.get("D", {})
    if "conv2.weight" in tensors:
        halvings = len([name for name in tensors if re.fullmatch(r"main\.\d+\.weight", name)])
        return int(tensors["conv2.weight"].shape[2]) << halvings
    if options.image_size is None:
        raise UserError(
            f"{url} does not say the size of its images: name it (--image-size 128), or D's file "
            "(--discriminator)"
        )
    return options.image_size


def _convert(
    url: str, networks: StateDicts, rules: Sequence[Rule], config: Config, labels: Labels
) -> SavedModel:
    """Build the model from tensors of theirs. All of them must be used."""
    remaining = {name: dict(tensors) for name, tensors in networks.items()}
    tensors: Tensors = {}
    empty = SavedModel(url, config, labels, 0, {})
    for letter, shapes in expected_shapes(empty).items():
        for name, shape in shapes.items():
            rule, theirs = _their_names(f"{letter}.{name}", rules, config, labels.num_labels)
            if letter == "D" and rule.network not in networks:
                continue
            found = [remaining.get(rule.network, {}).pop(key, None) for key in theirs]
            where = f"{url}: {rule.network}"
            if any(tensor is None for tensor in found):
                raise UserError(f"{where} lacks {theirs[0]}")
            tensors[f"{letter}.{name}"] = _joined(f"{where}: {theirs[0]}", found, shape)
    unused = [f"{network}.{name}" for network, rest in remaining.items() for name in rest]
    if unused:
        raise UserError(f"{url} has {some_names(unused)}, which the authors' networks do not have")
    return SavedModel(url, config, labels, 0, tensors).check()


def _joined(where: str, found: Sequence[Any], shape: torch.Size) -> Tensor:
    """Return tensors of theirs as one of ours. Axes of length 1 may differ."""
    sizes = [size for size in (len(found), *found[0].shape) if size != 1]
    if len({tensor.shape for tensor in found}) > 1 or sizes != [
        size for size in shape if size != 1
    ]:
        raise UserError(f"{where} has shape {tuple(found[0].shape)}, which does not fit the others")
    return torch.stack([*found]).reshape(shape)


def _their_names(
    name: str, rules: Sequence[Rule], config: Config, num_domains: int
) -> tuple[Rule, list[str]]:
    """Return the rule and the names, in their file, of a tensor of ours."""
    for rule in rules:
        match = re.fullmatch(rule.ours, name)
        if match:
            template = match.expand(rule.theirs)
            domains = range(num_domains if "{k}" in template else 1)
            head = int(math.log2(config.model.image_size)) + 2
            return rule, [template.format(k=k, head=head) for k in domains]
    raise UserError(f"the authors' networks have no {name}")


# Writing.


def write(url: str, model: SavedModel) -> list[str]:
    """Write a model in the authors' format, which their programs load. Return the files' URLs.

    StarGAN's G is one file; its D, if the model has it, another: `…-D.ckpt` for `…-G.ckpt`.

    Raises:
        UserError: their programs cannot represent the model, or a file cannot be written.
    """
    networks = to_state_dicts(model)
    if "G" not in networks:
        contents: dict[str, Any] = {url: networks}
    else:
        stem = url.removesuffix(".ckpt").removesuffix("-G")
        # In this order, whatever that of the model's tensors.
        letters = [letter for letter in ("G", "D") if letter in networks]
        contents = {f"{stem}-{letter}.ckpt": networks[letter] for letter in letters}
    for file, content in contents.items():
        buffer = io.BytesIO()
        # The format of before torch 1.6: their programs pin 1.4.
        torch.save(content, buffer, _use_new_zipfile_serialization=False)
        try:
            storage.write_bytes(file, buffer.getvalue())
        except OSError as error:
            raise explained(f"cannot write {file}: {error}", error) from error
    return list(contents)


def to_state_dicts(model: SavedModel) -> StateDicts:
    """Return the state dicts of a model as the authors' networks name them.

    Raises:
        UserError: their programs cannot represent the model.
    """
    networks: StateDicts = {}
    config, is_v2 = model.spec.config, "F" in model.letters
    if not is_v2 and "G.body.0.weight" not in model.tensors:
        raise UserError(
            f"{model.origin}: the authors' programs have the networks of StarGAN and StarGAN v2 "
            f"alone, not those of recipe {config.recipe}: export it (python -m stargan_dist.export)"
        )
    _check_sizes(model.origin, config.model, is_v2=is_v2)
    for name, tensor in model.tensors.items():
        rules = STARGAN_V2 if is_v2 else STARGAN
        rule, theirs = _their_names(name, rules, config, model.labels.num_labels)
        if "{k}" in rule.theirs:
            pieces = list(tensor.unbind(0))
        else:
            pieces = [_as_convolution(tensor) if "{head}" in rule.theirs else tensor]
        for key, piece in zip(theirs, pieces, strict=True):
            networks.setdefault(rule.network, {})[key] = piece.clone()
    if model.landmarks:
        if not model.landmarks.is_published:
            raise UserError(
                f"{model.origin}: the authors' programs have the published landmark network alone"
            )
        networks["fan"] = dict(model.landmarks.tensors)
    if config.model.w_hpf:
        networks["generator"][HIGH_PASS] = HighPass(config.model.w_hpf).kernel
    if not is_v2:
        networks["G"] |= _statistics(networks["G"])
    return networks


def _as_convolution(tensor: Tensor) -> Tensor:
    """Return a parameter of D's head, weight (K, 1, C) or bias (K, 1), as of a 1×1 convolution."""
    return tensor[:, 0, :, None, None] if tensor.dim() == 3 else tensor[:, 0]


def _statistics(tensors: Tensors) -> Tensors:
    """Return the initial statistics of StarGAN's norms, which its program requires and ignores."""
    added: Tensors = {}
    for name, bias in tensors.items():
        if name.endswith(".bias"):  # of a norm: the convolutions of G have none
            norm = name.removesuffix(".bias")
            added[f"{norm}.running_mean"] = torch.zeros_like(bias)
            added[f"{norm}.running_var"] = torch.ones_like(bias)
            added[f"{norm}.num_batches_tracked"] = torch.tensor(0)
    return added


def _check_sizes(origin: str, sizes: configs.ModelConfig, *, is_v2: bool) -> None:
    """Check the sizes that the authors' programs fix, or cannot have."""
    published = 2**14 // sizes.image_size
    rules = (
        ("base_width", not is_v2 or sizes.base_width in (0, published), f"it is {published} there"),
        ("max_width", sizes.max_width == (512 if is_v2 else 2048), "it is 512, StarGAN: 2048"),
        ("mapping_dim", not is_v2 or sizes.mapping_dim == 512, "it is 512 there"),
        ("mapping", not is_v2 or sizes.mapping == "branches", "it is branches there"),
        ("image_size", is_v2 or sizes.image_size >= 64, "it is at least 64 there"),
    )
    for name, fits, reason in rules:
        if not fits:
            value = getattr(sizes, name)
            raise UserError(
                f"{origin}: the authors' programs cannot have model.{name} {value}: {reason}"
            )
