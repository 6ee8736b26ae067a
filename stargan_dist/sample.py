"""Command line of translation: `python -m stargan_dist.sample --run RUN`.

Writes image grids of translations, guided by latents and (if the run's recipe uses them) by
references. Without --sources and --references the grids show validation images of the run's
shards. A run on attributes flips each attribute of a source, or sets it and clears the rest of its
exclusive group; --attributes gives the attributes of the images of --sources.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stargan_dist import storage
from stargan_dist.console.arguments import integer
from stargan_dist.data import transforms
from stargan_dist.data.labels import Labels
from stargan_dist.data.sources import DataSources, load_labelled_images, open_sources
from stargan_dist.data.split import LoadedSplit
from stargan_dist.errors import UserError, explained, run_command
from stargan_dist.inference import grids
from stargan_dist.inference.model import TrainedModel
from stargan_dist.models import hub
from stargan_dist.runs.checkpoint import step_name


class _RenamedOption(argparse.Action):
    """Stores the value of an option's former name and prints the new name on stderr."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        new_option = f"--{self.dest.replace('_', '-')}"
        print(
            f"warning: {option_string} has been renamed: use {new_option} instead", file=sys.stderr
        )
        setattr(namespace, self.dest, values)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stargan_dist.sample", description=__doc__.split("\n\n")[1]
    )
    parser.add_argument(
        "--run", required=True, help="folder or URL of a training run, or another model"
    )
    parser.add_argument(
        "--checkpoint", default="latest", help="latest, best, or a step (default: latest)"
    )
    parser.add_argument("--out", help="folder or URL for the grids (default: RUN/translations)")
    parser.add_argument(
        "--sources", nargs="+", metavar="FILE",
        help="images to translate (default: validation images)",
    )  # fmt: skip
    parser.add_argument(
        "--data-source", metavar="NAME",
        help="the data source (data.sources) that the images of --sources resemble",
    )  # fmt: skip
    parser.add_argument(
        "--set", dest="data_source", action=_RenamedOption, default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )  # fmt: skip
    parser.add_argument(
        "--attributes", nargs="+", metavar="NAME=VALUE", default=[],
        help="known attributes of the images of --sources; all others of the data source are false",
    )  # fmt: skip
    parser.add_argument(
        "--targets", nargs="+", metavar="NAME", help="show only these targets (default: all)"
    )
    parser.add_argument(
        "--references", nargs="+", metavar="DOMAIN=FILE",
        help="reference images with their domains (default: validation images)",
    )  # fmt: skip
    parser.add_argument(
        "--count", type=integer(1), default=3, help="validation images per domain (default: 3)"
    )
    parser.add_argument(
        "--latents", type=integer(1), default=4, help="latents per target (default: 4)"
    )
    parser.add_argument(
        "--seed", type=integer(0), default=0, help="seed of the latents (default: 0)"
    )
    return parser.parse_args()


def _load_image(url: str, size: int, ahead: storage.Ahead) -> np.ndarray:
    try:
        return transforms.resize(transforms.decode(storage.read_bytes(url, read=ahead.read)), size)
    except (OSError, UserError) as error:
        raise explained(f"cannot read the image {url}: {error}", error) from error


def load_files(urls: list[str], labels: Tensor, domains: list[str], size: int) -> LoadedSplit:
    """Load image files as a split.

    Args:
        urls: the files.
        labels: a label per file, int64 (N,) or float (N, `Labels.vector_dim`).
        domains: the names of the labels.
        size: pixels per side.

    Raises:
        UserError: a file cannot be read or decoded.
    """
    with storage.files_ahead(urls) as ahead:
        images = [_load_image(url, size, ahead) for url in urls]
    return LoadedSplit(torch.from_numpy(np.stack(images)), labels, urls, domains)


def load_references(pairs: list[str], domains: list[str], size: int) -> LoadedSplit:
    """Load `DOMAIN=FILE` pairs, sorted by domain.

    Raises:
        UserError: a domain is unknown, or a file cannot be read.
    """
    references = []
    for pair in pairs:
        domain, _, url = pair.partition("=")
        if domain not in domains or not url:
            raise UserError(
                f"--references: {pair} is not valid; "
                f"write DOMAIN=FILE with a domain of {', '.join(domains)}"
            )
        references.append((domains.index(domain), url))
    references.sort()
    labels = torch.tensor([label for label, _ in references])
    return load_files([url for _, url in references], labels, domains, size)


def source_label(labels: Labels, data_source: str | None, pairs: list[str]) -> Tensor:
    """Return the label of the images of --sources: int64 () or float32 (`Labels.vector_dim`,).

    Args:
        labels: the labels of the run.
        data_source: the data source that the images resemble. None: the first.
        pairs: `NAME=VALUE` of the known attributes.

    Raises:
        UserError: there is no such data source or attribute, or the labels are domains.
    """
    names = [space.name for space in labels.spaces]
    if labels.by_domain:
        if data_source or pairs:
            raise UserError(
                "--data-source, --attributes: the labels of this run are its domains; "
                "drop these options"
            )
        return torch.tensor(0)
    if data_source is not None and data_source not in names:
        raise UserError(
            f"--data-source: {data_source} is not a data source of this run; "
            f"choose one of {', '.join(names)}"
        )
    number = names.index(data_source) if data_source is not None else 0
    values = {attribute: value for attribute, _, value in (p.partition("=") for p in pairs)}
    return torch.from_numpy(labels.vector(number, labels.spaces[number].encode_known(values)))


def check_arguments(args: argparse.Namespace, translator: TrainedModel) -> None:
    """Raise UserError for options that do not suit the run's networks."""
    labels = translator.labels
    unknown = [name for name in args.targets or [] if name not in labels.names]
    if unknown:
        raise UserError(
            f"--targets: {unknown[0]} is not a target of this run; "
            f"choose from {', '.join(labels.names)}"
        )
    if args.sources and not args.data_source and len(labels.spaces) > 1:
        names = ", ".join(space.name for space in labels.spaces)
        raise UserError(
            "--data-source is missing: name the data source that the images of --sources "
            f"resemble, one of {names}"
        )
    if not (args.sources or translator.config.data.shards or translator.config.data.sources):
        raise UserError("--sources is missing: this model has no data of its own")
    if args.references and not translator.guided_by_references:
        raise UserError("--references: the networks of this run take none; drop this option")
    if (args.data_source or args.attributes) and not args.sources:
        raise UserError("--data-source, --attributes: they describe images that --sources names")


def of_targets(references: LoadedSplit, targets: list[str] | None) -> LoadedSplit:
    """Return the references of some domains. None: all."""
    if not targets:
        return references
    kept = [i for i, y in enumerate(references.labels) if references.domains[y] in targets]
    return replace(
        references,
        images=references.images[kept],
        labels=references.labels[kept],
        paths=[references.paths[i] for i in kept],
    )


def check_labels(data_sources: DataSources, names: list[str]) -> None:
    """Raise UserError if shards do not hold the labels of the networks: they were rebuilt."""
    if data_sources.domains != names:
        urls = ", ".join(reader.url for reader in data_sources.readers)
        raise UserError(
            f"the shards at {urls} hold the labels {', '.join(data_sources.domains)}; the networks "
            f"were trained on {', '.join(names)}: name images (--sources, --references)"
        )


def draw_grids(args: argparse.Namespace, translator: TrainedModel) -> dict[str, Image.Image]:
    """Translate and return the grids by name: `latent`, and `reference` where it applies."""
    size, names = translator.config.model.image_size, translator.labels.names

    def validation_images(batch: int) -> LoadedSplit:
        data_sources = open_sources(translator.config.data, "val")
        check_labels(data_sources, names)
        first = batch * args.count
        return load_labelled_images(data_sources, size, first=first, per_domain=args.count)

    if args.sources:
        label = source_label(translator.labels, args.data_source, args.attributes)
        labels = torch.stack([label] * len(args.sources))
        sources = load_files(args.sources, labels, names, size)
    else:
        sources = validation_images(0)
    latents = args.latents if translator.diverse else 1
    images = {"latent": grids.latent_grid(translator, sources, latents, args.seed, args.targets)}
    has_references = args.references or translator.config.data.shards
    if translator.guided_by_references and has_references:
        references = (
            load_references(args.references, names, size)
            if args.references
            else of_targets(validation_images(1), args.targets)
        )
        images["reference"] = grids.reference_grid(translator, sources, references)
    return images


def default_out(run: str) -> str:
    """Return the folder of the grids of a model.

    Raises:
        UserError: the model is on the hub. A folder of its name would be taken for it from then on.
    """
    if hub.is_name(run) and not storage.exists(run):
        raise UserError(
            f"--out is missing: {run} is on the Hugging Face hub: name a folder for the grids"
        )
    return storage.join(run, "translations")


def main() -> None:
    args = parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    translator = TrainedModel.load(args.run, args.checkpoint, device)
    storage.configure(translator.config.storage)
    check_arguments(args, translator)
    out = args.out or default_out(args.run)
    images = draw_grids(args, translator)
    for name, image in images.items():
        url = storage.join(out, f"{name}_{step_name(translator.step)}.png")
        storage.write_bytes(url, grids.to_png(image))
        print(url)


if __name__ == "__main__":
    run_command(main)
