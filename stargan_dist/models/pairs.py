"""Sets of runs, one for each pair of domains: what methods between two domains need for K of them.

`SET/pairs.json` names the K domains. The run of two of them is `SET/CAT-DOG`, with their names.
"""

import json
from collections.abc import Sequence
from itertools import combinations
from typing import Annotated, NamedTuple

import msgspec

from stargan_dist import storage
from stargan_dist.data.index import Name, safe_name, slug
from stargan_dist.errors import UserError, explained, printable
from stargan_dist.runs import checkpoint as checkpoints

FILE = "pairs.json"
REMEDY = "`python -m stargan_dist.pairs` writes it again if you remove it"


class Pair(NamedTuple):
    """Two domains of a set.

    Attributes:
        number: of the pair, from 0.
        domains: their names, in the order of the labels.
        run: folder or URL of their run.
    """

    number: int
    domains: tuple[str, str]
    run: str

    @property
    def name(self) -> str:
        """The pair in words."""
        return printable(" and ".join(self.domains))


class _Fields(msgspec.Struct, forbid_unknown_fields=True):
    domains: Annotated[list[Name], msgspec.Meta(min_length=2)]


def list_pairs(url: str, domains: Sequence[str]) -> list[Pair]:
    """Return all K(K - 1)/2 pairs of the domains of a set, those of the first domain first.

    Folders have the names of both domains, and their numbers where names alone would be ambiguous.
    """
    names = [safe_name(domain) for domain in domains]
    folders = ["-".join(pair) for pair in combinations(names, 2)]
    if len({folder.lower() for folder in folders}) < len(folders):
        slugs = [slug(label, domain) for label, domain in enumerate(domains)]
        folders = ["-".join(pair) for pair in combinations(slugs, 2)]
    pairs = enumerate(zip(combinations(domains, 2), folders, strict=True))
    return [Pair(number, pair, storage.join(url, name)) for number, (pair, name) in pairs]


def is_set(url: str) -> bool:
    """Return True if a folder holds the runs of all pairs of some domains."""
    return storage.exists(storage.join(url, FILE))


def read_domains(url: str) -> list[str]:
    """Return the domains of a set.

    Raises:
        UserError: `pairs.json` is missing, cannot be read, or is invalid.
    """
    file = storage.join(url, FILE)
    try:
        data = storage.read_bytes(file)
    except OSError as error:
        raise explained(f"cannot read {file}: {error}", error) from error
    return storage.decode_json(data, _Fields, file, REMEDY).domains


def write_domains(url: str, domains: Sequence[str]) -> None:
    """Write the domains of a set, unless they are there.

    Raises:
        UserError: the folder is that of another set or of a run, or cannot be written.
    """
    if is_set(url):
        _check_same(url, domains)
        return
    if checkpoints.list_steps(url):
        raise UserError(f"{url} is a run: name another folder for the runs of all pairs (--run)")
    data = json.dumps({"domains": list(domains)}, indent=1, ensure_ascii=False) + "\n"
    try:
        storage.write_bytes(storage.join(url, FILE), data.encode())
    except OSError as error:
        raise explained(f"cannot write {url}: {error}", error) from error


def _check_same(url: str, domains: Sequence[str]) -> None:
    if (found := read_domains(url)) != list(domains):
        of_set, of_shards = (printable(", ".join(names), 1000) for names in (found, domains))
        raise UserError(
            f"{url} has the pairs of {of_set}, and the shards have {of_shards}: name the shards of "
            "the former, or another --run"
        )


def find_step(url: str, checkpoint: str) -> int:
    """Return the step at which a set is evaluated.

    Args:
        checkpoint: `latest`, the last step of which all pairs have a checkpoint; or a step.

    Raises:
        UserError: a pair has no such checkpoint.
    """
    if checkpoint == "best":
        raise UserError("--checkpoint: best is a checkpoint of one run; give a step of all pairs")
    pairs = list_pairs(url, read_domains(url))
    if checkpoint != "latest":
        named = {checkpoints.find_existing(pair.run, checkpoint).step for pair in pairs}
        return named.pop()
    steps = {pair: checkpoints.list_steps(pair.run) for pair in pairs}
    if untrained := [pair for pair, of_pair in steps.items() if not of_pair]:
        raise UserError(
            f"{untrained[0].run} has no checkpoint ({len(untrained)} of {len(pairs)} pairs have "
            "none): train them first (python -m stargan_dist.pairs)"
        )
    common = set.intersection(*map(set, steps.values()))
    if not common:
        newest = ", ".join(f"{pair.name}: {of_pair[-1]}" for pair, of_pair in steps.items())
        raise UserError(
            f"the pairs of {url} have no checkpoint of one step (the newest are {newest}): finish "
            "their training first (python -m stargan_dist.pairs)"
        )
    return max(common)
