"""Translation to labels in one process with the demo metrics. Several processes:
tests/distributed."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from stargan_dist import storage
from stargan_dist.data.batch import to_uint8, to_unit
from stargan_dist.data.split import load_split
from stargan_dist.distributed.world import World
from stargan_dist.errors import UserError
from stargan_dist.evaluation import compare, report
from stargan_dist.evaluation.collector import Stopped
from stargan_dist.evaluation.evaluator import Evaluator
from stargan_dist.evaluation.metrics.classifier import ClassifierTraining
from stargan_dist.evaluation.tasks import JOINT, LABEL, REAL, draw_latents
from stargan_dist.runs import scores
from tests.helpers import labelled
from tests.helpers.labelled import Copier, Painter

ERROR = "demo_classification_error"
FLIPS = [("tiles", f"bright={value}") for value in (0, 1)]
OWN = [("tiles", "red"), ("tiles", "green"), *FLIPS, ("bars", "flat"), ("bars", "upright")]
OTHER = [("tiles", "flat"), ("tiles", "upright")]
OTHER += [("bars", target) for target in ("red", "green", "bright=1")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return labelled.write(tmp_path_factory.mktemp("labelled"))


@pytest.fixture(scope="module")
def cache(data, tmp_path_factory):
    """A cache that one evaluation has filled."""
    folder = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as monkeypatch:
        labelled.shorten_training(monkeypatch)
        evaluate(labelled.config(data, folder), Copier)
    return folder / "cache"


@pytest.fixture(autouse=True)
def short_training(monkeypatch):
    labelled.shorten_training(monkeypatch)


@pytest.fixture
def config(data, cache, tmp_path):
    """A configuration of both datasets, with a filled cache."""
    shutil.copytree(cache, tmp_path / "cache")
    return labelled.config(data, tmp_path)


def evaluate(config, kind, should_stop=lambda: False, **attributes):
    """Evaluate a translator in a run folder of its own."""
    name = "_".join([kind.__name__, *attributes.values()])
    config = dataclasses.replace(config, run=str(Path(config.run) / name))
    translator = labelled.translator(config, kind)
    for name, value in attributes.items():
        setattr(translator, name, value)
    return Evaluator(config, World(), should_stop).evaluate(translator)


def errors_by_task(result):
    return {(r["guide"], r["source"], r["target"]): r[ERROR] for r in result["rows"]}


def test_a_perfect_translator_has_no_error_and_a_copy_has_all(config):
    painted = evaluate(config, Painter)
    copied = evaluate(config, Copier)
    tasks = [(LABEL, *task) for task in OWN] + [(JOINT, *task) for task in OTHER]
    tasks += [(REAL, *task) for task in OWN]
    assert sorted(errors_by_task(painted)) == sorted(tasks)
    assert set(errors_by_task(painted).values()) == {0.0}
    copies = errors_by_task(copied)
    assert {copies[(LABEL, *task)] for task in OWN} == {1.0}
    assert {copies[(REAL, *task)] for task in OWN} == {0.0}
    assert (painted["means"][f"{ERROR}_label"], copied["means"][f"{ERROR}_label"]) == (0.0, 1.0)
    assert painted["score"] < copied["score"] / 2


def test_errors_are_those_of_each_attribute(config):
    errors = errors_by_task(evaluate(config, Painter, blind_to="bright"))
    wrong = {task for task, error in errors.items() if error}
    assert {task for task in wrong if task[0] == LABEL} == {(LABEL, *task) for task in FLIPS}
    assert {errors[(LABEL, *task)] for task in FLIPS} == {1.0}


def test_sources_are_the_images_without_the_target(config):
    rows = {(r["guide"], r["source"], r["target"]): r for r in evaluate(config, Copier)["rows"]}
    counts = {task: (row["images"], row.get("real_images")) for task, row in rows.items()}
    assert counts[LABEL, "tiles", "red"] == (4, 8)
    assert counts[LABEL, "bars", "flat"] == (2, 4)
    assert counts[JOINT, "tiles", "flat"] == (8, None)
    assert counts[REAL, "tiles", "bright=1"] == (4, 8)


def literal_error(evaluator, translator, task, suite):
    """Translate one image after the other, and count the outputs that miss the target."""
    target, sources = suite.targets[task.target], evaluator.collector.sources["val"]
    split = load_split(sources.readers[task.source], 32)
    labels = sources.labels_in_order(task.source, split.locations)
    column = translator.labels.column_slice(target.source).start + target.column
    chosen = [i for i, y in enumerate(labels) if task.guide == JOINT or y[column] != target.value]
    missed = []
    for position, i in enumerate(chosen):
        y_trg = translator.labels.targets(labels[i])[column][1]
        z = torch.from_numpy(draw_latents(task, position, 4, seed=0, outputs=1))
        output = translator.from_latents(
            to_unit(split.images[i, None], torch.float64), y_trg[None], z
        )
        logits = suite.labelled[target.source].classifier(to_uint8(output))[0]
        own = logits[target.column]
        found = own > 0 if target.source == 0 else own == logits.max()
        missed.append(bool(found) != bool(target.value))
    return np.mean(missed)


def test_errors_equal_those_of_a_literal_implementation(config):
    evaluator, translator = Evaluator(config, World()), labelled.translator(config)
    evaluation = evaluator.begin(translator)
    errors = errors_by_task(evaluation.run())
    assert 0 < np.mean(list(errors.values())) < 1
    for task in evaluation.suite.tasks:
        if task.guide != REAL:
            literal = literal_error(evaluator, translator, task, evaluation.suite)
            assert errors[evaluation.suite.names(task)] == literal


def test_labels_that_are_domains_are_measured_on_request(config, data, cache):
    """The results of the two kinds of tasks do not replace each other."""
    one = labelled.config(data, Path(config.run), names=("bars",))
    between_domains = evaluate(one, Painter)
    assert between_domains["guides"] == ["latent", "real"]
    by_label = dataclasses.replace(one.evaluation, labels=True)
    result = evaluate(dataclasses.replace(one, evaluation=by_label), Painter)
    assert {(r["guide"], r["target"]): r[ERROR] for r in result["rows"]} == {
        (guide, target): 0.0 for guide in (LABEL, REAL) for target in labelled.BARS
    }
    assert evaluate(one, Painter) == between_domains
    assert storage.list_names(storage.join(config.run, "Painter", "evaluation")) == [
        "demo", "demo-labels",
    ]  # fmt: skip


def record_steps(monkeypatch):
    """Return a list that collects the steps of classifiers from now on."""
    steps, step = [], ClassifierTraining.step

    def recording(self, images, columns):
        steps.append(len(images))
        step(self, images, columns)

    monkeypatch.setattr(ClassifierTraining, "step", recording)
    return steps


def test_classifiers_are_trained_once_and_verified(config, monkeypatch, caplog):
    steps = record_steps(monkeypatch)
    expected = evaluate(config, Copier)
    assert not steps
    for file in storage.list_names(config.evaluation.cache):
        if file.endswith(".safetensors"):
            storage.write_bytes(storage.join(config.evaluation.cache, file), b"damaged")
    storage.remove_folder(storage.join(config.run, "Copier"))
    assert evaluate(config, Copier) == expected  # the same bits: the hash is in the header
    assert len(steps) == 2 * 30
    assert "computed again: its hash is wrong" in caplog.text


def test_a_single_source_uses_what_was_computed_for_the_joint_set(config, data, monkeypatch):
    steps = record_steps(monkeypatch)
    one = labelled.config(data, Path(config.run), names=("tiles",))
    result = evaluate(one, Copier)
    assert result["guides"] == [LABEL, REAL]
    assert not steps


def record_sources(monkeypatch):
    """Return a list that collects the batches translated from now on."""
    batches = []

    def recording(self, x, conditioning):
        batches.append(len(x))
        return x

    monkeypatch.setattr(Copier, "translate", recording)
    return batches


@pytest.mark.parametrize("stop_after", [0, 3, 9])
def test_a_stopped_evaluation_resumes_with_the_remaining_tasks(config, monkeypatch, stop_after):
    expected = evaluate(config, Copier)
    storage.remove_folder(storage.join(config.run, "Copier"))
    batches = record_sources(monkeypatch)
    with pytest.raises(Stopped):
        evaluate(config, Copier, lambda: len(batches) >= stop_after)
    url = storage.join(
        config.run, "Copier", "evaluation", "demo-labels", "step_00000007_seed_0.json"
    )
    stopped = scores.read_result(url)
    assert (stopped is None) == (stop_after == 0)
    del batches[:]
    assert evaluate(config, Copier) == expected
    finished = max(0, stop_after - 1)  # a batch is a task, and that of the stop is not finished
    assert len(batches) == len(OWN + OTHER) - finished


def test_a_training_of_a_classifier_that_is_stopped_leaves_nothing(data, tmp_path, monkeypatch):
    steps = record_steps(monkeypatch)
    config = labelled.config(data, tmp_path, names=("tiles",))
    with pytest.raises(Stopped):
        evaluate(config, Copier, lambda: len(steps) >= 15)
    assert len(steps) == 15
    assert evaluate(config, Copier)["score"] is not None
    assert len(steps) == 15 + 30


def test_labels_without_validation_images_have_an_error(cache, tmp_path):
    """No validation tile is red and bright: nothing can be made so from a bright or a red one."""
    folder = labelled.write(tmp_path / "data", without=[(0, 0), (0, 1), (1, 0)])
    result = evaluate(labelled.config(folder, tmp_path, names=("tiles",)), Copier)
    failed = {(r["guide"], r["target"]): r["error"] for r in result["rows"] if "error" in r}
    assert failed == {
        (LABEL, "red"): "tiles has no validation images to translate to red",
        (LABEL, "bright=1"): "tiles has no validation images to translate to bright=1",
        (REAL, "green"): "tiles has no validation images with green",
        (REAL, "bright=0"): "tiles has no validation images with bright=0",
    }
    assert result["score"] is None
    assert "not measured: tiles has no validation images with green" in report.table(result)


def test_a_label_that_cannot_be_read_is_one_line(data, tmp_path):
    config = labelled.config(data, tmp_path, names=("tiles",))
    source = dataclasses.replace(
        config.data.sources["tiles"], binary=["red", "glossy"], exclusive=[]
    )
    data_config = dataclasses.replace(config.data, sources={"tiles": source})
    with pytest.raises(UserError, match="has no attribute glossy") as caught:
        evaluate(dataclasses.replace(config, data=data_config), Copier)
    assert "\n" not in str(caught.value)


def test_shards_with_other_labels_are_rejected(config, data):
    translator = labelled.translator(config)
    other = labelled.config(data, Path(config.run), names=("tiles",))
    with pytest.raises(UserError, match="hold the labels red, green, bright; the networks were"):
        Evaluator(other, World()).begin(translator)


def test_results_are_shown_and_compared(config):
    for kind in (Painter, Copier):
        result = evaluate(config, kind)
    assert "1 output per source" in report.headline(result)
    assert "small classifier of real images" in report.headline(result)
    table = report.table(result)
    assert "tiles → bright=1" in table
    tags = report.scalars(result, "demo")
    assert tags[f"demo/{ERROR}_label"] == 1.0
    assert tags[f"demo_tasks/{ERROR}_joint_bars_to_red"] == 1.0
    runs = [storage.join(config.run, kind.__name__) for kind in (Painter, Copier)]
    (group,) = compare.comparable_groups(runs)
    header, painter, copier = compare.table([group]).splitlines()[1:]
    assert f"{ERROR} joint".replace("_", " ") in header
    assert "latent" not in header
    assert (painter.split()[4:6], copier.split()[5]) == ([painter.split()[4], "0.0000"], "1.0000")
