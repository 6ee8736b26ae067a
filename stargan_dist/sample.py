"""Command line of translation: `python -m stargan_dist.sample --run RUN`.

Writes two grids of translations, guided by latents and by references. Without --sources and
--references they show validation images of the run's shards.
"""

import argparse

import numpy as np
import torch

from stargan_dist import access, grids, storage
from stargan_dist.checkpoint import step_name
from stargan_dist.data import transforms
from stargan_dist.data.reader import LoadedSplit, load_split, open_reader
from stargan_dist.errors import UserError, run_command
from stargan_dist.translate import Translator


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
    parser.add_argument("--references", nargs="+", metavar="DOMAIN=FILE", help="images that guide")
    parser.add_argument("--count", type=int, default=3, help="validation images of each domain")
    parser.add_argument("--latents", type=int, default=4, help="latents for each domain")
    parser.add_argument("--seed", type=int, default=0, help="of the latents")
    return parser.parse_args()


def _load(url: str, size: int) -> np.ndarray:
    try:
        return transforms.fit(transforms.decode(storage.read_bytes(url)), size)
    except (OSError, UserError) as error:
        raise UserError(f"cannot read the image {url}: {error}") from error


def load_files(urls: list[str], labels: list[int], domains: list[str], size: int) -> LoadedSplit:
    """Images of files, as if they were a split."""
    images = torch.from_numpy(np.stack([_load(url, size) for url in urls]))
    return LoadedSplit(images, torch.tensor(labels), urls, domains)


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
    return load_files([url for _, url in rows], [label for label, _ in rows], domains, size)


def main() -> None:
    args = parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    translator = Translator.load(args.run, args.checkpoint, device)
    access.use(translator.config.storage)
    config, size = translator.config, translator.config.model.image_size

    def validation(turn: int) -> LoadedSplit:
        reader = open_reader(config.data, "val")
        return load_split(reader, size, first=turn * args.count, per_domain=args.count)

    domains = translator.domains
    sources = (
        load_files(args.sources, [0] * len(args.sources), domains, size)
        if args.sources
        else validation(0)
    )
    references = (
        load_references(args.references, domains, size) if args.references else validation(1)
    )
    pictures = {
        "latent": grids.latent_grid(translator, sources, args.latents, args.seed),
        "reference": grids.reference_grid(translator, sources, references),
    }
    out = args.out or storage.join(args.run, "translations")
    for name, picture in pictures.items():
        where = storage.join(out, f"{name}_{step_name(translator.step)}.png")
        storage.write_bytes(where, grids.to_png(picture))
        print(where)


if __name__ == "__main__":
    run_command(main)
