"""Command line of a page for the browser: `python -m stargan_dist.app MODEL...`.

Serves a page that translates pictures with trained models, side by side, until it is interrupted.
It listens on this machine alone, unless --host names another address.
"""

import argparse

from stargan_dist import storage
from stargan_dist.console.arguments import integer
from stargan_dist.data import transforms
from stargan_dist.errors import run_command
from stargan_dist.inference import examples, page_server
from stargan_dist.inference.examples import Example
from stargan_dist.inference.page import build, import_gradio
from stargan_dist.inference.page_actions import Actions
from stargan_dist.inference.side_by_side import SideBySide
from stargan_dist.inference.translator import Translator
from stargan_dist.models.arguments import add_model_arguments, authors_options
from stargan_dist.models.opening import open_model


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stargan_dist.app", description=__doc__.split("\n\n")[1]
    )
    add_model_arguments(parser, nargs="+")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--port", type=integer(0, 2**16 - 1), default=7860,
        help="if it is busy, the next free one; 0: any (default: 7860)",
    )  # fmt: skip
    parser.add_argument(
        "--examples", nargs="+", metavar="PATH",
        help="pictures to choose from, files or folders (default: validation images)",
    )  # fmt: skip
    parser.add_argument(
        "--max-pixels", type=integer(1), default=transforms.MAX_PIXELS, metavar="N",
        help="refuse larger pictures (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size", type=integer(1), metavar="N",
        help="outputs that a model computes at a time (default: 8; on a CPU fewer large ones)",
    )  # fmt: skip
    return parser.parse_args()


def load(args: argparse.Namespace) -> dict[str, Translator]:
    """Load the models, by the names that were given. Prints each."""
    options = authors_options(args)
    translators = {}
    for name in args.model:
        saved = open_model(name, args.checkpoint, options=options)
        storage.configure(saved.config.storage)  # for the validation images of a run
        translators[name] = Translator(saved, batch_size=args.batch_size)
        print(f"{saved.origin}: {len(saved.labels.names)} labels", flush=True)
    return translators


def load_examples(args: argparse.Namespace, translators: dict[str, Translator]) -> list[Example]:
    """Return the pictures to choose from."""
    if args.examples:
        return examples.from_files(args.examples)
    return examples.validation_images(each.saved for each in translators.values())


def main() -> None:
    args = parse_args()
    page_server.end_on_signals()
    import_gradio()  # before models are loaded: it may be missing
    translators = load(args)
    with page_server.temporary_files():
        actions = Actions(SideBySide(translators), args.max_pixels)
        blocks = build(actions, load_examples(args, translators))
        page_server.serve(blocks, args.host, args.port)


if __name__ == "__main__":
    run_command(main)
