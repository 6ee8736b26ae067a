"""Command line of videos: `python -m stargan_dist.video MODEL OUT --domain dog`.

Writes a video of translations whose style moves between keyframes: a domain and a seed or reference
each. OUT ends with .mp4 (needs PyAV: pip install 'stargan_dist[video]') or .webp.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from stargan_dist import storage
from stargan_dist.console.progress import progress_bar
from stargan_dist.errors import UserError, run_command
from stargan_dist.inference import examples, videos
from stargan_dist.inference.pictures import FITS, Fitted
from stargan_dist.inference.sources import list_sources
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
    parser.add_argument(
        "--domain", nargs="+", required=True, metavar="NAME",
        help="of the outputs: one for all keyframes, or one for each",
    )  # fmt: skip
    guide = parser.add_mutually_exclusive_group()
    guide.add_argument(
        "--seeds", nargs="+", type=int, metavar="N",
        help="random styles: one for all keyframes, or one for each (default: 0 1 2 3; with "
        "several domains: 0)",
    )  # fmt: skip
    guide.add_argument(
        "--references", nargs="+", metavar="FILE",
        help="pictures, or folders of them, in place of seeds",
    )  # fmt: skip
    parser.add_argument(
        "--frames", type=int, default=30, help="from a keyframe to the next (default: 30)"
    )
    parser.add_argument(
        "--hold", type=int, default=0, help="further frames on each keyframe (default: 0)"
    )
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
    parser.add_argument("--strength", type=float, default=1.0, help="of the styles (default: 1)")
    parser.add_argument("--fit", choices=[*FITS], default="crop", help="default: crop")
    args = parser.parse_args()
    if not (1 <= args.frames <= MAX_FRAMES and 0 <= args.hold <= MAX_FRAMES):
        parser.error(f"--frames, --hold: up to {MAX_FRAMES}, and at least 1 and 0")
    if args.layout == "authors" and not args.references:
        parser.error("--layout authors: needs --references")
    unused = [f"--{name}" for name in MOTION if getattr(args, name) != parser.get_default(name)]
    if args.layout == "authors" and unused:
        parser.error(f"--layout authors: has a motion of its own; drop {', '.join(unused)}")
    return args


def list_pictures(args: argparse.Namespace, saved: SavedModel) -> list[Callable[[], Image.Image]]:
    """Return functions that read the sources: --sources, else validation images of the run.

    Raises:
        UserError: a location cannot be listed, or the run's shards cannot be read.
    """
    if args.sources:
        return [source.read for location in args.sources for source in list_sources(location)]
    return [example.image.copy for example in examples.instead_of_sources(saved)]


def read_sources(args: argparse.Namespace, translator: Translator) -> list[Fitted]:
    """Read the sources, in the square of the model.

    Raises:
        UserError: one cannot be read, or they are too many for a frame.
    """
    readers, size = list_pictures(args, translator.saved), translator.image_size
    left = videos.column_of_authors(size) if args.layout == "authors" else 0
    check_size(args.out, left + len(readers) * size, 2 * size)
    return [translator.fitted(read(), args.fit) for read in readers]


def read_references(args: argparse.Namespace, translator: Translator) -> list[Image.Image]:
    """Read the references, as the model sees them: fitting them again changes nothing."""
    found = [each for location in args.references or () for each in list_sources(location)]
    return [videos.to_picture(translator.fitted(each.read(), args.fit)) for each in found]


def default_seeds(args: argparse.Namespace, translator: Translator) -> list[int]:
    """Return several seeds where they alone move the style, else one."""
    return SEEDS if len(args.domain) == 1 and translator.model.diverse else SEEDS[:1]


def pair(domains: Sequence[str], guides: Sequence[Any]) -> list[tuple[str, Any]]:
    """Return domain and guide of each keyframe; a single one of either is that of all keyframes.

    Raises:
        UserError: their numbers do not fit, or there is one keyframe.
    """
    count = max(len(domains), len(guides))
    if count == 1:
        raise UserError(
            "one keyframe does not move: name several --seeds, --references or --domain"
        )
    if not {len(domains), len(guides)} <= {1, count}:
        raise UserError(
            f"--domain: {len(domains)} domains and {len(guides)} seeds or references do not fit: "
            "name one for all keyframes, or one for each"
        )
    factors = count // len(domains), count // len(guides)
    return [*zip([*domains] * factors[0], [*guides] * factors[1], strict=True)]


def keyframes_of(
    translator: Translator, pairs: Sequence[tuple[str, Any]], args: argparse.Namespace
) -> Tensor:
    """Return what G is conditioned on in each keyframe, (K, conditioning_dim)."""
    guide = "reference" if args.references else "seed"
    common: dict[str, Any] = {"strength": args.strength, "fit": args.fit}
    return torch.cat([translator.conditioning(d, **common | {guide: [g]}) for d, g in pairs])


def plan(args: argparse.Namespace, domains: Sequence[str]) -> list[videos.Frame]:
    """Return the moments of the video, given the domain of each keyframe."""
    if args.layout == "authors":
        frames = videos.plan_of_authors([domains.index(name) for name in domains])
        if not frames:
            raise UserError("--references: name two of one domain, one after the other")
        return frames
    motion = videos.Motion(args.frames, args.hold, args.easing, args.interpolation, args.loop)
    return videos.plan(len(domains), motion)


def main() -> None:
    args = parse_args()
    check_writer(args.out)
    saved = open_model(args.model, args.checkpoint, options=authors_options(args))
    storage.configure(saved.config.storage)
    translator = Translator(saved)
    references = read_references(args, translator)
    pairs = pair(args.domain, references or args.seeds or default_seeds(args, translator))
    keyframes = keyframes_of(translator, pairs, args)
    frames = plan(args, [domain for domain, _ in pairs])
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
