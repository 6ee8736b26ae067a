"""The complete evaluations of a run, and which of its checkpoints is the best by them.

A result lies at RUN/evaluation/LABEL/step_NNNNNNNN_seed_N.json. Its label is the protocol, and
what departs from its usual form (`paper-bfloat16`).
"""

import json
import re
from collections import defaultdict
from collections.abc import Collection
from typing import Any

from stargan_dist import storage
from stargan_dist.errors import UserError

EVALUATIONS = "evaluation"  # folder of a run
# Numbers of evaluations that agree in these may be compared.
COMPARABLE = (
    "protocol", "precision", "metrics", "extractors", "outputs_per_source", "image_size",
    "domains", "data",
)  # fmt: skip

Result = dict[str, Any]


def read(where: str) -> Result | None:
    """A result, complete or not; None where there is none that can be read as one.

    Raises:
        UserError: the storage fails.
    """
    try:
        result = json.loads(storage.read_bytes(where))
    except (FileNotFoundError, ValueError):
        return None
    except OSError as error:
        raise UserError(f"cannot read {where}: {error}") from error
    if not (isinstance(result, dict) and {"score", "step", "seed", *COMPARABLE} <= result.keys()):
        return None
    # Before rows were measured by latents alone, all were by all guides.
    return {"guides": ["latent", "reference", "real"], **result}


def shared(result: Result) -> dict[str, Any]:
    """What results must agree in to be compared."""
    return {name: result[name] for name in COMPARABLE}


def way(result: Result) -> str:
    """A name for how a result was measured: equal for those that may be compared."""
    return json.dumps(shared(result), sort_keys=True)


def complete(run: str) -> list[Result]:
    """All complete results of a run."""
    folder, found = storage.join(run, EVALUATIONS), []
    for label in storage.list_names(folder):
        for name in storage.list_names(storage.join(folder, label)):
            if re.fullmatch(r"step_\d+_seed_\d+\.json", name):
                result = read(storage.join(folder, label, name))
                if result is not None and result["score"] is not None:
                    found.append(result)
    return found


def best_steps(run: str, steps: Collection[int], protocol: str) -> list[int]:
    """Of some steps of a run, those with the lowest Fréchet distance by a protocol.

    One for each way of measuring that was used: the one used most comes first. Only evaluations
    with seed 0 count.
    """
    ways: dict[str, dict[int, float]] = defaultdict(dict)
    for result in complete(run):
        if (result["protocol"], result["seed"]) == (protocol, 0) and result["step"] in steps:
            ways[way(result)][result["step"]] = result["score"]
    by_use = sorted(ways.values(), key=len, reverse=True)
    return [min(scores, key=lambda step: scores[step]) for scores in by_use]
