"""The manifest of a checkpoint: `manifest.json`, which describes its files and proves itself."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

import msgspec
from msgspec import Meta, Struct

from stargan_dist import storage
from stargan_dist.data.labels import Labels, domain_labels
from stargan_dist.errors import UserError

VERSION = 3
# Version 2 has no hash of itself: its fields are checked by their types alone.
READ_VERSIONS = (2, VERSION)

Count = Annotated[int, Meta(ge=0)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class FileEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """Size and hash of a file."""

    bytes: Count
    sha256: Sha256


class SkippedEntry(TypedDict):
    """Replaced samples of a shard, and the reason for the first of them."""

    samples: Count
    reason: str


class SpaceFields(Struct, frozen=True, forbid_unknown_fields=True):
    """Fields of `LabelSpace`."""

    name: str
    columns: list[str]
    binary: bool
    exclusive: list[list[str]]
    key: str


class LabelsFields(Struct, frozen=True, forbid_unknown_fields=True):
    """Fields of `Labels`."""

    spaces: list[SpaceFields]


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """The contents of `manifest.json`.

    Attributes:
        version: of the format.
        step: the number of completed iterations.
        config: the run's configuration as plain values.
        domains: the names of the labels.
        data: the fingerprint of the data sources.
        files: size and SHA-256 of each file, by name.
        label_fields: the label spaces of the data sources; None: the labels are the domains.
        skipped: samples that were replaced, by shard.
        scales: the loss scales of float16 (`CheckpointState.scales`).
        nonfinite: the number of iterations with a gradient that was not finite.
        fence: the number of the training that wrote it (runs/owner.py).
        sha256: hash of all other fields.
    """

    version: int
    step: Count
    config: dict[str, Any]
    domains: list[str]
    data: str
    files: dict[str, FileEntry]
    label_fields: LabelsFields | None = msgspec.field(default=None, name="labels")
    skipped: dict[str, SkippedEntry] = {}
    scales: dict[str, list[float]] = {}
    nonfinite: Count = 0
    fence: Count = 0
    sha256: str = ""

    @property
    def labels(self) -> Labels:
        """The label spaces of the data sources."""
        return labels_of(self.domains, self.label_fields)


def labels_of(domains: list[str], fields: LabelsFields | None) -> Labels:
    """Return labels from their fields in a file; None: the labels are the domains."""
    if fields is None:
        return domain_labels(domains)
    return Labels.from_dict(msgspec.to_builtins(fields))


class _Version(Struct):
    version: Any = None


def to_json(fields: Mapping[str, Any]) -> bytes:
    """Serialise a manifest, with its version and its hash added."""
    sealed = storage.sealed({"version": VERSION, **fields})
    return (json.dumps(sealed, indent=1) + "\n").encode()


def from_json(data: bytes, origin: str, step: int, remedy: str) -> Manifest:
    """Parse `manifest.json`.

    Args:
        origin: where the data comes from, for error messages.
        step: the step in the name of the checkpoint's folder.
        remedy: what to do about a damaged manifest.

    Raises:
        UserError: it is damaged, of another version, or of another step.
    """
    version = storage.decode_json(data, _Version, origin, remedy).version
    if version not in READ_VERSIONS:
        raise UserError(
            f"{origin} has format version {version}, this program reads version {VERSION}: "
            f"use the stargan_dist version that wrote it, or, if it is damaged, {remedy}"
        )
    manifest = storage.decode_json(data, Manifest, origin, remedy)
    if manifest.sha256 or version == VERSION:
        storage.check_seal(data, origin, remedy)
    if manifest.step != step:
        raise UserError(f"{origin} is of step {manifest.step}, in the folder of {step}; {remedy}")
    return manifest
