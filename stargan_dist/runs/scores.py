"""Evaluation results of a run: the complete ones, and the best checkpoint according to them.

A result lies at RUN/evaluation/VARIANT/step_NNNNNNNN_seed_N.json. The variant is the name of the
protocol, followed by its deviations from the standard form (`paper-bfloat16`).
"""

import json
import re
from collections import defaultdict
from collections.abc import Collection
from typing import Any

from stargan_dist import storage
from stargan_dist.errors import explained

EVALUATIONS = "evaluation"  # folder of a run
# Metrics of two results are comparable if the results agree in these fields.
COMPARISON_FIELDS = (
    "protocol", "precision", "metrics", "extractors", "outputs_per_source", "image_size",
    "domains", "data",
)  # fmt: skip

Result = dict[str, Any]


def read_result(url: str) -> Result | None:
    """Read a result, complete or not. Return None if there is no file or it holds no result.

    Raises:
        UserError: the storage fails.
    """
    try:
        result = json.loads(storage.read_bytes(url))
    except (FileNotFoundError, ValueError):
        return None
    except OSError as error:
        raise explained(f"cannot read {url}: {error}", error) from error
    required = {"score", "step", "seed", *COMPARISON_FIELDS}
    if not (isinstance(result, dict) and required <= result.keys()):
        return None
    # Older results lack the field: every recipe was evaluated with all guides.
    return {"guides": ["latent", "reference", "real"], **result}


def comparison_fields(result: Result) -> dict[str, Any]:
    """Return the fields in which comparable results agree."""
    return {name: result[name] for name in COMPARISON_FIELDS}


def comparison_key(result: Result) -> str:
    """Return a string that is equal for two results if and only if they are comparable."""
    return json.dumps(comparison_fields(result), sort_keys=True)


def read_results(run: str) -> list[Result]:
    """Read all results of a run, complete or not."""
    folder, found = storage.join(run, EVALUATIONS), []
    for variant in storage.list_names(folder):
        for name in storage.list_names(storage.join(folder, variant)):
            if re.fullmatch(r"step_\d+_seed_\d+\.json", name):
                found.append(read_result(storage.join(folder, variant, name)))
    return [result for result in found if result is not None]


def complete_results(run: str) -> list[Result]:
    """Read all results of a run in which every task was measured."""
    return [result for result in read_results(run) if result["score"] is not None]


def best_steps(run: str, steps: Collection[int], protocol: str) -> list[int]:
    """Return the steps, among `steps`, with the lowest Fréchet distance under a protocol.

    Only evaluations with seed 0 count. Results that are not comparable, such as those of different
    precisions, form separate groups. Each group has one best step; the largest group comes first.
    """
    scores_by_group: dict[str, dict[int, float]] = defaultdict(dict)
    for result in complete_results(run):
        if (result["protocol"], result["seed"]) == (protocol, 0) and result["step"] in steps:
            scores_by_group[comparison_key(result)][result["step"]] = result["score"]
    groups = sorted(scores_by_group.values(), key=len, reverse=True)
    return [min(scores, key=lambda step: scores[step]) for scores in groups]
