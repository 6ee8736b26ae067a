"""Example pictures of a page or video: validation images of a run, or files."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from PIL import Image

from stargan_dist import storage
from stargan_dist.data.sources import load_labelled_images, open_sources
from stargan_dist.errors import UserError, explained
from stargan_dist.inference.pictures import read_image
from stargan_dist.models.saved import SavedModel

PER_DOMAIN, DOMAINS = 2, 6
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAX_FILES = 24
MAX_SIDE = 512  # pixels


class Example(NamedTuple):
    """A picture, and its domain if it is known."""

    image: Image.Image
    domain: str = ""


def validation_images(models: Iterable[SavedModel]) -> list[Example]:
    """Return validation images of the first model whose shards can be read; else none."""
    for saved in models:
        try:
            if found := _of_run(saved):
                return found
        except (UserError, OSError):  # the shards are elsewhere: a page works without examples
            continue
    return []


def instead_of_sources(saved: SavedModel) -> list[Example]:
    """Return validation images of a model's shards, for a command without --sources.

    Raises:
        UserError: the model has no shards, or they cannot be read.
    """
    try:
        found = _of_run(saved)
    except (UserError, OSError) as error:
        message = f"--sources: name pictures, as validation images cannot be read: {error}"
        raise explained(message, error) from error
    if not found:
        raise UserError("--sources: name pictures, as this model has no data of its own")
    return found


def _of_run(saved: SavedModel) -> list[Example]:
    data = saved.config.data
    if not any(source.shards for source in data.all_sources.values()):
        return []
    split = load_labelled_images(
        open_sources(data, "val"), saved.spec.config.model.image_size,
        per_domain=PER_DOMAIN, domains=DOMAINS, replace_unreadable=True,
    )  # fmt: skip
    names = [split.domains[y] if not y.dim() else "" for y in split.labels]
    pixels = split.images.permute(0, 2, 3, 1).contiguous().numpy()
    return [Example(Image.fromarray(p), name) for p, name in zip(pixels, names, strict=True)]


def from_files(locations: Sequence[str]) -> list[Example]:
    """Read example pictures, reduced to MAX_SIDE; at most MAX_FILES.

    Args:
        locations: files, or folders of image files.

    Raises:
        UserError: there are none, or one cannot be read.
    """
    files = [file for location in locations for file in _files(location)]
    if not files:
        raise UserError(f"--examples: no image files in {', '.join(locations)}")
    return [Example(_small(read_image(file))) for file in files[:MAX_FILES]]


def _files(location: str) -> list[str]:
    try:
        if not storage.is_folder(location):
            return [location]
        names = sorted(storage.list_names(location))
    except OSError as error:
        raise explained(f"--examples: cannot read {location}: {error}", error) from error
    return [storage.join(location, name) for name in names if name.lower().endswith(SUFFIXES)]


def _small(image: Image.Image) -> Image.Image:
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return image
