"""Model folders: `config.json`, `model.safetensors` and `README.md`, on any URL.

The layout is the one that `PyTorchModelHubMixin` of huggingface_hub reads and writes. A folder
holds averaged networks under the names of checkpoints, `LETTER.PARAMETER`, and with the high-pass
option the landmark network in a file of its own.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from typing import Any

from msgspec import Struct

from stargan_dist import config as configs
from stargan_dist import storage
from stargan_dist.config import Config
from stargan_dist.errors import UserError, explained
from stargan_dist.models import landmarks, weights_file
from stargan_dist.models.saved import SavedModel
from stargan_dist.nets.networks import DISCRIMINATORS
from stargan_dist.runs.manifest import Count, LabelsFields, labels_of

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
GRID = "samples.png"  # an image of the card
FORMAT, VERSION = "stargan_dist", 1


class Description(Struct, frozen=True):
    """The contents of `config.json`. Fields of other programs are ignored.

    Attributes:
        format: `stargan_dist`.
        version: of this format.
        recipe: a row of the table in objectives/recipes.py.
        model: the section `model` of the configuration.
        domains: the names of the labels.
        labels: the label spaces; None: the labels are the domains.
        step: the number of iterations of its training; 0 if it is not known.
    """

    format: str
    version: int
    recipe: str
    model: dict[str, Any]
    domains: list[str]
    labels: LabelsFields | None = None
    step: Count = 0


def write(url: str, model: SavedModel, card: str, files: Mapping[str, bytes] | None = None) -> None:
    """Publish a model folder, complete or not at all. It replaces an earlier one at the URL.

    Args:
        card: the text of README.md.
        files: further files by name, such as images of the card.

    Raises:
        UserError: the URL holds other files, or the folder cannot be written.
    """
    check_replaceable(url, {CONFIG, WEIGHTS, CARD, GRID, landmarks.FILE, *(files or {})})
    description = {
        "format": FORMAT,
        "version": VERSION,
        "recipe": model.config.recipe,
        "model": asdict(replace(model.spec.config.model, landmarks="")),  # a path elsewhere
        "domains": model.labels.names,
        "labels": None if model.labels.by_domain else model.labels.to_dict(),
        "step": model.step,
    }
    text = json.dumps(description, indent=1, ensure_ascii=False) + "\n"
    contents = {
        WEIGHTS: weights_file.to_bytes(model.tensors),
        CARD: card.encode(),
        CONFIG: text.encode(),
        **({landmarks.FILE: landmarks.to_bytes(model.landmarks)} if model.landmarks else {}),
        **(files or {}),
    }
    try:
        with storage.published_folder(url, last=CONFIG) as folder:
            for name, data in contents.items():
                (folder / name).write_bytes(data)
    except OSError as error:
        raise explained(f"cannot write the model folder {url}: {error}", error) from error


def check_replaceable(url: str, names: Collection[str]) -> None:
    """Check that a folder may be replaced by one with files of these names.

    Raises:
        UserError: it holds anything else, which would be lost, or cannot be read.
    """
    try:
        others = sorted({*storage.list_names(url)} - {*names})
    except OSError as error:
        raise explained(f"cannot read {url}: {error}", error) from error
    if others:
        raise UserError(f"{url} holds other files ({others[0]}): name a new folder")


def read(url: str, *, discriminator: bool = False) -> SavedModel:
    """Read a model folder.

    Args:
        discriminator: read D and C as well, if they are there.

    Raises:
        UserError: a file is missing or damaged, or the weights are not those of the description.
    """
    config_url, weights_url = storage.join(url, CONFIG), storage.join(url, WEIGHTS)
    description = storage.decode_json(_read(config_url), Description, config_url)
    if description.format != FORMAT or description.version != VERSION:
        raise UserError(
            f"{config_url} is of format {description.format!r:.100}, version "
            f"{description.version}: this program reads {FORMAT!r}, version {VERSION}"
        )
    try:
        model = configs.model_from_dict(description.model)
    except UserError as error:
        raise UserError(f"{config_url}: model.{error}") from error
    tensors = weights_file.from_bytes(_read(weights_url), weights_url)
    labels = labels_of(description.domains, description.labels)
    without = () if discriminator else DISCRIMINATORS
    kept = {n: t for n, t in tensors.items() if n.partition(".")[0] not in without}
    config = Config(run=url, recipe=description.recipe, model=model)
    found = landmarks.find(url) if model.w_hpf else None
    return SavedModel(url, config, labels, description.step, kept, found).check()


def _read(url: str) -> bytes:
    try:
        return storage.read_bytes(url)
    except OSError as error:
        raise explained(f"cannot read {url}: {error}", error) from error
