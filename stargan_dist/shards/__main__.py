"""Command line of shards: `python -m stargan_dist.shards build|merge|inspect|verify|preview`.

Shards are WebDataset tars of images, with an index. Each command explains its options by --help.
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from stargan_dist import storage
from stargan_dist.config import StorageConfig
from stargan_dist.console.arguments import Parser, integer
from stargan_dist.data.index import MAX_SAMPLES, Index, read_index
from stargan_dist.errors import UserError, printable, run_command
from stargan_dist.shards.build import build
from stargan_dist.shards.pack import Encoding
from stargan_dist.shards.preview import preview, write_png
from stargan_dist.shards.process_pool import available_cores
from stargan_dist.shards.publish import WHOLE_BUILD, BuildPart, merge, merge_if_last
from stargan_dist.shards.summary import summarise, summary_table
from stargan_dist.shards.verify import verify

PROGRAM = "python -m stargan_dist.shards"
FAULTS_FOUND = 1  # exit code of verify


# Types of option values.


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 0 and less than 1")
    return value


_fraction.__name__ = "number"  # argparse's message is "invalid number value"


def _part(text: str) -> BuildPart:
    try:
        number, count = map(int, text.split("/"))
    except ValueError:
        number, count = 0, 0
    if not 1 <= number <= count:
        raise argparse.ArgumentTypeError(f"{text} must be like 2/4, the second of four parts")
    return BuildPart(number, count)


def _storage_options(text: str) -> dict[str, dict[str, Any]]:
    try:
        options = json.loads(text)
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, dict) or not all(isinstance(o, dict) for o in options.values()):
        raise argparse.ArgumentTypeError('must be like {"s3": {"endpoint_url": "http://…"}}')
    return options


# Options of each command.


def parse_args() -> argparse.Namespace:
    parser = Parser(prog=PROGRAM, description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_build, _add_merge, _add_inspect, _add_verify, _add_preview):
        add(commands)
    return parser.parse_args()


def _add_command(
    commands: Any, name: str, run: Callable[..., int | None], short: str, long: str, example: str
) -> argparse.ArgumentParser:
    """Add a command with the options shared by all; `run` takes the parsed arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=short,
        description=f"{long}\n\nexample:\n  {PROGRAM} {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--storage", type=_storage_options, default={}, metavar="JSON",
        help="fsspec options of file systems, by protocol, such as "
        '\'{"s3": {"endpoint_url": "http://127.0.0.1:9000"}}\'',
    )  # fmt: skip
    return parser


def _add_url(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(name.lower(), metavar=name, help="folder or URL of the shards")


def _add_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--processes", type=integer(1), default=available_cores(), metavar="N",
        help="number of worker processes (default: the available cores, here %(default)s)",
    )  # fmt: skip


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def _add_build(commands: Any) -> None:
    parser = _add_command(
        commands, "build", _build, "pack images into shards",
        "Pack images into WebDataset tars with an index.\n\n"
        "SRC is a folder with one folder per domain; or a folder with folders train and val\n"
        "(optionally test), each with one folder per domain; or a manifest: a .csv or .jsonl file\n"
        "with the fields path and domain, optionally split. Its other fields are kept as\n"
        "attributes. The original bytes are packed, unless --size, --crop or --format is given.\n"
        "To continue an interrupted build, run the same command again. Several machines can\n"
        "build one part each; `merge` joins the parts.",
        "images s3://bucket/set --size 256 --crop 2048",
    )  # fmt: skip
    parser.add_argument("source", metavar="SRC", help="folder, manifest or URL of the images")
    _add_url(parser, "DEST")
    _add_split_options(parser)
    _add_encoding_options(parser)
    parser.add_argument(
        "--shard-images", type=integer(1, MAX_SAMPLES), default=1024, metavar="N",
        help="images per shard (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--skip-bad", action="store_true",
        help="leave out images that cannot be used, and list them in the index, instead of "
        "stopping",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset at DEST")
    _add_part_options(parser)
    _add_processes(parser)


def _add_split_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--val-fraction", type=_fraction, default=0.1, metavar="FRACTION",
        help="fraction of each domain used for validation, if SRC has no splits "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--val-list", default="", metavar="FILE",
        help="file with the paths of the validation images, one per line, instead of "
        "--val-fraction",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=integer(0), default=0,
        help="seed of the validation split (default: %(default)s)",
    )  # fmt: skip


def _add_encoding_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size", type=integer(0), default=0, metavar="PIXELS",
        help="reduce the shorter side to this size; 0: do not resize (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--crop", type=integer(0), default=0, metavar="PIXELS",
        help="first crop to a central square of at most this size; 0: do not crop "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--format", choices=("jpeg", "png", "webp"),
        help="format of re-encoded images (default: jpeg with --size or --crop; otherwise the "
        "original bytes)",
    )  # fmt: skip
    parser.add_argument(
        "--quality", type=integer(1, 100), default=92,
        help="quality of re-encoded jpeg and webp images, 1 to 100 (default: %(default)s)",
    )  # fmt: skip


def _add_part_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--part", type=_part, default=WHOLE_BUILD, metavar="I/N",
        help="build only the I-th of N parts, for `merge` (default: build everything)",
    )  # fmt: skip
    parser.add_argument(
        "--merge", action="store_true",
        help="with --part: merge the parts after building this one, if it is the last",
    )  # fmt: skip


def _add_merge(commands: Any) -> None:
    parser = _add_command(
        commands, "merge", _merge, "join the parts of a build",
        "Join the parts that `build --part I/N` wrote to DEST into one dataset. The result is\n"
        "byte-identical to that of a single build.",
        "s3://bucket/set",
    )  # fmt: skip
    _add_url(parser, "DEST")
    parser.add_argument("--overwrite", action="store_true", help="replace the index at DEST")


def _add_inspect(commands: Any) -> None:
    parser = _add_command(
        commands, "inspect", _inspect, "print a summary of a dataset",
        "Print a summary of a dataset from its index. No shard is read.",
        "s3://bucket/set",
    )  # fmt: skip
    _add_url(parser, "URL")
    _add_json(parser)


def _add_verify(commands: Any) -> None:
    parser = _add_command(
        commands, "verify", _verify, "check every shard, sample and image",
        "Read every shard once and check it against the index: checksums, tar structure, samples,\n"
        "images, and that keys are unique. Each fault is printed on a line. The exit code is 0 if\n"
        "there are no faults, and 1 otherwise.",
        "s3://bucket/set --processes 16",
    )  # fmt: skip
    _add_url(parser, "URL")
    _add_processes(parser)
    _add_json(parser)


def _add_preview(commands: Any) -> None:
    parser = _add_command(
        commands, "preview", _preview, "draw a contact sheet",
        "Draw some images of every domain, evenly spread over its shards, as a PNG. Only the\n"
        "bytes of those images are read. Images that cannot be read are crossed out and reported.",
        "s3://bucket/set --out set.png",
    )  # fmt: skip
    _add_url(parser, "URL")
    parser.add_argument(
        "--out", default="preview.png", metavar="FILE",
        help="file or URL of the PNG (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--split", default="train", help="split to draw (default: %(default)s)")
    parser.add_argument(
        "--per-domain", type=integer(1), default=8, metavar="N",
        help="maximum number of images of each domain (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=integer(16), default=128, metavar="PIXELS",
        help="width and height of a cell (default: %(default)s)",
    )  # fmt: skip


# Commands.


def _build(args: argparse.Namespace) -> None:
    if args.part != WHOLE_BUILD and args.overwrite:
        raise UserError(
            "--part and --overwrite exclude each other, because parts would remove each other's "
            f"shards: remove {args.dest} first"
        )
    index = build(
        args.source,
        args.dest,
        val_fraction=args.val_fraction,
        val_list=args.val_list,
        seed=args.seed,
        shard_images=args.shard_images,
        encoding=_encoding(args),
        skip_bad=args.skip_bad,
        overwrite=args.overwrite,
        num_processes=args.processes,
        part=args.part,
    )
    if args.part == WHOLE_BUILD:
        print(summary_table(summarise(index)))
        return
    print(_part_line(args.part, args.dest, index))
    merged = merge_if_last(args.dest, args.part) if args.merge else None
    if merged is not None:
        print(summary_table(summarise(merged)))


def _encoding(args: argparse.Namespace) -> Encoding | None:
    if args.size or args.crop or args.format:
        return Encoding(args.size, args.crop, args.format or "jpeg", args.quality)
    return None


def _part_line(part: BuildPart, dest: str, index: Index) -> str:
    shards = index.shards()
    return (
        f"part {part.number} of {part.count}: {sum(s.samples for s in shards)} images in "
        f"{len(shards)} shards; when all parts are there, join them: "
        f"{PROGRAM} merge {printable(dest)}"
    )


def _merge(args: argparse.Namespace) -> None:
    print(summary_table(summarise(merge(args.dest, args.overwrite))))


def _inspect(args: argparse.Namespace) -> None:
    summary = summarise(read_index(args.url))
    print(json.dumps(summary, ensure_ascii=False) if args.json else summary_table(summary))


def _verify(args: argparse.Namespace) -> int:
    faults = verify(args.url, args.processes)
    summary = summarise(read_index(args.url))
    images, shards = summary["images"], summary["shards"]
    if args.json:
        print(json.dumps({"images": images, "shards": shards, "faults": faults}))
    else:
        count = {0: "no faults", 1: "1 fault"}.get(len(faults), f"{len(faults)} faults")
        print("\n".join([*faults, f"{images} images in {shards} shards: {count}"]))
    return FAULTS_FOUND if faults else 0


def _preview(args: argparse.Namespace) -> None:
    if PurePosixPath(args.out).suffix.lower() != ".png":
        raise UserError(f"--out {args.out}: the sheet is a PNG: name a file that ends with .png")
    sheet, faults = preview(args.url, split=args.split, per_domain=args.per_domain, size=args.size)
    for fault in faults:
        print(printable(f"crossed out: {fault}"), file=sys.stderr)
    write_png(args.out, sheet)
    print(printable(args.out))


def main() -> int | None:
    args = parse_args()
    storage.configure(StorageConfig(options=args.storage))
    # SIGTERM, as sent by a scheduler, ends the worker processes too, like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    exit_code: int | None = args.run(args)
    return exit_code


if __name__ == "__main__":
    run_command(main)
