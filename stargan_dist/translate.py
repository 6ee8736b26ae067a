"""Command line of folders: `python -m stargan_dist.translate MODEL SOURCES OUT --domain dog`.

Translates all pictures of a file, folder, pattern, URL or folder of shards, and writes an image for
each picture, target and guide: NAME_dog_seed0.png. The same command goes on where it stopped. Under
`accelerate launch` the processes share the pictures; the files are the same, byte for byte.

Exit codes: 0 everything is translated; 1 some pictures could not be read, they are listed; 2 a user
error.
"""

import argparse
import os
from functools import partial

from stargan_dist import storage
from stargan_dist.console.arguments import integer
from stargan_dist.console.logs import setup_logging
from stargan_dist.distributed.world import World
from stargan_dist.errors import run_command
from stargan_dist.inference import folders, output_folder
from stargan_dist.inference.folders import Guides, Settings, Work
from stargan_dist.inference.pictures import FITS
from stargan_dist.inference.sources import list_sources
from stargan_dist.inference.targets import parse_attributes
from stargan_dist.inference.translator import Translator
from stargan_dist.launch.launcher import launcher_hides_exit_codes, stop_with_launcher
from stargan_dist.launch.launcher_settings import take_settings
from stargan_dist.models.arguments import add_model_arguments, authors_options
from stargan_dist.models.opening import open_model

BAD_PICTURES = 1  # exit code


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stargan_dist.translate", description=__doc__.split("\n\n")[1]
    )
    add_model_arguments(parser)
    output_folder.add_arguments(parser, "SOURCES")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--domain", nargs="+", metavar="NAME", help="domains of the outputs")
    target.add_argument(
        "--attributes", nargs="+", metavar="NAME=VALUE",
        help="for models of attributes: those of the outputs (1 or 0); others are false",
    )  # fmt: skip
    parser.add_argument(
        "--data-source", metavar="NAME", help="whose attributes they are, if there are several"
    )
    guide = parser.add_mutually_exclusive_group()
    guide.add_argument(
        "--seeds", nargs="+", type=integer(0), default=[0], metavar="N",
        help="random styles, the same for all pictures (default: 0)",
    )  # fmt: skip
    guide.add_argument(
        "--references", nargs="+", default=[], metavar="FILE",
        help="pictures, or folders of them, whose styles the outputs have",
    )  # fmt: skip
    parser.add_argument(
        "--strength", type=float, default=1.0,
        help="of the style; 0: the mean style of the domain (default: 1)",
    )  # fmt: skip
    parser.add_argument("--fit", choices=[*FITS], default="crop", help="default: crop")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), help="of G (default: bfloat16 on GPUs)"
    )
    return parser.parse_args()


def settings_of(args: argparse.Namespace) -> Settings:
    """Return the settings of the outputs."""
    attributes = None if args.attributes is None else parse_attributes(args.attributes)
    return Settings(
        tuple(args.domain or ()), attributes, args.data_source, tuple(args.seeds),
        tuple(args.references), args.strength, args.fit, args.format, args.split,
    )  # fmt: skip


def load_translator(args: argparse.Namespace, world: World) -> Translator:
    """Load the model on the device of this rank."""
    bfloat16 = None if args.precision is None else args.precision == "bfloat16"
    saved = open_model(args.model, args.checkpoint, options=authors_options(args))
    storage.configure(saved.config.storage)
    return Translator(saved, device=world.device, bfloat16=bfloat16)


def prepare(args: argparse.Namespace, world: World) -> Work:
    """Load the model, list the sources and check the folder. Collective."""
    settings = settings_of(args)
    translator = world.run_on_all_ranks(partial(load_translator, args, world))
    sources = world.run_on_all_ranks(
        lambda: list_sources(args.sources, args.split, outside=args.out)
    )
    world.check_agreement({"the pictures to translate": [source.name for source in sources]})
    guides = world.run_on_all_ranks(partial(_guides, translator, settings))
    world.broadcast_from_main(
        lambda: folders.check_settings(args.out, translator, settings, guides)
    )
    existing = world.broadcast_from_main(lambda: frozenset(storage.find_files(args.out)))
    return Work(translator, sources, guides, settings, args.out, existing)


def _guides(translator: Translator, settings: Settings) -> Guides:
    references = [source for location in settings.references for source in list_sources(location)]
    return folders.make_guides(translator, settings, references)


def main() -> int:
    stop_with_launcher()
    take_settings(os.environ)  # they are about training
    setup_logging()
    args = parse_args()
    world = World()
    try:
        work = prepare(args, world)
        errors = folders.translate_all(work, world)
        if world.is_main:
            made = len(work.sources) - len(errors)
            print(f"{made} of {len(work.sources)} pictures, in {args.out}")
            for error in errors:
                print(f"skipped: {error}")
        return BAD_PICTURES if errors else 0
    except Exception as error:
        raise world.report_error(error) from error
    finally:
        world.close()


if __name__ == "__main__":
    run_command(main, launcher_hides_exit_codes)
