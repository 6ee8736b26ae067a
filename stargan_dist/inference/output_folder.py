"""A folder of outputs that a command fills and can resume: settings, images and a table of them."""

import argparse
import json
from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image

from stargan_dist import storage
from stargan_dist.data import transforms
from stargan_dist.errors import UserError, explained

INDEX = "index.jsonl"
ENCODINGS = {"jpg": "jpeg", "png": "png", "webp": "webp"}  # by suffix
QUALITY = 95  # of jpg and webp


def add_arguments(parser: argparse.ArgumentParser, metavar: str) -> None:
    """Add the pictures, the folder, the format of the outputs and the split of shards.

    Args:
        metavar: of the pictures.
    """
    parser.add_argument(
        "sources", metavar=metavar,
        help="a picture, a folder, a pattern such as 'photos/*.jpg', or shards; path or URL",
    )  # fmt: skip
    parser.add_argument("out", metavar="OUT", help="folder or URL of the outputs")
    parser.add_argument(
        "--format", choices=[*ENCODINGS], default="png", help="of the outputs (default: png)"
    )
    parser.add_argument("--split", default="val", help="of shards (default: val)")


def check_settings(out: str, file: str, settings: Mapping[str, Any], outputs: str) -> None:
    """Write settings into a folder, or check that they are those of its outputs.

    Args:
        file: name of the file of the settings.
        settings: what JSON can hold.
        outputs: what they are, for the error.

    Raises:
        UserError: the folder has outputs of other settings, or is not writable.
    """
    new, url = json.loads(json.dumps(settings)), storage.join(out, file)
    try:
        if not storage.exists(url):
            storage.check_writable(out)
            storage.write_bytes(url, (json.dumps(new, indent=1) + "\n").encode())
            return
        old = storage.decode_json(storage.read_bytes(url), dict[str, Any], url)
    except OSError as error:
        raise explained(f"cannot write to {out}: {error}", error) from error
    differing = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if differing:
        raise UserError(
            f"{out} has {outputs} with other settings ({', '.join(differing)} differ): name "
            "another folder"
        )


def check_sources(out: str, lines: Iterable[Mapping[str, str]]) -> None:
    """Check that outputs in a folder are those of the pictures that they would be made of now.

    Args:
        lines: of the table, for outputs that exist.

    Raises:
        UserError: the folder's table names another source, or cannot be read.
    """
    url = storage.join(out, INDEX)
    try:
        rows = storage.read_bytes(url).splitlines() if storage.exists(url) else []
    except OSError as error:
        raise explained(f"cannot read {url}: {error}", error) from error
    found = (storage.decode_json(row, dict[str, str], url) for row in rows)
    sources = {row.get("file", ""): row.get("source", "") for row in found}
    for line in lines:
        old, new = sources.get(line["file"], line["source"]), line["source"]
        if old != new and _absolute(old) != _absolute(new):
            raise UserError(f"{out} has {line['file']} of {old}, not of {new}: name another folder")


def _absolute(location: str) -> str:
    return str(storage.filesystem(location)[1])


def write_image(url: str, image: Image.Image) -> None:
    """Write an image in the format of its suffix. Raises UserError if it cannot be written."""
    encoding = ENCODINGS[url.rpartition(".")[2]]
    data = transforms.reencode(image, crop=0, size=0, image_format=encoding, quality=QUALITY)
    try:
        storage.write_bytes(url, data)
    except OSError as error:
        raise explained(f"cannot write {url}: {error}", error) from error


def write_index(out: str, lines: Iterable[Mapping[str, str]]) -> None:
    """Write the table, a JSON object per output. Raises UserError if it cannot be written."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    try:
        storage.write_bytes(storage.join(out, INDEX), text.encode())
    except OSError as error:
        raise explained(f"cannot write to {out}: {error}", error) from error
