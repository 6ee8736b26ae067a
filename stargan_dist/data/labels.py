"""What the images of a run's data sets are labelled with, and what is made of it: pure.

One data set or several, each with labels of its own (StarGAN: arXiv 1711.09020, section 3.2): the
label of an image is c = [c_1, …, c_n, m]. Only c_i of its own set is known, the others are zero,
and m, one-hot, names the set. With one set there is no m.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as fn
from torch import Tensor

from stargan_dist.errors import UserError

# CelebA's own list has -1 and 1.
TRUTH = {"1": 1.0, "true": 1.0, "0": 0.0, "-1": 0.0, "false": 0.0}


@dataclass(frozen=True)
class LabelSpace:
    """What one data set knows of its images: which of some categories an image is of, or which
    of some binary attributes hold for it.

    Attributes:
        name: of the data set.
        columns: names of the categories or attributes.
        binary: attributes, each of which holds or not; else categories, one of which holds.
        exclusive: of attributes: groups of which, in a target, one is set and the rest cleared.
        key: of categories: what names it in a sample's attributes; empty: its domain does.
    """

    name: str
    columns: tuple[str, ...]
    binary: bool = False
    exclusive: tuple[tuple[str, ...], ...] = ()
    key: str = ""

    @property
    def labels_are_domains(self) -> bool:
        """Whether a sample's domain tells its label."""
        return not (self.binary or self.key)

    def encode(self, attributes: Mapping[str, Any], domain: str) -> np.ndarray:
        """This set's part of the label of a sample: float32 (number of columns,) of 0 and 1.

        Args:
            attributes: as the sample's JSON has them.
            domain: the sample's.

        Raises:
            UserError: an attribute is missing, or has another value than is known.
        """
        if self.binary:
            values = [_truth(name, _attribute(attributes, name)) for name in self.columns]
            return np.array(values, np.float32)
        category = str(_attribute(attributes, self.key)) if self.key else domain
        if category not in self.columns:
            where = f"attribute {self.key}" if self.key else "its domain"
            raise UserError(f"{where} is {category!r}, not one of {', '.join(self.columns)}")
        return np.array([category == name for name in self.columns], np.float32)

    def encode_known(self, values: Mapping[str, Any]) -> np.ndarray:
        """As `own`, of an image of which some attributes are known: the others do not hold. Of a
        set of categories all are zero, which is of no influence on targets.

        Raises:
            UserError: an attribute is not of this set, or has another value than is known.
        """
        unknown = [name for name in values if not self.binary or name not in self.columns]
        if unknown:
            held = f"the attributes {', '.join(self.columns)}" if self.binary else "categories"
            raise UserError(f"{unknown[0]} is no attribute of {self.name}, which has {held}")
        if not self.binary:
            return np.zeros(len(self.columns), np.float32)
        return self.encode(dict.fromkeys(self.columns, 0) | dict(values), "")


def _attribute(attributes: Mapping[str, Any], name: str) -> Any:
    if attributes.get(name) is None:
        raise UserError(f"it has no attribute {name}")
    return attributes[name]


def _truth(name: str, value: Any) -> float:
    """1 or 0 of true or false, 1, 0 or -1, or what is written so."""
    written = str(int(value) if isinstance(value, float) and value.is_integer() else value)
    if written.strip().lower() not in TRUTH:
        raise UserError(f"attribute {name} is {value!r}, neither true (1) nor false (0, -1)")
    return TRUTH[written.strip().lower()]


@dataclass(frozen=True)
class Labels:
    """The labels of a run's data sets, and c of their images.

    A label is a vector c, float (size,); but if the domains of a single set are the labels, it
    travels as the domain's number, int64.
    """

    spaces: tuple[LabelSpace, ...]

    @property
    def num_labels(self) -> int:
        """The number of categories and attributes of all sets: what D classifies."""
        return sum(len(space.columns) for space in self.spaces)

    @property
    def vector_dim(self) -> int:
        """The length of c, with m if there are several sets."""
        return self.num_labels + (len(self.spaces) if len(self.spaces) > 1 else 0)

    @property
    def by_domain(self) -> bool:
        """Whether the labels are the domains of a single set."""
        return len(self.spaces) == 1 and self.spaces[0].labels_are_domains

    @property
    def names(self) -> list[str]:
        """Of all columns (known,); with the set's name where sets share one."""
        columns = [column for space in self.spaces for column in space.columns]
        return [
            f"{space.name}/{column}" if columns.count(column) > 1 else column
            for space in self.spaces
            for column in space.columns
        ]

    def column_slice(self, number: int) -> slice:
        """Where in c the columns of a set lie."""
        begin = sum(len(space.columns) for space in self.spaces[:number])
        return slice(begin, begin + len(self.spaces[number].columns))

    def vector(self, number: int, own: np.ndarray) -> np.ndarray:
        """c, float32 (size,), of an image of set `number` with that set's labels: zero for those
        of other sets, and m."""
        c = np.zeros(self.vector_dim, np.float32)
        c[self.column_slice(number)] = own
        if len(self.spaces) > 1:
            c[self.num_labels + number] = 1
        return c

    def to_vectors(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        """c, (B, size), of labels as they travel: int64 (B,) or float (B, size)."""
        if y.is_floating_point():
            return y.to(dtype)
        return fn.one_hot(y, self.vector_dim).to(dtype)

    def classification_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """The classification loss of logits (B, known) under labels as they travel: a scalar.

        For each image the cross-entropy of its set's categories, or the sum of the binary ones of
        its set's attributes. What its set does not know contributes nothing: no gradient either.
        """
        c = self.to_vectors(y, logits.dtype)
        of_set = c[:, self.num_labels :] if len(self.spaces) > 1 else torch.ones_like(c[:, :1])
        losses = [
            _loss(space, logits[:, self.column_slice(i)], c[:, self.column_slice(i)])
            for i, space in enumerate(self.spaces)
        ]
        return (torch.stack(losses, 1) * of_set).sum(1).mean()

    def targets(self, y: Tensor) -> list[tuple[str, Tensor]]:
        """What an image of label y, int64 () or float (size,), is translated to, with names.

        Each category; of its own set's attributes each flipped, or set with the rest of its
        exclusive group cleared; of other sets' attributes each one alone.
        """
        if self.by_domain:
            return [(name, y.new_tensor(i)) for i, name in enumerate(self.spaces[0].columns)]
        rows = []
        for number, space in enumerate(self.spaces):
            base = self._base(y, number)
            begin = self.column_slice(number).start
            for i in range(len(space.columns)):
                c = y.new_tensor(self.vector(number, _aimed(space, base, i)))
                rows.append((self.names[begin + i], c))
        return rows

    def _base(self, y: Tensor, number: int) -> np.ndarray:
        """What is known of an image in terms of a set: nothing (zeros), if it is of another."""
        # Of an image of another set these columns are zero already.
        return y[self.column_slice(number)].detach().cpu().float().numpy()

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "spaces": [
                asdict(space)
                | {"columns": list(space.columns), "exclusive": [list(g) for g in space.exclusive]}
                for space in self.spaces
            ]
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "Labels":
        """The inverse of `to_dict`."""
        return cls(
            tuple(
                LabelSpace(
                    space["name"],
                    tuple(space["columns"]),
                    space["binary"],
                    tuple(map(tuple, space["exclusive"])),
                    space["key"],
                )
                for space in row["spaces"]
            )
        )


def _loss(space: LabelSpace, logits: Tensor, c: Tensor) -> Tensor:
    """(B,): of one set's columns, as if every image were of it."""
    if space.binary:
        return fn.binary_cross_entropy_with_logits(logits, c, reduction="none").sum(1)
    return -(c * fn.log_softmax(logits, 1)).sum(1)


def _aimed(space: LabelSpace, base: np.ndarray, column: int) -> np.ndarray:
    """A set's part of the label of a target: `base`, with one column as the target has it."""
    if not space.binary:
        return np.eye(len(base), dtype=np.float32)[column]
    own, name = base.copy(), space.columns[column]
    groups = [group for group in space.exclusive if name in group]
    if not groups:
        own[column] = 1 - own[column]
        return own
    own[[space.columns.index(member) for member in groups[0]]] = 0
    own[column] = 1
    return own


def domain_labels(domains: list[str]) -> Labels:
    """The labels of a single set whose domains are the labels."""
    return Labels((LabelSpace("", tuple(domains)),))
