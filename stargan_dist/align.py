"""Command line of alignment: `python -m stargan_dist.align PHOTOS OUT --landmarks FILE …`.

Brings faces in photographs to the frame of a training set. For each picture of a file, folder,
pattern, URL or folder of shards, OUT gets a square NAME.png, in which the landmarks of the face are
where the reference has them. The same command goes on where it stopped.

Exit codes: 0 all faces are aligned; 1 some pictures could not be read or show no face, they are
listed; 2 a user error.
"""

import argparse

from stargan_dist.console.arguments import Parser, integer
from stargan_dist.console.logs import setup_logging
from stargan_dist.errors import UserError, printable, run_command
from stargan_dist.faces.folder import Settings, Work, align_all
from stargan_dist.faces.reference import read_face, read_reference
from stargan_dist.inference import output_folder
from stargan_dist.inference.sources import list_sources
from stargan_dist.models import landmarks
from stargan_dist.shards.process_pool import available_cores

BAD_PICTURES = 1  # exit code
MIN_HEAT = 0.5


def parse_args() -> argparse.Namespace:
    parser = Parser(prog="python -m stargan_dist.align", description=__doc__.split("\n\n")[1])
    output_folder.add_arguments(parser, "PHOTOS")
    parser.add_argument(
        "--landmarks", required=True, metavar="FILE",
        help="landmark network: safetensors, or wing.ckpt, or the authors' nets_ema.ckpt",
    )  # fmt: skip
    parser.add_argument(
        "--reference", required=True, metavar="FILE",
        help="landmarks of the mean face, in pixels of a frame of 256 px: npz file with an array "
        "`mean`, or JSON list of [x, y]",
    )  # fmt: skip
    parser.add_argument(
        "--face", default="", metavar="JSON",
        help="numbers of the landmarks of eyes and mouth: "
        '\'{"left_eye": [0], "right_eye": [1], "mouth": [2]}\' (default: those of WFLW)',
    )  # fmt: skip
    parser.add_argument(
        "--size", type=integer(16, 4096), default=256, help="of the outputs (default: 256)"
    )
    parser.add_argument(
        "--min-heat", type=float, default=MIN_HEAT,
        help="no face is found if the maxima of the heat maps have a lower mean "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=integer(1), default=available_cores(), metavar="N",
        help="number of processes (default: the available cores, here %(default)s)",
    )  # fmt: skip
    return parser.parse_args()


def prepare(args: argparse.Namespace) -> Work:
    """Read network and reference, and check them against each other."""
    saved, reference = landmarks.read(args.landmarks), read_reference(args.reference)
    num_maps = len(saved.tensors["l0.bias"])
    if len(reference) > num_maps:
        raise UserError(
            f"--reference: {args.reference} has {len(reference)} landmarks, and {args.landmarks} "
            f"finds {num_maps}: name the reference of this network"
        )
    points = tuple((x, y) for x, y in reference.tolist())
    face = read_face(args.face, reference)
    settings = Settings(saved.fingerprint(), points, face, args.size, args.format, args.split)
    return Work(settings, args.landmarks, args.min_heat, args.out)


def main() -> int:
    setup_logging()
    args = parse_args()
    work = prepare(args)
    sources = list_sources(args.sources, args.split, outside=args.out)
    errors = align_all(work, sources, args.workers)
    print(f"{len(sources) - len(errors)} of {len(sources)} pictures, in {args.out}")
    for error in errors:
        print(f"skipped: {printable(error)}")
    return BAD_PICTURES if errors else 0


if __name__ == "__main__":
    run_command(main)
