"""Initial weights of a training from a trained model: `--init MODEL`.

G and C are taken whole. In F, E and D, layers that all domains share are taken whole, and those of
a domain by its name. Domains that the model does not have begin with random weights, or with the
mean of all of the model's domains.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from stargan_dist.console.tables import format_table
from stargan_dist.data.labels import Labels
from stargan_dist.errors import UserError
from stargan_dist.models.saved import SavedModel
from stargan_dist.models.tensors import check_shapes
from stargan_dist.nets.blocks import StackedLinear
from stargan_dist.nets.networks import DISCRIMINATORS, Networks
from stargan_dist.objectives.recipes import RunSpec
from stargan_dist.runs.checkpoint import tensors_of_network

MEAN = "mean"
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Inheritance:
    """What a training takes from a model.

    Attributes:
        tensors: `LETTER.PARAMETER` of all networks that are taken.
        table: what was taken, is new or was dropped, for people.
    """

    tensors: dict[str, Tensor]
    table: str


def inherit(
    model: SavedModel, spec: RunSpec, labels: Labels, networks: Networks, new_domains: str
) -> Inheritance:
    """Return initial weights for the networks of a training.

    Args:
        model: the trained model; D and C are taken if they are there.
        spec: the configuration of the training.
        labels: the labels of the training.
        networks: the training's own, with their random weights.
        new_domains: `mean` or `random`.

    Raises:
        UserError: the networks have other forms or sizes; or the labels differ and are inputs of G.
    """
    _check_labels(model, spec, labels)
    old, new = model.labels.names, labels.names
    taken: dict[str, Tensor] = {}
    rows = [["network", "taken", "new", "dropped"]]
    for letter, network in networks.items():
        tensors, own = tensors_of_network(letter, model.tensors), network.state_dict()
        if letter in DISCRIMINATORS and not tensors:
            rows.append([letter, "", f"all: the model has no {letter}", ""])
            continue
        stacked = set() if model.labels == labels else _stacked_names(network)
        for name in stacked & tensors.keys():
            tensors[name] = _by_name(tensors[name], own[name], old, new, new_domains)
        _check_fit(model, spec, letter, tensors, own)
        taken |= {f"{letter}.{name}": tensor for name, tensor in tensors.items()}
        rows.append([letter, *(_row(old, new, new_domains) if stacked else ["all", "", ""])])
    return Inheritance(taken, format_table(rows, left=(0, 1, 2, 3)))


def _check_labels(model: SavedModel, spec: RunSpec, labels: Labels) -> None:
    """Check that the labels may differ, if they do."""
    if model.labels != labels and spec.recipe.with_label:
        raise UserError(
            f"init.model: {model.origin} has the labels {', '.join(model.labels.names)}, and G of "
            f"recipe {spec.config.recipe} takes the label itself: train with the same labels, or "
            "with a recipe that has style codes (f)"
        )


def _stacked_names(network: nn.Module) -> set[str]:
    """Return the names of parameters whose first axis is the domain."""
    return {
        f"{prefix}.{name}"
        for prefix, module in network.named_modules()
        if isinstance(module, StackedLinear | nn.Embedding)
        for name, _ in module.named_parameters()
    }


def _by_name(
    tensor: Tensor, own: Tensor, old: Sequence[str], new: Sequence[str], new_domains: str
) -> Tensor:
    """Return the rows of the new domains, from those of the old domains (K, …) by name.

    The mean of linear layers is the linear layer whose outputs are their mean.
    """
    if tensor.shape[1:] != own.shape[1:] or len(tensor) != len(old):
        return tensor  # refused by its shape
    mean = tensor.mean(0) if new_domains == MEAN else None
    rows = [
        tensor[old.index(name)] if name in old else own[i].cpu() if mean is None else mean
        for i, name in enumerate(new)
    ]
    return torch.stack([row.to(tensor.dtype) for row in rows])


def _check_fit(
    model: SavedModel, spec: RunSpec, letter: str, tensors: dict[str, Tensor], own: Tensors
) -> None:
    """Check that tensors are those of a network; else name the settings that differ."""
    try:
        check_shapes("", tensors, {name: tensor.shape for name, tensor in own.items()})
    except UserError as error:
        here, there = asdict(spec.config.model), asdict(model.spec.config.model)
        differing = [
            f"model.{k} is {there[k]}, here {here[k]}" for k in here if here[k] != there[k]
        ]
        reason = "; ".join(differing) or f"{letter}{error}"
        raise UserError(
            f"init.model: the networks of {model.origin} (recipe {model.config.recipe}) do not "
            f"fit: {reason}"
        ) from error


def _row(old: Sequence[str], new: Sequence[str], new_domains: str) -> list[str]:
    """Return the cells of a network with branches by domain."""
    taken = [name for name in new if name in old]
    added = [name for name in new if name not in old]
    dropped = [name for name in old if name not in new]
    source = f"mean of {', '.join(old)}" if new_domains == MEAN else "random"
    shared = ", ".join(["shared layers", *taken])
    return [shared, f"{', '.join(added)} ({source})" if added else "", ", ".join(dropped)]
