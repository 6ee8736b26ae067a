"""The label of a translation's target, as users name it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stargan_dist.data.labels import Labels
from stargan_dist.errors import UserError


def target_label(
    labels: Labels,
    domain: str | None = None,
    attributes: Mapping[str, Any] | None = None,
    data_source: str | None = None,
) -> Tensor:
    """Return the label of a target: int64 () or float32 (`Labels.vector_dim`,).

    Args:
        domain: a domain or category. It may be left out if there is only one.
        attributes: all attributes that the output has, by name; those left out are false.
        data_source: whose attributes they are, if several data sources have attributes.

    Raises:
        UserError: there is no such label, or it is not named in the way of the model's labels.
    """
    binary = [space.name for space in labels.spaces if space.binary]
    if attributes is not None:
        if domain is not None:
            raise UserError("name a domain or attributes, not both")
        if not binary:
            raise UserError(f"attributes: the labels are domains: name one of {_list(labels)}")
        return _attribute_vector(labels, binary, attributes, data_source)
    if domain is None and len(labels.names) == 1:
        domain = labels.names[0]
    if domain not in labels.names:
        given = f"{domain!r} is not a domain of this model: " if domain is not None else ""
        way = "give attributes, from" if len(binary) == len(labels.spaces) else "name a domain of"
        raise UserError(f"{given}{way} {_list(labels)}")
    return _category(labels, labels.names.index(domain))


def parse_attributes(words: Sequence[str]) -> dict[str, str]:
    """Parse attributes as in a command line: NAME=VALUE; without a value it is 1."""
    pairs = [word.partition("=") for word in words]
    return {name: value or "1" for name, _, value in pairs}


def _list(labels: Labels) -> str:
    return ", ".join(labels.names)


def _category(labels: Labels, column: int) -> Tensor:
    if labels.by_domain:
        return torch.tensor(column)
    for index, space in enumerate(labels.spaces):
        position = column - labels.column_slice(index).start
        if 0 <= position < len(space.columns):
            break
    if space.binary:
        raise UserError(
            f"{labels.names[column]!r} is an attribute: give all attributes of the output "
            f"(attributes={{{labels.names[column]!r}: True, …}})"
        )
    one_hot = np.eye(len(space.columns), dtype=np.float32)[position]
    return torch.from_numpy(labels.vector(index, one_hot))


def _attribute_vector(
    labels: Labels, binary: list[str], attributes: Mapping[str, Any], data_source: str | None
) -> Tensor:
    if data_source is None and len(binary) > 1:
        raise UserError(f"data_source: name one of {', '.join(binary)}")
    name = binary[0] if data_source is None else data_source
    if name not in binary:
        raise UserError(f"data_source: {name!r} is not one of {', '.join(binary)}")
    index = [space.name for space in labels.spaces].index(name)
    columns = labels.spaces[index].encode_known(attributes)
    return torch.from_numpy(labels.vector(index, columns))
