"""Command line of shards: `python -m stargan_dist.shards build|merge|inspect|verify|preview`.

Shards are WebDataset tars of images with an index. Each command tells more by its own --help.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, NoReturn

from stargan_dist import storage
from stargan_dist.config import StorageConfig
from stargan_dist.data.index import Index, read_index
from stargan_dist.errors import UserError, run_command
from stargan_dist.shards.build import build
from stargan_dist.shards.pack import Encoding
from stargan_dist.shards.preview import preview, write_png
from stargan_dist.shards.publish import BuildPart, merge, merge_if_last
from stargan_dist.shards.summary import facts, table
from stargan_dist.shards.verify import verify

PROGRAM = "python -m stargan_dist.shards"
FAULTS_FOUND = 1  # exit code of verify


class Parser(argparse.ArgumentParser):
    """Mistakes are one line, as all others of the user's."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


# Values.


def _at_least(minimum: int, maximum: float = float("inf")) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not minimum <= value <= maximum:
            limits = f"at least {minimum}" + (f" and at most {maximum}" if maximum < 1e9 else "")
            raise argparse.ArgumentTypeError(f"{value} must be {limits}")
        return value

    parse.__name__ = "whole number"  # for argparse's own message
    return parse


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 0 and less than 1")
    return value


def _part(text: str) -> BuildPart:
    try:
        number, of = map(int, text.split("/"))
    except ValueError:
        number, of = 0, 0
    if not 1 <= number <= of:
        raise argparse.ArgumentTypeError(f"{text} must be like 2/4, the second of four parts")
    return BuildPart(number, of)


def _options(text: str) -> dict[str, dict[str, Any]]:
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict) or not all(isinstance(o, dict) for o in options.values()):
        raise argparse.ArgumentTypeError('must be like {"s3": {"endpoint_url": "http://…"}}')
    return options


def _cores() -> int:
    """The cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1


# Parsers.


def parse_args() -> argparse.Namespace:
    parser = Parser(prog=PROGRAM, description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_build, _add_merge, _add_inspect, _add_verify, _add_preview):
        add(commands)
    return parser.parse_args()


def _add(
    commands: Any, name: str, run: Callable[..., int | None], short: str, long: str, example: str
) -> argparse.ArgumentParser:
    """A command with the options that all have; `run` takes the parsed arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=short,
        description=f"{long}\n\nexample:\n  {PROGRAM} {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--storage",
        type=_options,
        default={},
        metavar="JSON",
        help="options of fsspec's file systems by protocol, such as "
        '\'{"s3": {"endpoint_url": "http://127.0.0.1:9000"}}\'',
    )
    return parser


def _add_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--processes", type=_at_least(1), default=_cores(), metavar="N",
        help="how many work (default: the cores that may be used, here %(default)s)",
    )  # fmt: skip


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def _add_build(commands: Any) -> None:
    parser = _add(
        commands, "build", _build, "pack images into shards",
        "Pack images into WebDataset tars with an index.\n\n"
        "SRC holds one folder per domain, or folders train and val (and test) that do; or it is a\n"
        "manifest, a .csv or .jsonl with the fields path and domain, perhaps split, and others,\n"
        "which are kept. The original bytes are packed unless --size, --crop or --format is\n"
        "given. A build that was interrupted goes on where it was. Several machines build parts,\n"
        "which `merge` joins.",
        "images s3://bucket/set --size 256 --crop 2048",
    )  # fmt: skip
    parser.add_argument("source", metavar="SRC", help="folder, manifest or URL of the images")
    parser.add_argument("dest", metavar="DEST", help="folder or URL of the shards")
    _add_split_options(parser)
    _add_encoding_options(parser)
    parser.add_argument(
        "--shard-images", type=_at_least(1), default=1024, metavar="N",
        help="images in a shard (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out what cannot be used, and say so in the index, instead of stopping",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the set at DEST")
    parser.add_argument(
        "--part", type=_part, default=BuildPart(), metavar="I/N",
        help="build only the I-th of N parts, for `merge` (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--merge", action="store_true", help="with --part: merge, if all the other parts are there"
    )
    _add_processes(parser)


def _add_split_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--val-fraction", type=_share, default=0.1, metavar="SHARE",
        help="share of each domain set apart for validation, if SRC has no split of its own "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--val-list", default="", metavar="FILE",
        help="a file that lists the paths for validation, one a line, instead",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of that draw (default: %(default)s)")


def _add_encoding_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size", type=_at_least(0), default=0, metavar="PIXELS",
        help="reduce the shorter side to this; 0: do not (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--crop", type=_at_least(0), default=0, metavar="PIXELS",
        help="first cut out a central square of at most this; 0: do not (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--format", choices=("jpeg", "png", "webp"),
        help="encode in this format (default: jpeg with --size or --crop, else as it is)",
    )  # fmt: skip
    parser.add_argument(
        "--quality", type=_at_least(1, 100), default=92,
        help="of jpeg and webp that are encoded again (default: %(default)s)",
    )  # fmt: skip


def _add_merge(commands: Any) -> None:
    parser = _add(
        commands, "merge", _merge, "join the parts of a build",
        "Join the parts that several `build --part I/N` wrote to DEST into one set: the same, to\n"
        "the byte, as one build would have written.",
        "s3://bucket/set",
    )  # fmt: skip
    parser.add_argument("dest", metavar="DEST", help="folder or URL of the shards")
    parser.add_argument("--overwrite", action="store_true", help="replace the index at DEST")


def _add_inspect(commands: Any) -> None:
    parser = _add(
        commands, "inspect", _inspect, "tell what a set holds",
        "Tell what a set of shards holds, as its index says. No shard is read.",
        "s3://bucket/set",
    )  # fmt: skip
    parser.add_argument("url", metavar="URL", help="folder or URL of the shards")
    _add_json(parser)


def _add_verify(commands: Any) -> None:
    parser = _add(
        commands, "verify", _verify, "check every shard, sample and image",
        "Read every shard once and check it against the index: checksums, tars, samples, images,\n"
        "and that no key occurs twice. Each fault is a line. The exit code is 0 without faults\n"
        "and 1 with faults.",
        "s3://bucket/set --processes 16",
    )  # fmt: skip
    parser.add_argument("url", metavar="URL", help="folder or URL of the shards")
    _add_processes(parser)
    _add_json(parser)


def _add_preview(commands: Any) -> None:
    parser = _add(
        commands, "preview", _preview, "draw a contact sheet",
        "Draw some images of every domain, evenly spread over its shards, as a PNG. Only the\n"
        "bytes of those images are read. What cannot be read is crossed out, and told.",
        "s3://bucket/set --out set.png",
    )  # fmt: skip
    parser.add_argument("url", metavar="URL", help="folder or URL of the shards")
    parser.add_argument(
        "--out", default="preview.png", metavar="FILE", help="or URL (default: %(default)s)"
    )
    parser.add_argument("--split", default="train", help="(default: %(default)s)")
    parser.add_argument(
        "--per-domain", type=_at_least(1), default=8, metavar="N",
        help="images of each domain (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=_at_least(16), default=128, metavar="PIXELS",
        help="of a cell (default: %(default)s)",
    )  # fmt: skip


# Commands.


def _build(args: argparse.Namespace) -> None:
    if args.part != BuildPart() and args.overwrite:
        raise UserError(
            f"--part and --overwrite do not go together, parts would remove each other's shards: "
            f"remove {args.dest} first"
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
        processes=args.processes,
        part=args.part,
    )
    if args.part != BuildPart():
        print(_part_line(args.part, args.dest, index))
        merged = merge_if_last(args.dest, args.part) if args.merge else None
        if merged is None:
            return
        index = merged
    print(table(facts(index)))


def _encoding(args: argparse.Namespace) -> Encoding | None:
    if args.size or args.crop or args.format:
        return Encoding(args.size, args.crop, args.format or "jpeg", args.quality)
    return None


def _part_line(part: BuildPart, dest: str, index: Index) -> str:
    shards = index.shards()
    return (
        f"part {part.number} of {part.of}: {sum(s.samples for s in shards)} images in "
        f"{len(shards)} shards; when all parts are there, join them: {PROGRAM} merge {dest}"
    )


def _merge(args: argparse.Namespace) -> None:
    print(table(facts(merge(args.dest, args.overwrite))))


def _inspect(args: argparse.Namespace) -> None:
    told = facts(read_index(args.url))
    print(json.dumps(told, ensure_ascii=False) if args.json else table(told))


def _verify(args: argparse.Namespace) -> int:
    faults = verify(args.url, args.processes)
    told = facts(read_index(args.url))
    images, shards = told["images"], told["shards"]
    if args.json:
        print(json.dumps({"images": images, "shards": shards, "faults": faults}))
    else:
        count = f"{len(faults)} faults" if faults else "no faults"
        print("\n".join([*faults, f"{images} images in {shards} shards: {count}"]))
    return FAULTS_FOUND if faults else 0


def _preview(args: argparse.Namespace) -> None:
    if PurePosixPath(args.out).suffix.lower() != ".png":
        raise UserError(f"{args.out}: the sheet is a PNG, give --out a name that ends with .png")
    sheet, faults = preview(args.url, split=args.split, per_domain=args.per_domain, size=args.size)
    for fault in faults:
        print(f"crossed out: {fault}", file=sys.stderr)
    write_png(args.out, sheet)
    print(args.out)


def main() -> int | None:
    args = parse_args()
    storage.configure(StorageConfig(options=args.storage))
    # A scheduler's SIGTERM ends the processes that pack, too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        result: int | None = args.run(args)
    except OSError as error:  # what is not told apart where it happens: a store that fails
        raise UserError(f"{type(error).__name__}: {error}") from error
    return result


if __name__ == "__main__":
    run_command(main)
