"""Command line: `python -m stargan_dist.shards build SRC DEST`."""

import argparse

from stargan_dist.errors import run_command
from stargan_dist.shards.build import build
from stargan_dist.shards.index import Index


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stargan_dist.shards", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    p = commands.add_parser(
        "build",
        help="pack a folder of images per domain into shards",
        description="Pack images into WebDataset tars with an index. SRC holds one folder per "
        "domain, or folders train and val (and test) that do. The original bytes are kept.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("source", metavar="SRC", help="folder or URL of the images")
    p.add_argument("dest", metavar="DEST", help="folder or URL of the shards")
    p.add_argument(
        "--val-fraction",
        type=float,
        default=0.1,
        help="share of each domain set apart for validation, if SRC has no split of its own",
    )
    p.add_argument("--seed", type=int, default=0, help="of that draw")
    p.add_argument("--shard-mib", type=float, default=64, help="a shard is closed at this size")
    p.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out what cannot be used, and say so in the index, instead of stopping",
    )
    return parser.parse_args()


def table(index: Index) -> str:
    """Images and shards of each split and domain, for people."""
    rows = [f"{'split':8}{'domain':24}{'images':>10}{'shards':>8}{'MiB':>10}"]
    for split, domains in index.splits.items():
        for domain, shards in domains.items():
            images, mib = sum(s.samples for s in shards), sum(s.bytes for s in shards) / 2**20
            rows.append(f"{split:8}{domain:24}{images:>10}{len(shards):>8}{mib:>10.1f}")
    return "\n".join(rows + [f"left out: {fault}" for fault in index.skipped])


def main() -> None:
    args = parse_args()
    index = build(
        args.source,
        args.dest,
        val_fraction=args.val_fraction,
        seed=args.seed,
        shard_bytes=int(args.shard_mib * 2**20),
        skip_bad=args.skip_bad,
    )
    print(table(index))


if __name__ == "__main__":
    run_command(main)
