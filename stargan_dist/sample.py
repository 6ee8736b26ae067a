"""Command line of translation: `python -m stargan_dist.sample --run RUN`.

Writes grids of translations, guided by latents and (if the networks take them) by references.
Without --sources and --references they show validation images of the run's shards. A run on
attributes flips each of them, or sets it alone of its group: --attributes tells which ones hold for
the images of --sources.
"""

import argparse

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stargan_dist import storage
from stargan_dist.data import transforms
from stargan_dist.data.labels import Labels
from stargan_dist.data.reader import LoadedSplit
from stargan_dist.data.sources import load_labelled_images, open_sources
from stargan_dist.errors import UserError, run_command
from stargan_dist.inference import grids
from stargan_dist.inference.translator import Translator
from stargan_dist.runs.checkpoint import step_name


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stargan_dist.sample",
        description=__doc__.split("\n\n")[1],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--run", required=True, help="folder or URL of a training run")
    parser.add_argument("--checkpoint", default="latest", help="latest, best, or a step")
    parser.add_argument("--out", help="folder or URL for the grids (RUN/translations)")
    parser.add_argument("--sources", nargs="+", metavar="FILE", help="images to translate")
    parser.add_argument(
        "--set", metavar="NAME", help="of data.sources: what the images of --sources are like"
    )
    parser.add_argument(
        "--attributes", nargs="+", metavar="NAME=VALUE", default=[],
        help="what is known of the images of --sources; others of the set do not hold",
    )  # fmt: skip
    parser.add_argument("--targets", nargs="+", metavar="NAME", help="only these, of all targets")
    parser.add_argument("--references", nargs="+", metavar="DOMAIN=FILE", help="images that guide")
    parser.add_argument("--count", type=int, default=3, help="validation images of each domain")
    parser.add_argument("--latents", type=int, default=4, help="latents for each domain")
    parser.add_argument("--seed", type=int, default=0, help="of the latents")
    args = parser.parse_args()
    if args.count < 1 or args.latents < 1:
        parser.error("--count and --latents must be at least 1")
    return args


def _load(url: str, size: int) -> np.ndarray:
    try:
        return transforms.resize(transforms.decode(storage.read_bytes(url)), size)
    except (OSError, UserError) as error:
        raise UserError(f"cannot read the image {url}: {error}") from error


def load_files(urls: list[str], labels: Tensor, domains: list[str], size: int) -> LoadedSplit:
    """Images of files, as if they were a split, with labels as they travel."""
    images = torch.from_numpy(np.stack([_load(url, size) for url in urls]))
    return LoadedSplit(images, labels, urls, domains)


def load_references(pairs: list[str], domains: list[str], size: int) -> LoadedSplit:
    """`DOMAIN=FILE` pairs, sorted by domain.

    Raises:
        UserError: an unknown domain.
    """
    rows = []
    for pair in pairs:
        domain, _, url = pair.partition("=")
        if domain not in domains or not url:
            raise UserError(f"{pair}: write DOMAIN=FILE with a domain of {', '.join(domains)}")
        rows.append((domains.index(domain), url))
    rows.sort()
    labels = torch.tensor([label for label, _ in rows])
    return load_files([url for _, url in rows], labels, domains, size)


def label_of_files(labels: Labels, name: str | None, pairs: list[str]) -> Tensor:
    """The label of own images: int64 () or float32 (`Labels.size`,).

    Args:
        name: of the data set that they are like; None: the first.
        pairs: `NAME=VALUE` of the attributes that are known.

    Raises:
        UserError: there is no such data set or attribute.
    """
    names = [space.name for space in labels.spaces]
    if labels.by_domain:
        if name or pairs:
            raise UserError("--set, --attributes: the labels of this run are its domains, drop it")
        return torch.tensor(0)
    if name is not None and name not in names:
        raise UserError(f"--set: {name} is none of {', '.join(names)}")
    number = names.index(name) if name is not None else 0
    values = {attribute: value for attribute, _, value in (p.partition("=") for p in pairs)}
    return torch.from_numpy(labels.vector(number, labels.spaces[number].encode_known(values)))


def check_arguments(args: argparse.Namespace, translator: Translator) -> None:
    """Raises UserError for what a run's networks have no use for."""
    unknown = [name for name in args.targets or [] if name not in translator.labels.names]
    if unknown:
        held = ", ".join(translator.labels.names)
        raise UserError(f"--targets: {unknown[0]} is none of {held}")
    if args.sources and not args.set and len(translator.labels.spaces) > 1:
        sets = ", ".join(space.name for space in translator.labels.spaces)
        raise UserError(f"--set: say which of {sets} the images of --sources are like")
    if args.references and not translator.guided_by_references:
        raise UserError("--references: the networks of this run take none, drop it")
    if (args.set or args.attributes) and not args.sources:
        raise UserError("--set, --attributes: they tell of images that --sources names")


def draw(args: argparse.Namespace, translator: Translator) -> dict[str, Image.Image]:
    """The grids, by name."""
    size, names = translator.config.model.image_size, translator.labels.names

    def validation(turn: int) -> LoadedSplit:
        sets = open_sources(translator.config.data, "val")
        return load_labelled_images(sets, size, first=turn * args.count, per_domain=args.count)

    if args.sources:
        label = label_of_files(translator.labels, args.set, args.attributes)
        labels = torch.stack([label] * len(args.sources))
        sources = load_files(args.sources, labels, names, size)
    else:
        sources = validation(0)
    latents = args.latents if translator.diverse else 1
    pictures = {"latent": grids.latent_grid(translator, sources, latents, args.seed, args.targets)}
    if translator.guided_by_references:
        references = (
            load_references(args.references, names, size) if args.references else validation(1)
        )
        pictures["reference"] = grids.reference_grid(translator, sources, references)
    return pictures


def main() -> None:
    args = parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    translator = Translator.load(args.run, args.checkpoint, device)
    storage.configure(translator.config.storage)
    check_arguments(args, translator)
    pictures = draw(args, translator)
    out = args.out or storage.join(args.run, "translations")
    for name, picture in pictures.items():
        where = storage.join(out, f"{name}_{step_name(translator.step)}.png")
        storage.write_bytes(where, grids.to_png(picture))
        print(where)


if __name__ == "__main__":
    run_command(main)
