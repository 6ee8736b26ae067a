"""Command line of videos: `python -m stargan_dist.video MODEL OUT --domain dog`.

Writes a video of translations whose style moves between keyframes: a domain and a seed or reference
each. OUT ends with .mp4 (needs PyAV: pip install 'stargan_dist[video]') or .webp.
"""

import argparse
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from stargan_dist import storage
from stargan_dist.console.arguments import integer
from stargan_dist.console.progress import progress_bar
from stargan_dist.errors import UserError, run_command
from stargan_dist.inference import examples, videos
from stargan_dist.inference.pictures import FITS, Fitted
from stargan_dist.inference.sources import Source, list_sources, read_all
from stargan_dist.inference.targets import parse_attributes
from stargan_dist.inference.translator import Translator
from stargan_dist.inference.video_files import check_size, check_writer, write_video
from stargan_dist.models.arguments import add_model_arguments, authors_options
from stargan_dist.models.opening import open_model
from stargan_dist.models.saved import SavedModel

LAYOUTS = ("grid", "authors")
FPS, AUTHORS_FPS, MAX_FPS = Fraction(25), Fraction(25, 2), 240
MAX_FRAMES = 10_000  # of a transition
MOTION = ("frames", "hold", "easing", "loop")  # options
SEEDS = [0, 1, 2, 3]

Target = dict[str, Any]  # arguments of Translator.conditioning


def frame_rate(text: str) -> Fraction:
    """Parse --fps."""
    is_number = re.fullmatch(r"\d{1,3}(\.\d{1,3})?|\d{1,6}/[1-9]\d{0,3}", text, re.ASCII)
    if not is_number or not 1 <= Fraction(text) <= MAX_FPS:
        raise argparse.ArgumentTypeError(
            f"{text!r}: write a number from 1 to {MAX_FPS} with up to three decimals, or a ratio "
            "such as 30000/1001"
        )
    return Fraction(text)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stargan_dist.video", description=__doc__.split("\n\n")[1]
    )
    add_model_arguments(parser)
    parser.add_argument("out", metavar="OUT", help="file or URL that ends with .mp4 or .webp")
    parser.add_argument(
        "--sources", nargs="+", metavar="FILE",
        help="pictures, or folders of them, that are translated side by side (default: validation "
        "images of the run)",
    )  # fmt: skip
    add_keyframes(parser)
    add_motion(parser)
    parser.add_argument("--strength", type=float, default=1.0, help="of the styles (default: 1)")
    parser.add_argument("--fit", choices=[*FITS], default="crop", help="default: crop")
    args = parser.parse_args()
    if args.layout == "authors":
        check_layout_of_authors(parser, args)
    return args


def add_keyframes(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what the keyframes show."""
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--domain", nargs="+", metavar="NAME",
        help="of the outputs: one for all keyframes, or one for each",
    )  # fmt: skip
    target.add_argument(
        "--attributes", nargs="+", action="append", metavar="NAME=VALUE",
        help="in place of domains, for models of attributes: those of the outputs (1 or 0); others "
        "are false. Given several times: those of each keyframe",
    )  # fmt: skip
    parser.add_argument(
        "--data-source", metavar="NAME", help="whose attributes they are, if there are several"
    )
    guide = parser.add_mutually_exclusive_group()
    guide.add_argument(
        "--seeds", nargs="+", type=integer(0), metavar="N",
        help="random styles: one for all keyframes, or one for each (default: 0 1 2 3; with "
        "several domains: 0)",
    )  # fmt: skip
    guide.add_argument(
        "--references", nargs="+", metavar="FILE",
        help="pictures, or folders of them, in place of seeds",
    )  # fmt: skip


def add_motion(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how the video moves between keyframes, and its layout."""
    parser.add_argument(
        "--frames", type=integer(1, MAX_FRAMES), default=30,
        help="from a keyframe to the next (default: 30)",
    )  # fmt: skip
    parser.add_argument(
        "--hold", type=integer(0, MAX_FRAMES), default=0,
        help="further frames on each keyframe (default: 0)",
    )  # fmt: skip
    parser.add_argument("--fps", type=frame_rate, help="frames per second (default: 25)")
    parser.add_argument("--easing", choices=[*videos.EASINGS], default="smooth")
    parser.add_argument(
        "--interpolation", choices=[*videos.INTERPOLATIONS], default="linear",
        help="of styles (default: linear)",
    )  # fmt: skip
    parser.add_argument("--loop", action="store_true", help="return to the first keyframe")
    parser.add_argument(
        "--layout", choices=LAYOUTS, default=LAYOUTS[0],
        help="grid: outputs below sources; authors: with references that slide upwards, and the "
        "motion of the video of StarGAN v2's authors (default: grid)",
    )  # fmt: skip


def check_layout_of_authors(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse options that contradict the layout."""
    if not (args.references and args.domain):
        parser.error("--layout authors: needs --domain and --references")
    unused = [f"--{name}" for name in MOTION if getattr(args, name) != parser.get_default(name)]
    if unused:
        parser.error(f"--layout authors: has a motion of its own; drop {', '.join(unused)}")


def list_pictures(args: argparse.Namespace, saved: SavedModel) -> list[Source]:
    """Return the sources: --sources, else validation images of the run.

    Raises:
        UserError: a location cannot be listed, or the run's shards cannot be read.
    """
    if args.sources:
        return [source for location in args.sources for source in list_sources(location)]
    found = examples.instead_of_sources(saved)
    return [Source(example.domain, "validation images", example.image.copy) for example in found]


def read_sources(args: argparse.Namespace, translator: Translator) -> list[Fitted]:
    """Read the sources, in the square of the model.

    Raises:
        UserError: one cannot be read, or they are too many for a frame.
    """
    sources, size = list_pictures(args, translator.saved), translator.image_size
    left = videos.column_of_authors(size) if args.layout == "authors" else 0
    check_size(args.out, left + len(sources) * size, 2 * size)
    return read_all(sources, partial(translator.fitted, fit=args.fit))


def read_references(args: argparse.Namespace, translator: Translator) -> list[Image.Image]:
    """Read the references, as the model sees them: fitting them again changes nothing."""
    found = [each for location in args.references or () for each in list_sources(location)]
    return [*map(videos.to_picture, read_all(found, partial(translator.fitted, fit=args.fit)))]


def targets_of(args: argparse.Namespace) -> list[Target]:
    """Return the target of each keyframe, or the single one."""
    if args.domain:
        return [{"domain": name} for name in args.domain]
    return [
        {"attributes": parse_attributes(words), "data_source": args.data_source}
        for words in args.attributes
    ]


def default_seeds(args: argparse.Namespace, translator: Translator) -> list[int]:
    """Return several seeds where they alone move the style, else one."""
    moves = len(args.domain or args.attributes) == 1 and translator.model.diverse
    return SEEDS if moves else SEEDS[:1]


def pair(targets: Sequence[Target], guides: Sequence[Any]) -> list[tuple[Target, Any]]:
    """Return target and guide of each keyframe; a single one of either is that of all keyframes.

    Raises:
        UserError: their numbers do not fit, or there is one keyframe.
    """
    count = max(len(targets), len(guides))
    if count == 1:
        raise UserError(
            "one keyframe does not move: name several --seeds, --references, --domain or "
            "--attributes"
        )
    if not {len(targets), len(guides)} <= {1, count}:
        raise UserError(
            f"--domain, --attributes: {len(targets)} targets and {len(guides)} seeds or references "
            "do not fit: name one for all keyframes, or one for each"
        )
    factors = count // len(targets), count // len(guides)
    return [*zip([*targets] * factors[0], [*guides] * factors[1], strict=True)]


def keyframes_of(
    translator: Translator, pairs: Sequence[tuple[Target, Any]], args: argparse.Namespace
) -> Tensor:
    """Return what G is conditioned on in each keyframe, (K, conditioning_dim)."""
    guide = "reference" if args.references else "seed"
    common: dict[str, Any] = {"strength": args.strength, "fit": args.fit}
    return torch.cat(
        [translator.conditioning(**target, **common | {guide: [g]}) for target, g in pairs]
    )


def plan(args: argparse.Namespace, targets: Sequence[Target]) -> list[videos.Frame]:
    """Return the moments of the video, given the target of each keyframe."""
    if args.layout == "authors":
        frames = videos.plan_of_authors([targets.index(target) for target in targets])
        if not frames:
            raise UserError("--references: name two of one domain, one after the other")
        return frames
    motion = videos.Motion(args.frames, args.hold, args.easing, args.interpolation, args.loop)
    return videos.plan(len(targets), motion)


def main() -> None:
    args = parse_args()
    check_writer(args.out)
    saved = open_model(args.model, args.checkpoint, options=authors_options(args))
    storage.configure(saved.config.storage)
    translator = Translator(saved)
    references = read_references(args, translator)
    pairs = pair(targets_of(args), references or args.seeds or default_seeds(args, translator))
    keyframes = keyframes_of(translator, pairs, args)
    frames = plan(args, [target for target, _ in pairs])
    layout: videos.Layout = videos.grid_layout
    if args.layout == "authors":
        layout = videos.layout_of_authors([reference for _, reference in pairs])
    sources = read_sources(args, translator)
    images = videos.render(
        translator, sources, keyframes, frames, interpolation=args.interpolation, layout=layout
    )
    fps = args.fps or (AUTHORS_FPS if args.layout == "authors" else FPS)
    with progress_bar(len(frames), "frames", description="rendering", brief=True) as progress:
        shown = (image for image in images if progress.update(1) or True)
        write_video(args.out, shown, len(frames), fps)
    print(f"{args.out}: {len(frames)} frames, {float(len(frames) / fps):.1f} s")


if __name__ == "__main__":
    run_command(main)
