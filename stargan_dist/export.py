"""Command line of export: `python -m stargan_dist.export MODEL OUT`.

Writes a trained model as a folder for others: a model folder (config.json, model.safetensors and a
model card), which Translator.from_pretrained and the Hugging Face hub read, or graphs in ONNX or
torch.export files, which run without this package.
"""

import argparse
import sys
from dataclasses import replace

import torch

from stargan_dist import storage
from stargan_dist.data.sources import load_labelled_images, open_sources
from stargan_dist.errors import UserError, run_command
from stargan_dist.evaluation import report
from stargan_dist.inference import card, graphs, grids
from stargan_dist.inference.card import Card
from stargan_dist.inference.model import TrainedModel
from stargan_dist.models import folder, hub
from stargan_dist.models.arguments import add_model_arguments, authors_options
from stargan_dist.models.opening import open_model
from stargan_dist.models.saved import SavedModel
from stargan_dist.runs.scores import complete_results

FOLDER = "folder"
# Of the sample grid.
GRID_DOMAINS, GRID_IMAGES, GRID_LATENTS = 6, 1, 2


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stargan_dist.export", description=__doc__.split("\n\n")[1]
    )
    add_model_arguments(parser)
    parser.add_argument("out", metavar="OUT", help="folder or URL; an earlier export is replaced")
    parser.add_argument(
        "--format", choices=(FOLDER, *graphs.FORMATS), default=FOLDER,
        help="folder: weights and model card; torch, onnx: graphs (default: folder)",
    )  # fmt: skip
    for_folders = parser.add_argument_group("model folders")
    for_folders.add_argument(
        "--discriminator", action="store_true", help="add D, from which others can train further"
    )
    for_folders.add_argument(
        "--license", default=card.UNKNOWN, metavar="NAME",
        help="of the weights, as the Hugging Face hub names it: mit, cc-by-nc-4.0, other, … "
        "(default: unknown)",
    )  # fmt: skip
    for_folders.add_argument(
        "--no-grid", action="store_true", help="leave validation images out of the model card"
    )
    for_folders.add_argument(
        "--push", metavar="USER/NAME", help="upload the folder to the Hugging Face hub"
    )
    for_folders.add_argument(
        "--private", action="store_true", help="with --push: hide a new model from others"
    )
    for_graphs = parser.add_argument_group("graphs")
    for_graphs.add_argument(
        "--precision", choices=tuple(graphs.PRECISIONS), default="float32",
        help="of weights and computation; inputs and outputs are float32 (default: float32)",
    )  # fmt: skip
    args = parser.parse_args()
    check_arguments(parser, args)
    return args


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the program if options do not suit the format."""
    of_folders = [name for name in ("discriminator", "no_grid", "push") if getattr(args, name)]
    if args.format != FOLDER and of_folders:
        parser.error(f"--{of_folders[0].replace('_', '-')}: only with --format folder")
    if args.format == FOLDER and args.precision != "float32":
        parser.error(f"--precision: only with --format {' or '.join(graphs.FORMATS)}")
    if args.private and not args.push:
        parser.error("--private: only with --push")


def card_of(saved: SavedModel, args: argparse.Namespace) -> Card:
    """Return the card of a model with what its run says: the metrics of its step."""
    measured = [r for r in complete_results(saved.config.run) if r["step"] == saved.step]
    return replace(
        card.of_model(saved),
        license=args.license,
        metrics=[(report.headline(result), report.table(result)) for result in measured],
        address=args.push or args.out,
    )


def sample_grid(saved: SavedModel) -> bytes | None:
    """Return a PNG of validation images of the run, translated; None if they cannot be read."""
    if not any(source.shards for source in saved.config.data.all_sources.values()):
        return None
    try:
        images = load_labelled_images(
            open_sources(saved.config.data, "val"), saved.spec.config.model.image_size,
            per_domain=GRID_IMAGES, domains=GRID_DOMAINS, replace_unreadable=True,
        )  # fmt: skip
    except UserError as error:
        print(f"the model card has no sample grid: {error}", file=sys.stderr)
        return None
    model = TrainedModel.from_saved(saved, "cuda" if torch.cuda.is_available() else "cpu")
    latents = GRID_LATENTS if model.diverse else 1
    return grids.to_png(grids.latent_grid(model, images, latents, seed=0))


def write_folder(url: str, saved: SavedModel, args: argparse.Namespace) -> None:
    """Write a model folder with its card."""
    grid = None if args.no_grid else sample_grid(saved)
    files = {folder.GRID: grid} if grid else {}
    text = card.text(replace(card_of(saved, args), grid=folder.GRID if grid else ""))
    folder.write(url, saved, text, files)


def main() -> None:
    args = parse_args()
    if args.push:
        hub.check_name(args.push)
        if not storage.is_local(args.out):
            raise UserError(f"--push: {args.out} is not a local folder: name one as OUT")
    options = authors_options(args)
    saved = open_model(
        args.model, args.checkpoint, discriminator=args.discriminator, options=options
    )
    storage.configure(saved.config.storage)
    if args.format != FOLDER:
        graphs.write(args.out, saved, args.format, args.precision)
        print(args.out)
        return
    write_folder(args.out, saved, args)
    print(args.out)
    if args.push:
        print(hub.upload(args.out, args.push, private=args.private))


if __name__ == "__main__":
    run_command(main)
