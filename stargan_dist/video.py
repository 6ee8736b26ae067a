"""Command line of videos: `python -m stargan_dist.video MODEL OUT --sources FILE --domain dog`.

Writes a video of translations whose style moves between keyframes: seeds of a domain, seeds of
several domains, or references. OUT ends with .mp4 (needs PyAV: pip install 'stargan_dist[video]')
or .webp.
"""

import argparse
from collections.abc import Sequence
from fractions import Fraction

import torch
from PIL import Image
from torch import Tensor

from stargan_dist import storage
from stargan_dist.console.progress import progress_bar
from stargan_dist.errors import UserError, run_command
from stargan_dist.inference import videos
from stargan_dist.inference.pictures import FITS, Fitted, read_image
from stargan_dist.inference.sources import list_sources
from stargan_dist.inference.translator import Translator
from stargan_dist.inference.video_files import check_writer, write_video
from stargan_dist.models.arguments import add_model_arguments, authors_options
from stargan_dist.models.opening import open_model

LAYOUTS = ("grid", "authors")
FPS, AUTHORS_FPS = Fraction(25), Fraction(25, 2)
MAX_FRAMES = 10_000  # of a transition


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stargan_dist.video", description=__doc__.split("\n\n")[1]
    )
    add_model_arguments(parser)
    parser.add_argument("out", metavar="OUT", help="file or URL that ends with .mp4 or .webp")
    parser.add_argument(
        "--sources", nargs="+", required=True, metavar="FILE",
        help="pictures, or folders of them, that are translated side by side",
    )  # fmt: skip
    parser.add_argument(
        "--domain", nargs="+", required=True, metavar="NAME",
        help="of the outputs; with several, the seeds of each in turn, or one for each reference",
    )  # fmt: skip
    guide = parser.add_mutually_exclusive_group()
    guide.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2, 3], metavar="N",
        help="random styles (default: 0 1 2 3)",
    )  # fmt: skip
    guide.add_argument(
        "--references", nargs="+", metavar="FILE", help="pictures, in place of seeds"
    )
    parser.add_argument(
        "--frames", type=int, default=30, help="from a keyframe to the next (default: 30)"
    )
    parser.add_argument(
        "--hold", type=int, default=0, help="further frames on each keyframe (default: 0)"
    )
    parser.add_argument("--fps", type=Fraction, help="frames per second (default: 25)")
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
    if args.fps is not None and not 0 < args.fps <= 240:
        parser.error("--fps: more than 0, and at most 240")
    if args.layout == "authors" and not args.references:
        parser.error("--layout authors: needs --references")
    return args


def domains_of_references(domains: Sequence[str], count: int) -> list[str]:
    """Return the domain of each reference: one for all, or one for each.

    Raises:
        UserError: their numbers do not fit.
    """
    if len(domains) not in (1, count):
        raise UserError(f"--domain: name one for all references, or one for each of the {count}")
    return [*domains] * (count // len(domains))


def keyframes_of(
    translator: Translator, args: argparse.Namespace, references: Sequence[Image.Image]
) -> Tensor:
    """Return what G is conditioned on in each keyframe, (K, conditioning_dim)."""
    common = {"strength": args.strength, "fit": args.fit}
    if references:
        domains = domains_of_references(args.domain, len(references))
        parts = [
            translator.conditioning(domain, reference=[image], **common)
            for domain, image in zip(domains, references, strict=True)
        ]
    else:
        parts = [translator.conditioning(d, seed=args.seeds, **common) for d in args.domain]
    return torch.cat(parts)


def square(translator: Translator, picture: Image.Image, fit: str) -> Image.Image:
    """Return a picture as the model sees it."""
    return videos.to_picture(translator.fitted(picture, fit))


def plan(args: argparse.Namespace, count: int) -> list[videos.Frame]:
    """Return the moments of the video."""
    if args.layout == "authors":
        names = domains_of_references(args.domain, count)
        frames = videos.plan_of_authors([names.index(name) for name in names])
        if not frames:
            raise UserError("--references: name two of one domain, one after the other")
        return frames
    motion = videos.Motion(args.frames, args.hold, args.easing, args.interpolation, args.loop)
    return videos.plan(count, motion)


def main() -> None:
    args = parse_args()
    check_writer(args.out)
    saved = open_model(args.model, args.checkpoint, options=authors_options(args))
    storage.configure(saved.config.storage)
    translator = Translator(saved)
    pictures = [source.read() for location in args.sources for source in list_sources(location)]
    sources: list[Fitted] = [translator.fitted(picture, args.fit) for picture in pictures]
    references = [read_image(url) for url in args.references or []]
    keyframes = keyframes_of(translator, args, references)
    frames = plan(args, len(keyframes))
    layout: videos.Layout = videos.grid_layout
    if args.layout == "authors":
        layout = videos.layout_of_authors([square(translator, r, args.fit) for r in references])
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
