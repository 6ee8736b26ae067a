"""Seeded damage to valid bytes and JSON, and the check that a parser succeeds or says one line."""

import copy
import json
import os
import random
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

from stargan_dist.errors import UserError

# STARGAN_FUZZ_EXAMPLES=5000: so many damaged inputs of each kind, instead of the number of a test.
EXAMPLES = int(os.environ.get("STARGAN_FUZZ_EXAMPLES", "0"))
# STARGAN_FUZZ_SEED=7: others than those of CI.
SEED = int(os.environ.get("STARGAN_FUZZ_SEED", "0"))
MAX_LINE = 3000
SECONDS, MEMORY_BYTES = 60, 3 * 2**30  # bounds of one call, generous: what exceeds them hangs

TOKENS = [
    b"\0", b"\n", b"\r", b"\t", b" ", b'"', b"'", b"\\", b",", b":", b"/", b"../", b"#", b"-", b"=",
    b"[", b"]", b"{", b"}", b"[" * 50_000, b'{"a":' * 50_000, b"[" * 40 + b"]" * 40, b"9" * 5000,
    b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"18446744073709551616", b"0.5",
    b"\xff\xfe", b"\xef\xbb\xbf", b"\x80", b"\\ud800", b"\\u0000", "\u2028".encode(), b"\x1b[31m",
    b"&a ", b"*a", b"<<: ", b"!!set ", b"!!int ", b"!!timestamp ", b"--- ", b"? ", b"| ", b"%",
]  # fmt: skip
ODD_VALUES = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, 1e308, float("nan"),
    float("inf"), "", "x", "5", "\0", "\n", "a\nb\x1b", "\ud800", "../x", "/x", "x" * 10**5, [], {},
    [[]], [None], {"": None}, {"a": {"b": []}}, ["x", "x"],
]  # fmt: skip


def damage(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes after one to four random changes."""
    for _ in range(rng.randint(1, 4)):
        data = rng.choice(CHANGES)(data, rng)
    return data


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    """Return the begin and end of a random slice, most often a short one."""
    begin = rng.randint(0, len(data))
    return begin, min(len(data), begin + int(2 ** rng.uniform(0, 12)))


def flip(data: bytes, rng: random.Random) -> bytes:
    """Flip a bit."""
    if not data:
        return data
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(data: bytes, rng: random.Random) -> bytes:
    """Replace a slice by random bytes."""
    begin, end = _span(data, rng)
    return data[:begin] + rng.randbytes(end - begin) + data[end:]


def truncate(data: bytes, rng: random.Random) -> bytes:
    """Cut the end, or the beginning."""
    position = rng.randint(0, len(data))
    return data[:position] if rng.random() < 0.8 else data[position:]


def insert(data: bytes, rng: random.Random) -> bytes:
    """Insert a token."""
    begin = rng.randint(0, len(data))
    return data[:begin] + rng.choice(TOKENS) + data[begin:]


def replace(data: bytes, rng: random.Random) -> bytes:
    """Replace a slice by a token."""
    begin, end = _span(data, rng)
    return data[:begin] + rng.choice(TOKENS) + data[end:]


def delete(data: bytes, rng: random.Random) -> bytes:
    """Remove a slice."""
    begin, end = _span(data, rng)
    return data[:begin] + data[end:]


def duplicate(data: bytes, rng: random.Random) -> bytes:
    """Copy a slice to another position."""
    (begin, end), position = _span(data, rng), rng.randint(0, len(data))
    return data[:position] + data[begin:end] + data[position:]


CHANGES = (flip, flip, overwrite, truncate, insert, replace, delete, duplicate)


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """Return JSON after changes of its values, or of its bytes in one case of three."""
    if rng.random() < 1 / 3:
        return damage(data, rng)
    value = [json.loads(data)]
    for _ in range(rng.randint(1, 3)):
        _change_value(rng.choice(_containers(value)), rng)
    return json.dumps(value[0] if value else None).encode()


def _containers(value) -> list:
    """List the lists and objects in a value, itself included."""
    children = value.values() if isinstance(value, dict) else value
    nested = [_containers(child) for child in children if isinstance(child, dict | list)]
    return [value, *(container for containers in nested for container in containers)]


def _change_value(container: dict | list, rng: random.Random) -> None:
    """Replace, remove, copy or rename a random element of a container."""
    keys = [*container] if isinstance(container, dict) else [*range(len(container))]
    if not keys:
        return
    key, action = rng.choice(keys), rng.choice(["replace", "replace", "remove", "copy", "swap"])
    value = container[key]
    if action == "replace":
        container[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    elif action == "remove":
        del container[key]
    elif action == "swap":
        container[key] = copy.deepcopy(container[rng.choice(keys)])
    elif isinstance(container, list):
        container.append(copy.deepcopy(value))
    else:
        container[str(rng.choice(ODD_VALUES))] = copy.deepcopy(value)


@contextmanager
def bounded(seconds: int = SECONDS, memory_bytes: int = MEMORY_BYTES):
    """Bound the time of a block, and the memory that it adds to the process."""

    def fail(*_):
        raise AssertionError(f"no end after {seconds} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes, hard))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def is_one_line(text: str) -> bool:
    """Return True for text that says something on one line of a terminal, and is no dump."""
    return text.splitlines() == [text] and "\x1b" not in text and len(text) < MAX_LINE


def check_parser(parse, originals, change, examples: int) -> dict[str, int]:
    """Parse damaged inputs, and check that each call returns or raises a UserError of one line.

    Args:
        parse: the parser, of bytes.
        originals: valid inputs, which it must accept.
        change: `damage`, `damage_json`, or another function of bytes and a generator.
        examples: number of damaged inputs, unless STARGAN_FUZZ_EXAMPLES is set.

    Returns:
        The numbers of inputs that were accepted and told. At least one was told.
    """
    for original in originals:
        parse(original)
    outcomes = {"accepted": 0, "told": 0}
    for number in range(EXAMPLES or examples):
        rng = random.Random(f"{SEED} {number}")
        data = change(rng.choice(originals), rng)
        outcomes[_outcome(parse, data, number)] += 1
    assert outcomes["told"] or not examples, outcomes
    return outcomes


def _outcome(parse, data: bytes, number: int) -> str:
    try:
        with bounded():
            parse(data)
        return "accepted"
    except UserError as error:
        assert is_one_line(str(error)), (SEED, number, data[:500], str(error)[:500])
        return "told"
    except BaseException:
        print(f"seed {SEED}, input {number}: {data[:500]!r}")
        raise
