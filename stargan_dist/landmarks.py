"""Command line of landmark networks: `python -m stargan_dist.landmarks train|mean SHARDS OUT`.

A landmark network finds the eyes, nose and other landmarks of an image. It makes the masks of the
high-pass option (model.w_hpf), and aligns photographs. `train` fits one to images with known
landmarks. `mean` computes the mean landmarks of a dataset, which photographs are aligned to.
"""

import argparse
from typing import Any

import torch

from stargan_dist import storage
from stargan_dist.console.arguments import Parser, integer
from stargan_dist.data.index import Index, read_index
from stargan_dist.data.reader import ShardReader, check_split
from stargan_dist.errors import STOPPED, UserError, run_command
from stargan_dist.faces import fit_checkpoint, manifest, mean, parts
from stargan_dist.faces.fit_loop import error_in_words, run
from stargan_dist.faces.fitting import Fit, Settings
from stargan_dist.faces.samples import Samples
from stargan_dist.faces.targets import LOSSES
from stargan_dist.models import landmarks
from stargan_dist.models.landmarks import Description, SavedLandmarks
from stargan_dist.training.signals import StopSignals

DEFAULTS = Settings()
CHECKPOINT_SUFFIX = ".checkpoint"  # of the file beside OUT


def parse_args() -> argparse.Namespace:
    parser = Parser(prog="python -m stargan_dist.landmarks", description=__doc__.split("\n\n")[1])
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_train(commands)
    _add_mean(commands)
    return parser.parse_args()


def _add_common(commands: Any, name: str, run: Any, text: str, out: str) -> Any:
    parser = commands.add_parser(name, help=text, description=text[:1].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    parser.add_argument("shards", metavar="SHARDS", help="folder or URL of the shards")
    parser.add_argument("out", metavar="OUT", help=out)
    parser.add_argument(
        "--workers", type=integer(0), default=1, help="loader processes (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=integer(2), default=DEFAULTS.batch_size, metavar="N",
        help="images at a time (default: %(default)s)",
    )  # fmt: skip
    return parser


def _add_train(commands: Any) -> None:
    parser = _add_common(
        commands, "train", train, "fit a landmark network to images with known landmarks",
        "file or URL of the network, .safetensors; OUT.checkpoint beside it, from which the same "
        "command resumes",
    )  # fmt: skip
    parser.add_argument(
        "--points", required=True, metavar="FILE",
        help="landmarks of all images, JSON lines: {\"file\": …, \"points\": [[x, y], …]}",
    )  # fmt: skip
    parser.add_argument(
        "--parts", metavar="FILE",
        help="table of the parts of the masks, JSON (default: that of WFLW, for 98 landmarks)",
    )  # fmt: skip
    for name, text in {
        "width": "channels of the hourglass, a multiple of 16",
        "input-size": "pixels that images are resized to, a multiple of 64",
        "steps": "iterations",
        "lr": "largest learning rate; it rises and then falls to 0",
        "sigma": "of the Gaussians, in pixels of a heat map, which has a quarter of the input size",
        "augment": "strength of random shifts, rotations and scales; 0: none",
        "seed": "of all random draws",
    }.items():
        default = getattr(DEFAULTS, name.replace("-", "_"))
        parser.add_argument(
            f"--{name}", type=type(default), default=default, metavar="N",
            help=f"{text} (default: %(default)s)",
        )  # fmt: skip
    parser.add_argument(
        "--loss", choices=[*LOSSES], default=DEFAULTS.loss, help="default: %(default)s"
    )
    parser.add_argument(
        "--every", type=integer(1), default=500, metavar="N",
        help="steps between checkpoints, with the error on validation images (default: "
        "%(default)s)",
    )  # fmt: skip


def _add_mean(commands: Any) -> None:
    parser = _add_common(
        commands, "mean", compute_mean, "compute the mean landmarks of a dataset",
        "file or URL: array `mean` of an .npz file, or JSON; x, y in pixels of 256",
    )  # fmt: skip
    parser.add_argument(
        "--landmarks", required=True, metavar="FILE",
        help="landmark network: a file of `train`, or weights of StarGAN v2's authors",
    )  # fmt: skip
    parser.add_argument("--split", default="train", help="of the shards (default: %(default)s)")


def _settings(args: argparse.Namespace) -> Settings:
    """Return the settings of a fit. Raises UserError if one is out of its range."""
    settings = Settings(**{name: getattr(args, name) for name in Settings.__struct_fields__})
    if not args.out.endswith(".safetensors"):
        raise UserError(f"{args.out}: the name of a network ends with .safetensors")
    if reason := settings.fault():
        raise UserError(reason)
    return settings


def _reader(url: str, index: Index, split: str) -> ShardReader:
    check_split(index, split, 1, url)
    return ShardReader(url, index, split)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def train(args: argparse.Namespace) -> int:
    """Fit a network, or resume the fit. Prints the error on validation images."""
    settings = _settings(args)
    points = manifest.read(args.points)
    table = parts.choose(args.parts, points.num_landmarks)
    index = read_index(args.shards)
    train_reader, val = (_reader(args.shards, index, split) for split in ("train", "val"))
    samples = Samples(train_reader, val, points, settings.input_size, args.workers)
    storage.check_writable(storage.parent(args.out))
    fit = Fit(settings, points.num_landmarks, samples.fingerprint, _device())
    checkpoint = args.out + CHECKPOINT_SUFFIX
    fit_checkpoint.resume(checkpoint, fit)
    with StopSignals() as signals:
        is_done = run(fit, samples, checkpoint, args.every, lambda: bool(signals.received))
    if not is_done:
        print(f"stopped at step {fit.step} of {settings.steps}; the same command resumes")
        return STOPPED
    print(error_in_words(fit, samples))
    description = Description(settings.input_size, table)
    landmarks.write(args.out, SavedLandmarks(args.out, fit.weights(), description))
    print(f"written to {args.out}")
    return 0


def compute_mean(args: argparse.Namespace) -> int:
    """Write the mean landmarks of a split."""
    network = landmarks.read(args.landmarks).build(_device())
    reader = _reader(args.shards, read_index(args.shards), args.split)
    points = mean.mean_landmarks(network, reader, batch_size=args.batch_size, workers=args.workers)
    mean.write(args.out, points)
    print(f"written to {args.out}: the mean of {len(points)} landmarks")
    return 0


if __name__ == "__main__":
    run_command(lambda: (args := parse_args()).run(args))
