"""Damages of files, drawn by a seed. A row of DAMAGES changes bytes, one of TARGETS names files."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

Rewrite = Callable[[bytes, random.Random], bytes]


def flip_bits(data: bytes, rng: random.Random, count: int = 1) -> bytes:
    changed = bytearray(data)
    for _ in range(count if data else 0):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def zero_block(data: bytes, rng: random.Random) -> bytes:
    """Zero 512 bytes, as after a crash of a machine."""
    begin = rng.randrange(0, max(1, len(data)), 512)
    block = data[begin : begin + 512]
    return data[:begin] + bytes(len(block)) + data[begin + 512 :]


def replace_number(data: bytes, rng: random.Random) -> bytes:
    """Change one digit, which keeps a JSON file well-formed."""
    places = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
    if not places:
        return flip_bits(data, rng)
    i = rng.choice(places)
    return data[:i] + str(rng.choice([d for d in range(10) if d != data[i] - 48])).encode() + data[
        i + 1 :
    ]  # fmt: skip


def change_json(data: bytes, rng: random.Random) -> bytes:
    """Remove a key of a JSON object, or give it a value of another type."""
    try:
        value = json.loads(data)
    except ValueError:
        return flip_bits(data, rng)
    objects = [o for o in _objects(value) if o]
    if not objects:
        return b"{}"
    target = rng.choice(objects)
    key = rng.choice(sorted(target))
    replacement = rng.choice(["remove", None, -3, [], {}, "x", 1e308, {"a": [1]}])
    if replacement == "remove":
        del target[key]
    else:
        target[key] = replacement
    return json.dumps(value).encode()


def _objects(value: Any) -> list[dict[str, Any]]:
    """Return all objects in a JSON value."""
    children = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list):
        return []
    own = [value] if isinstance(value, dict) else []
    return own + [o for child in children for o in _objects(child)]


# Damages that replace the contents of a file.
REWRITES: dict[str, Rewrite] = {
    "bit flipped": flip_bits,
    "8 bits flipped": lambda data, rng: flip_bits(data, rng, 8),
    "truncated": lambda data, rng: data[: rng.randrange(max(1, len(data)))],
    "last byte lost": lambda data, rng: data[:-1],
    "emptied": lambda data, rng: b"",
    "block of zeros": zero_block,
    "garbage": lambda data, rng: rng.randbytes(max(1, len(data))),
    "garbage appended": lambda data, rng: data + rng.randbytes(rng.randrange(1, 600)),
    "digit changed": replace_number,
    "JSON value changed": change_json,
    "byte order mark": lambda data, rng: b"\xef\xbb\xbf" + data,
    "null": lambda data, rng: b"null",
    "[]": lambda data, rng: b"[]",
    "{}": lambda data, rng: b"{}",
    "deep JSON": lambda data, rng: b"[" * 100_000,
}


def swap(path: Path, rng: random.Random) -> None:
    """Exchange two files of a folder."""
    others = [p for p in sorted(path.parent.iterdir()) if p.is_file() and p != path]
    if not others:
        path.unlink()
        return
    other = rng.choice(others)
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def replace_by_folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


# Damages of a file in its folder.
MOVES: dict[str, Callable[[Path, random.Random], None]] = {
    "deleted": lambda path, rng: path.unlink(),
    "swapped": swap,
    "a folder in its place": replace_by_folder,
}


class Target(NamedTuple):
    """Files that are damaged.

    Attributes:
        pattern: glob in the folder of the try.
        weight: how often, relative to the others.
        ignorable: the run does not depend on their contents and must go on.
    """

    pattern: str
    weight: float
    ignorable: bool = False


NEWEST, OLDER = "run/checkpoints/step_00000009", "run/checkpoints/step_0000000[68]"
TARGETS = (
    Target(f"{NEWEST}/manifest.json", 6),
    Target(f"{NEWEST}/*.safetensors", 4),
    Target(f"{OLDER}/*", 2, ignorable=True),
    Target("run/checkpoints/latest", 3),
    Target("run/config.yaml", 1, ignorable=True),
    Target("run/environment.json", 1, ignorable=True),
    Target("run/status.json", 1, ignorable=True),
    Target("run/metrics.jsonl", 2, ignorable=True),
    Target("run/samples/*", 1, ignorable=True),
    Target("run/tensorboard/*", 1, ignorable=True),
    Target("shards/index.json", 5),
    Target("shards/train/*.json", 3),
    Target("shards/train/*.tar", 3),
    Target("shards/val/*", 2),
    Target("cache/[0-9a-f]*", 2),
)


def draw_target(rng: random.Random) -> Target:
    return rng.choices(TARGETS, [target.weight for target in TARGETS])[0]


def damage(path: Path, rng: random.Random) -> str:
    """Damage a file in one drawn way, and return the name of the damage."""
    name = rng.choice([*REWRITES, *MOVES])
    if name in MOVES:
        MOVES[name](path, rng)
    else:
        path.write_bytes(REWRITES[name](path.read_bytes(), rng))
    return name
