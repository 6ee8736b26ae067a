"""Result records of evaluations: files in a run's folder.

RUN/evaluation/VARIANT/step_NNNNNNNN_seed_N.json (see runs/scores.py) holds a header (everything
that the metrics depend on), a row per task, and means over tasks. The image grids of the tasks lie
in a folder of the same name without `.json`.
"""

import json
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from stargan_dist import storage
from stargan_dist.evaluation.tasks import GUIDES, REAL, Task
from stargan_dist.runs.checkpoint import step_name
from stargan_dist.runs.scores import EVALUATIONS, Result, read_result

Row = dict[str, Any]
TaskNames = tuple[str, str, str]  # guide, source, target


def protocol_variant(result: Mapping[str, Any]) -> str:
    """Return the protocol of a result, followed by its deviations from the standard form.

    Deviations are `labels`, if single labels were measured, the precision, unless it is float32,
    and the first digits of the hashes of weights that are not the published ones: `paper`,
    `paper-labels`, `paper-bfloat16`, `paper-d525997a`.
    """
    labels = ["labels"] if "diversity" not in result["extractors"] else []
    precision = [result["precision"]] if result["precision"] != "float32" else []
    extractors = result["extractors"].values()
    custom_weights = {e["sha256"][:8] for e in extractors if not e["official"]}
    return "-".join([result["protocol"], *labels, *precision, *sorted(custom_weights)])


def result_url(run: str, header: Mapping[str, Any]) -> str:
    """Return the URL of the result with this header in a run's folder."""
    name = f"{step_name(header['step'])}_seed_{header['seed']}.json"
    return storage.join(run, EVALUATIONS, protocol_variant(header), name)


def grid_url(url: str, name: str) -> str:
    """Return the URL of a task's image grid, next to the result at `url`."""
    return storage.join(url.removesuffix(".json"), f"{name}.jpg")


def in_order(tasks: Sequence[Task], names: Callable[[Task], TaskNames]) -> list[TaskNames]:
    """Return the names of tasks, in the order of a result's rows."""
    by_guide = sorted(tasks, key=lambda task: (GUIDES.index(task.guide), task.source, task.target))
    return [names(task) for task in by_guide]


def load_or_start(run: str, header: Mapping[str, Any], task_names: Collection[TaskNames]) -> Result:
    """Load the result with this header in a run's folder, or return a new one without rows.

    Args:
        task_names: all tasks, in the order of rows.

    Raises:
        UserError: the storage fails.
    """
    result = read_result(result_url(run, header))
    if result is not None and {name: result.get(name) for name in header} == header:
        return result
    return summarise({**header, "rows": []}, task_names)


def to_json(result: Result) -> bytes:
    """Encode a result as the content of its file."""
    return (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode()


def finished_tasks(result: Result) -> set[TaskNames]:
    """Return the tasks that were measured without error."""
    return {task_key(row) for row in result["rows"] if "error" not in row}


def task_key(row: Row) -> TaskNames:
    """Return (guide, source, target) of a row by name."""
    return row["guide"], row["source"], row["target"]


def add_row(result: Result, row: Row, task_names: Sequence[TaskNames]) -> Result:
    """Return a result with a further row, which replaces an earlier row of the same task.

    Args:
        task_names: all tasks, in the order of rows.
    """
    other_rows = [other for other in result["rows"] if task_key(other) != task_key(row)]
    rows = sorted([*other_rows, row], key=lambda row: task_names.index(task_key(row)))
    return summarise({**result, "rows": rows}, task_names)


def summarise(result: Result, task_names: Collection[TaskNames]) -> Result:
    """Return a result with `means` over tasks and the `score` of all translations set.

    A mean is None until all of its tasks are measured. The score is the mean of the Fréchet
    distances of all guides but `real`; lower is better. It is None until every task of the
    evaluation is measured.
    """
    counts = Counter(guide for guide, _, _ in task_names)

    def mean(metric: str, guide: str) -> float | None:
        values = [row[metric] for row in result["rows"] if row["guide"] == guide and metric in row]
        return sum(values) / len(values) if values and len(values) == counts[guide] else None

    metrics, guides = result["metrics"], result["guides"]
    means = {f"{metric}_{guide}": mean(metric, guide) for metric in metrics for guide in guides}
    translated = [means[f"{metrics[0]}_{guide}"] for guide in guides if guide != REAL]
    known = [value for value in translated if value is not None]
    complete = len(finished_tasks(result)) == counts.total()
    return {
        **result,
        "means": means,
        "score": sum(known) / len(known) if complete and known else None,
    }


def task_errors(result: Result) -> list[str]:
    """Return the distinct errors of tasks that could not be measured."""
    return list(dict.fromkeys(row["error"] for row in result["rows"] if "error" in row))


def mean_and_deviation(results: Sequence[Result], name: str) -> tuple[float, float] | None:
    """Return mean and sample standard deviation of an entry of `means` over several results.

    The deviation of a single result is 0. Returns None if a result lacks the entry.
    """
    values = [result["means"].get(name) for result in results]
    if None in values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
