"""Command line of the authors' checkpoints: `python -m stargan_dist.convert FILE OUT`.

Converts a checkpoint of the papers' authors (NNNNNN_nets_ema.ckpt or NNNNNN_nets.ckpt of StarGAN
v2, NNNNNN-G.ckpt of StarGAN) into a model folder, which all commands take as a model; or, if OUT
ends with .ckpt, any model into a checkpoint that the authors' programs load.
"""

import argparse
from dataclasses import replace

from stargan_dist.errors import run_command
from stargan_dist.inference import card
from stargan_dist.models import authors, folder, torch_file
from stargan_dist.models.arguments import add_model_arguments, authors_options
from stargan_dist.models.opening import open_model


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stargan_dist.convert", description=__doc__.split("\n\n")[1]
    )
    add_model_arguments(parser)
    parser.add_argument("out", metavar="OUT", help="folder or URL; or a file that ends with .ckpt")
    parser.add_argument(
        "--discriminator", nargs="?", const="", default=None, metavar="FILE",
        help="convert D as well: that of the same file or, of StarGAN, that of FILE (…-D.ckpt)",
    )  # fmt: skip
    parser.add_argument(
        "--license", default=card.UNKNOWN, metavar="NAME",
        help="of the weights, for the model card; those of StarGAN v2's authors: cc-by-nc-4.0 "
        "(default: unknown)",
    )  # fmt: skip
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    saved = open_model(
        args.model,
        args.checkpoint,
        discriminator=args.discriminator is not None,
        options=authors_options(args, args.discriminator or ""),
    )
    if args.out.endswith(torch_file.SUFFIXES):
        written = authors.write(args.out, saved)
    else:
        described = replace(card.of_model(saved), license=args.license, address=args.out)
        folder.write(args.out, saved, card.text(described))
        written = [args.out]
    print(*written, sep="\n")


if __name__ == "__main__":
    run_command(main)
