"""Labels of the images of a run's data sources, and functions of them. Pure.

A run reads one data source or several, each with labels of its own (StarGAN: arXiv 1711.09020,
section 3.2). The label of an image is c = [c_1, …, c_n, m]: c_i of the image's own source is
known, the others are zero, and the one-hot mask m identifies the source. With a single source
there is no m.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as fn
from torch import Tensor

from stargan_dist.errors import UserError, printable

# CelebA's own list uses -1 and 1.
BINARY_VALUES = {"1": 1.0, "true": 1.0, "0": 0.0, "-1": 0.0, "false": 0.0}


@dataclass(frozen=True)
class LabelSpace:
    """The labels of one data source: exclusive categories, or binary attributes.

    Attributes:
        name: name of the data source.
        columns: names of the categories or attributes.
        binary: True for attributes, each true or false; False for categories, one per image.
        exclusive: groups of attributes; a translation target sets one and clears the rest.
        key: attribute in a sample's JSON that names the category; empty: its domain does.
    """

    name: str
    columns: tuple[str, ...]
    binary: bool = False
    exclusive: tuple[tuple[str, ...], ...] = ()
    key: str = ""

    @property
    def labels_are_domains(self) -> bool:
        """True if a sample's domain determines its label."""
        return not (self.binary or self.key)

    def group_of(self, column: str) -> tuple[str, ...]:
        """Return the group of exclusive attributes that one belongs to; () without a group."""
        return next((group for group in self.exclusive if column in group), ())

    def encode(self, attributes: Mapping[str, Any], domain: str) -> np.ndarray:
        """Encode a sample's label in this space: float32 (number of columns,) of 0 and 1.

        Args:
            attributes: attributes in the sample's JSON.
            domain: the sample's domain.

        Raises:
            UserError: an attribute is missing or has an unknown value.
        """
        if self.binary:
            values = [_to_binary(name, _attribute(attributes, name)) for name in self.columns]
            return np.array(values, np.float32)
        category = str(_attribute(attributes, self.key)) if self.key else domain
        if category not in self.columns:
            label = f"attribute {self.key}" if self.key else "its domain"
            columns = printable(", ".join(self.columns), 1000)
            raise UserError(f"{label} is {category!r:.100}, not one of {columns}")
        return np.array([category == name for name in self.columns], np.float32)

    def encode_known(self, values: Mapping[str, Any]) -> np.ndarray:
        """Encode an image of which only some attributes are known; the others are taken as false.

        The result is as that of `encode`. For categories it is zero, which does not affect
        targets.

        Raises:
            UserError: an attribute is not of this space or has an unknown value.
        """
        unknown = [name for name in values if not self.binary or name not in self.columns]
        if unknown:
            kind = f"the attributes {', '.join(self.columns)}" if self.binary else "categories"
            raise UserError(f"{unknown[0]} is not an attribute of {self.name}, which has {kind}")
        if not self.binary:
            return np.zeros(len(self.columns), np.float32)
        return self.encode(dict.fromkeys(self.columns, 0) | dict(values), "")


def _attribute(attributes: Mapping[str, Any], name: str) -> Any:
    if attributes.get(name) is None:
        raise UserError(f"it has no attribute {name}")
    return attributes[name]


def _to_binary(name: str, value: Any) -> float:
    """Convert true or false, 1, 0 or -1, or their text, to 1.0 or 0.0."""
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value)
    if text.strip().lower() not in BINARY_VALUES:
        raise UserError(f"attribute {name} is {value!r:.100}, neither true (1) nor false (0, -1)")
    return BINARY_VALUES[text.strip().lower()]


@dataclass(frozen=True)
class Labels:
    """The labels of all data sources of a run.

    A label is a vector c, float (vector_dim,). Where the domains of a single source are the
    labels, batches hold the domain's index, int64, instead.
    """

    spaces: tuple[LabelSpace, ...]

    @property
    def num_labels(self) -> int:
        """Number of categories and attributes of all sources: the classes of D."""
        return sum(len(space.columns) for space in self.spaces)

    @property
    def vector_dim(self) -> int:
        """Length of c, including m if there are several sources."""
        return self.num_labels + (len(self.spaces) if len(self.spaces) > 1 else 0)

    @property
    def by_domain(self) -> bool:
        """True if the labels are the domains of a single source."""
        return len(self.spaces) == 1 and self.spaces[0].labels_are_domains

    @property
    def names(self) -> list[str]:
        """Names of all columns (num_labels,), prefixed by the source's where sources share one."""
        columns = [column for space in self.spaces for column in space.columns]
        return [
            f"{space.name}/{column}" if columns.count(column) > 1 else column
            for space in self.spaces
            for column in space.columns
        ]

    def column_slice(self, source_index: int) -> slice:
        """Return the position of a source's columns in c."""
        begin = sum(len(space.columns) for space in self.spaces[:source_index])
        return slice(begin, begin + len(self.spaces[source_index].columns))

    def vector(self, source_index: int, columns: np.ndarray) -> np.ndarray:
        """Return c, float32 (vector_dim,), of an image of a source.

        Args:
            source_index: the image's data source.
            columns: the image's label in that source's space; other sources' columns are zero.
        """
        c = np.zeros(self.vector_dim, np.float32)
        c[self.column_slice(source_index)] = columns
        if len(self.spaces) > 1:
            c[self.num_labels + source_index] = 1
        return c

    def to_vectors(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        """Convert labels, int64 (B,) or float (B, vector_dim), to vectors c (B, vector_dim)."""
        if y.is_floating_point():
            return y.to(dtype)
        return fn.one_hot(y, self.vector_dim).to(dtype)

    def classification_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the mean classification loss of a batch, a scalar.

        The loss of an image is the cross-entropy over its source's categories, or the sum of the
        binary cross-entropies of its source's attributes. Columns of other sources are unknown
        and contribute neither loss nor gradient.

        Args:
            logits: (B, num_labels).
            y: labels of the batch, int64 (B,) or float (B, vector_dim).
        """
        c = self.to_vectors(y, logits.dtype)
        mask = c[:, self.num_labels :] if len(self.spaces) > 1 else torch.ones_like(c[:, :1])
        losses = [
            _loss(space, logits[:, self.column_slice(i)], c[:, self.column_slice(i)])
            for i, space in enumerate(self.spaces)
        ]
        return (torch.stack(losses, 1) * mask).sum(1).mean()

    def targets(self, y: Tensor) -> list[tuple[str, Tensor]]:
        """Return the names and labels of all translation targets of an image.

        There is one target for each column: a category; an attribute of the image's own source,
        flipped, or set while the rest of its exclusive group is cleared; an attribute of another
        source, set alone.

        Args:
            y: label of the image, int64 () or float (vector_dim,).
        """
        names = iter(self.names)
        return [
            (next(names), self.target(y, source_index, i))
            for source_index, space in enumerate(self.spaces)
            for i in range(len(space.columns))
        ]

    def target(self, y: Tensor, source_index: int, column: int) -> Tensor:
        """Return the label of the target that changes one column of an image's label.

        Args:
            y: label of the image, float (vector_dim,).
            source_index: the data source of the column.
            column: the number of the column among those of its source.

        Returns:
            int64 () if the labels are domains, else float (vector_dim,).
        """
        if self.by_domain:
            return torch.tensor(column, device=y.device)
        known = self._known_columns(y, source_index)
        columns = _target_columns(self.spaces[source_index], known, column)
        return y.new_tensor(self.vector(source_index, columns))

    def _known_columns(self, y: Tensor, source_index: int) -> np.ndarray:
        """Return the columns of a source in an image's label; zeros for images of other sources."""
        # For an image of another source these columns are zero already.
        return y[self.column_slice(source_index)].detach().cpu().float().numpy()

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return {
            "spaces": [
                asdict(space)
                | {"columns": list(space.columns), "exclusive": [list(g) for g in space.exclusive]}
                for space in self.spaces
            ]
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Labels":
        """Invert `to_dict`."""
        return cls(
            tuple(
                LabelSpace(
                    space["name"],
                    tuple(space["columns"]),
                    space["binary"],
                    tuple(map(tuple, space["exclusive"])),
                    space["key"],
                )
                for space in fields["spaces"]
            )
        )


def _loss(space: LabelSpace, logits: Tensor, c: Tensor) -> Tensor:
    """Return the loss (B,) over one source's columns, as if every image were of that source."""
    if space.binary:
        return fn.binary_cross_entropy_with_logits(logits, c, reduction="none").sum(1)
    return -(c * fn.log_softmax(logits, 1)).sum(1)


def _target_columns(space: LabelSpace, known: np.ndarray, column: int) -> np.ndarray:
    """Return the label, in one source's space, of the target that changes `column` of `known`."""
    if not space.binary:
        return np.eye(len(known), dtype=np.float32)[column]
    target, name = known.copy(), space.columns[column]
    group = space.group_of(name)
    if not group:
        target[column] = 1 - target[column]
        return target
    target[[space.columns.index(member) for member in group]] = 0
    target[column] = 1
    return target


def domain_labels(domains: list[str]) -> Labels:
    """Return the labels of a single data source whose domains are its labels."""
    return Labels((LabelSpace("", tuple(domains)),))
