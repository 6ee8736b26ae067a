"""Arguments of command lines that take a trained model."""

import argparse

from stargan_dist.models.authors import Options
from stargan_dist.models.opening import KINDS
from stargan_dist.runs.checkpoint import LATEST


def add_model_arguments(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    """Add the model, its checkpoint, and what files of the authors do not say.

    Args:
        nargs: of the model; `+`: several.
    """
    parser.add_argument("model", metavar="MODEL", nargs=nargs, help=KINDS)
    parser.add_argument(
        "--checkpoint", default=LATEST, help="of a run: latest, best, or a step (default: latest)"
    )
    authors = parser.add_argument_group("what files of the papers' authors do not say")
    authors.add_argument("--domains", nargs="+", default=(), metavar="NAME", help="names of labels")
    authors.add_argument(
        "--attribute-labels", action="store_true", help="the names are binary attributes"
    )
    authors.add_argument(
        "--rafd-labels", nargs="+", default=(), metavar="NAME",
        help="of StarGAN trained on CelebA and RaFD: names of the labels of RaFD, beside those of "
        "CelebA (--domains)",
    )  # fmt: skip
    authors.add_argument(
        "--w-hpf", type=float, metavar="WEIGHT", help="of the high-pass option (published: 1)"
    )
    authors.add_argument(
        "--landmarks", default="", metavar="FILE",
        help="landmark network of the high-pass option, where the model has none",
    )  # fmt: skip
    authors.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="of StarGAN without its D"
    )


def authors_options(args: argparse.Namespace, discriminator: str = "") -> Options:
    """Return the options of `add_model_arguments`."""
    return Options(
        args.domains,
        args.attribute_labels,
        args.w_hpf,
        args.image_size,
        discriminator,
        args.landmarks,
        args.rafd_labels,
    )
