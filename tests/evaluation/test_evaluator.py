"""Evaluation in one process with the demo metrics. Several processes: tests/distributed."""

import dataclasses
import json
import shutil
from functools import partial
from itertools import combinations

import pytest
import torch
from PIL import Image

from stargan_dist import storage
from stargan_dist.data.batch import to_uint8, to_unit
from stargan_dist.data.split import load_split
from stargan_dist.distributed.world import World
from stargan_dist.errors import UserError
from stargan_dist.evaluation import report, results
from stargan_dist.evaluation.collector import Stopped, Translation
from stargan_dist.evaluation.domain_suite import DomainSuite, Target, condition_outputs
from stargan_dist.evaluation.evaluator import Evaluator
from stargan_dist.evaluation.metrics import demo_network
from stargan_dist.evaluation.metrics.lpips import mean_pairwise_distance
from stargan_dist.evaluation.metrics.statistics import Statistics
from stargan_dist.evaluation.tasks import (
    LATENT,
    OUTPUTS,
    REAL,
    draw_latents,
    draw_references,
    tasks,
)
from stargan_dist.inference.model import TrainedModel
from stargan_dist.runs import scores
from stargan_dist.shards.build import build
from tests.evaluation.metrics.test_fid import frechet_by_gram


@pytest.fixture(scope="module")
def trained(train, tmp_path_factory):
    """A run in float64, in which no pixel is so close to a rounding boundary that it may flip."""
    run = tmp_path_factory.mktemp("evaluated") / "run"
    train(run, "--precision", "float64", "--steps", "2")
    return run


def load(run, cache):
    """Return (translator, config) of a run, configured for the protocol `demo`."""
    translator = TrainedModel.load(str(run))
    config = translator.config
    evaluation = dataclasses.replace(config.evaluation, protocol="demo", cache=str(cache))
    return translator, dataclasses.replace(config, run=str(run), evaluation=evaluation)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def setup(trained, cache, uninterrupted, tmp_path):
    """(translator, config) of a copy of the run without its evaluation, with a filled cache."""
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    shutil.copytree(cache, tmp_path / "cache")
    return load(tmp_path / "run", tmp_path / "cache")


def result_url(setup):
    return storage.join(setup[1].run, "evaluation", "demo", "step_00000002_seed_0.json")


def evaluate(setup, seed=0, should_stop=lambda: False, **data):
    translator, config = setup
    if data:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, **data))
    return Evaluator(config, World(), should_stop).evaluate(translator, seed)


def rows_by_task(result):
    return {(r["guide"], r["source"], r["target"]): r for r in result["rows"]}


def values(result):
    """Return the numbers of each row, by task."""
    names = [*result["metrics"], "images", "real_images"]
    return {task: [r.get(name) for name in names] for task, r in rows_by_task(result).items()}


def errors(rows):
    return {task: row["error"] for task, row in rows.items() if "error" in row}


@pytest.fixture(scope="module")
def uninterrupted(trained, cache):
    """The result of an uninterrupted evaluation."""
    return evaluate(load(trained, cache))


def images_of(split, label):
    return split.images[split.labels == label]


def literal_outputs(translator, task, val, seed):
    """Yield each output from a separate pass through all of G, and F or E."""
    references = images_of(val, task.target)
    y = torch.tensor([task.target])
    for number, image in enumerate(images_of(val, task.source)):
        z = torch.from_numpy(draw_latents(task, number, 16, seed))
        chosen = draw_references(task, number, len(references), seed)
        for i in range(OUTPUTS):
            style = (
                translator.networks["F"](z[i, None], y)
                if task.guide == LATENT
                else translator.networks["E"](
                    to_unit(references[chosen[i], None], torch.float64), y
                )
            )
            yield translator.G(to_unit(image[None], torch.float64), style)


def literal_row(translator, metrics, task, train, val, seed):
    """Return the Fréchet distance and the diversity of a task, from the definitions."""
    with torch.no_grad():
        real = torch.cat([metrics.features(x[None]) for x in images_of(train, task.target)])
        outputs = list(literal_outputs(translator, task, val, seed))
        fakes = torch.cat([metrics.features(to_uint8(x)) for x in outputs])
        groups = torch.cat(outputs).float().split(OUTPUTS)
        distances = [
            mean_pairwise_distance(
                [f[None] for f in metrics.diversity.network.layers(group[[i, j]])],
                [torch.ones(1)] * 3,
            )
            for group in groups
            for i, j in combinations(range(OUTPUTS), 2)
        ]
    return frechet_by_gram(real.double(), fakes.double()), float(torch.cat(distances).mean())


def test_metrics_equal_a_literal_implementation_of_the_protocol(setup, uninterrupted):
    translator, config = setup
    evaluator = Evaluator(config, World())
    sources = evaluator.collector.sources
    train, val = (load_split(sources[split].readers[0], 32) for split in ("train", "val"))
    measured = values(uninterrupted)
    for task in tasks(3):
        if task.guide == REAL or task.target == 2:
            continue
        key = (task.guide, val.domains[task.source], val.domains[task.target])
        fid, diversity = literal_row(
            translator, evaluator.collector.metrics, task, train, val, seed=0
        )
        assert measured[key][0] == pytest.approx(fid, rel=1e-5)  # features are float32
        assert measured[key][2] == pytest.approx(diversity, rel=1e-5)
        assert measured[key][3:] == [30, 9]


def test_a_result_holds_header_rows_means_and_score(uninterrupted):
    names = ["demo_fid", "demo_kid", "demo_lpips"]
    assert uninterrupted["metrics"] == names
    header = (uninterrupted["protocol"], uninterrupted["step"], uninterrupted["seed"])
    assert header == ("demo", 2, 0)
    assert uninterrupted["outputs_per_source"] == 10
    assert len(uninterrupted["extractors"]["features"]["sha256"]) == 64
    rows = [row for row in uninterrupted["rows"] if row["guide"] != REAL]
    assert len(rows) == 12
    assert uninterrupted["score"] == pytest.approx(sum(row["demo_fid"] for row in rows) / 12)
    latent = [row["demo_lpips"] for row in rows if row["guide"] == LATENT]
    assert uninterrupted["means"]["demo_lpips_latent"] == pytest.approx(sum(latent) / 6)
    # Real images are closer to real images than those of an untrained generator.
    assert uninterrupted["means"]["demo_fid_real"] < uninterrupted["score"] / 10


def test_an_evaluation_writes_its_result_and_an_image_grid_per_task(setup, uninterrupted):
    result = evaluate(setup)
    url = result_url(setup)
    assert json.loads(storage.read_bytes(url)) == result == uninterrupted
    names = storage.list_names(url.removesuffix(".json"))
    assert len(names) == 12
    grid = Image.open(storage.join(url.removesuffix(".json"), names[0]))
    assert grid.width == 11 * (64 + 2) + 2
    assert grid.height == 3 * (64 + 2) + 2 + 16  # three validation images


def test_another_seed_draws_other_latents_and_references(setup, uninterrupted):
    other = values(evaluate(setup, seed=1))
    for task, row in values(uninterrupted).items():
        assert (other[task] == row) == (task[0] == REAL)


def record_sources(monkeypatch):
    """Return a list that collects the sources translated from now on."""
    sources = []
    translate = TrainedModel.translate

    def recording(self, x, conditioning):
        sources.extend(x)
        return translate(self, x, conditioning)

    monkeypatch.setattr(TrainedModel, "translate", recording)
    return sources


@pytest.mark.parametrize("stop_after", [0, 4, 17, 35])
def test_a_stopped_evaluation_resumes_with_the_remaining_tasks(
    setup, uninterrupted, monkeypatch, stop_after
):
    sources = record_sources(monkeypatch)
    with pytest.raises(Stopped):
        evaluate(setup, should_stop=lambda: len(sources) >= stop_after)
    partial_result = scores.read_result(result_url(setup))
    measured = len(partial_result["rows"]) if partial_result else 0
    assert partial_result is None or partial_result["score"] is None
    del sources[:]
    assert evaluate(setup) == uninterrupted
    finished = stop_after // 3  # whole tasks of three sources
    assert len(sources) == 36 - 3 * finished
    assert measured >= finished


def test_measured_tasks_are_not_measured_again(setup, uninterrupted, monkeypatch):
    evaluate(setup)
    sources = record_sources(monkeypatch)
    assert evaluate(setup) == uninterrupted
    assert not sources


def test_a_changed_generator_is_measured_again(setup, uninterrupted):
    evaluate(setup)
    translator, config = setup
    with torch.no_grad():
        translator.G.to_rgb[-1].bias += 0.1
    assert evaluate((translator, config))["score"] != uninterrupted["score"]


def test_real_statistics_are_cached_and_verified(setup, uninterrupted, monkeypatch, caplog):
    batches = []
    update = Statistics.update

    def recording(self, features, first):
        batches.append(len(features))
        update(self, features, first)

    monkeypatch.setattr(Statistics, "update", recording)
    evaluate(setup, seed=1)
    assert sum(batches) == 360  # only translations
    for file in storage.list_names(setup[1].evaluation.cache):
        if file.endswith(".safetensors"):
            storage.write_bytes(storage.join(setup[1].evaluation.cache, file), b"damaged")
    storage.remove_folder(storage.join(setup[1].run, "evaluation"))
    del batches[:]
    assert values(evaluate(setup)) == values(uninterrupted)
    assert sum(batches) == 360 + 36
    assert "computed again: its hash is wrong" in caplog.text


def test_tasks_with_nonfinite_outputs_have_an_error(setup):
    translator, _ = setup
    with torch.no_grad():
        translator.networks["F"].branches[-1].bias[1] = float("nan")  # latents of dogs
    result = evaluate(setup)
    failed = errors(rows_by_task(result))
    assert set(failed) == {(LATENT, "cat", "dog"), (LATENT, "rabbit", "dog")}
    assert failed[LATENT, "cat", "dog"] == "30 of 30 outputs are not finite: training diverged"
    assert result["score"] is None
    assert result["means"]["demo_fid_reference"] > 0
    assert "not measured: 30 of 30 outputs are not finite" in report.table(result)


def build_shards(animals, tmp_path, counts):
    """Build shards with the given numbers of (train, val) images per species."""
    for domain, numbers in counts.items():
        files = sorted((animals / domain).iterdir())
        for split, count in zip(("train", "val"), numbers, strict=True):
            folder = tmp_path / "source" / split / domain
            if count:
                folder.mkdir(parents=True)
            for _ in range(count):
                shutil.copy(files.pop(), folder)
    build(str(tmp_path / "source"), str(tmp_path / "built"))
    return str(tmp_path / "built")


def test_tasks_with_a_single_image_have_an_error(setup, animals, tmp_path, monkeypatch):
    """One training image has no covariance, and neither has one validation image for the real
    task. Rows hold the error and everything that can be measured."""
    monkeypatch.setattr(demo_network, "STEPS", 2)
    url = build_shards(animals, tmp_path, {"cat": (1, 2), "dog": (4, 1), "rabbit": (4, 2)})
    rows = rows_by_task(evaluate(setup, shards=url))
    failed = errors(rows)
    assert {target for _, _, target in failed} == {"cat", "dog"}
    assert failed.pop((REAL, "dog", "dog")) == (
        "1 validation images of dog: a covariance needs at least 2"
    )
    assert set(failed.values()) == {"1 training images of cat: a covariance needs at least 2"}
    assert len(failed) == 5
    assert rows[LATENT, "dog", "cat"]["demo_lpips"] > 0
    assert rows[LATENT, "dog", "rabbit"]["images"] == 10


def test_tasks_without_validation_images_have_an_error(setup, animals, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_network, "STEPS", 2)
    url = build_shards(animals, tmp_path, {"cat": (4, 2), "dog": (4, 0), "rabbit": (4, 2)})
    rows = rows_by_task(evaluate(setup, shards=url))
    failed = errors(rows)
    assert {task for task in failed if task[0] == LATENT} == {
        (LATENT, "dog", "cat"), (LATENT, "dog", "rabbit")
    }  # fmt: skip
    assert failed[LATENT, "dog", "cat"] == "domain dog has no validation images"
    assert failed["reference", "cat", "dog"] == "domain dog has no validation images"
    assert "error" not in rows["reference", "cat", "rabbit"]


def test_a_damaged_shard_fails_only_the_tasks_that_need_it(setup, shards, tmp_path):
    shutil.copytree(shards, tmp_path / "damaged")
    evaluator = Evaluator(setup[1], World())
    bad = evaluator.collector.sources["val"].readers[0].index.splits["val"]["dog"][0].name
    (tmp_path / "damaged" / bad).write_bytes(b"")
    result = evaluate(setup, shards=str(tmp_path / "damaged"))
    by_dogs = {("reference", source, "dog") for source in ("cat", "rabbit")}
    of_dogs = {task for task in values(result) if task[1] == "dog" != task[2]}
    assert set(errors(rows_by_task(result))) == by_dogs | of_dogs
    assert "error" not in result["rows"][-2]  # the real task of dogs came from the cache
    assert all(bad in error for error in results.task_errors(result))


def test_shards_with_other_domains_are_rejected(setup, animals, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_network, "STEPS", 2)
    url = build_shards(animals, tmp_path, {"cat": (2, 2), "dog": (2, 2)})
    with pytest.raises(UserError, match="hold the domains cat, dog; the networks were trained on"):
        evaluate(setup, shards=url)


def test_an_evaluation_retries_shards_that_an_earlier_one_could_not_reach(setup, uninterrupted):
    """A storage failure during one evaluation of a training does not affect the next."""
    translator, config = setup
    evaluator = Evaluator(config, World())
    reader = evaluator.collector.sources["val"].readers[0]
    reader._unreachable = {s.name: "no answer" for s in reader.index.shards()}
    assert evaluator.evaluate(translator) == uninterrupted


def test_a_result_that_cannot_be_written_is_an_error(setup):
    translator, config = setup
    storage.write_bytes(storage.join(config.run, "evaluation"), b"in the way")
    with pytest.raises(UserError, match=r"cannot (read|write)"):
        evaluate((translator, config))


def test_bfloat16_is_recorded_and_changes_the_score_slightly(finished_run, cache, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    translator, config = load(tmp_path / "run", cache)
    full = evaluate((translator, config))
    evaluation = dataclasses.replace(config.evaluation, precision="bfloat16")
    reduced = evaluate((translator, dataclasses.replace(config, evaluation=evaluation)))
    assert (full["precision"], reduced["precision"]) == ("float32", "bfloat16")
    assert reduced["score"] != full["score"]
    assert reduced["score"] == pytest.approx(full["score"], rel=0.05)


def test_references_are_encoded_once_by_each_model(setup, monkeypatch):
    """The tasks of a target have one model, but those of a set of pairs have several."""
    collector, encoded = Evaluator(setup[1], World()).collector, []

    def encode(model, label, images):
        encoded.append((model, label, images.name))
        return torch.full((1,), float(len(encoded)))

    monkeypatch.setattr(collector, "reference_conditioning", encode)
    target, (first, second) = Target(collector, 1), (object(), object())
    found = [target.references(*of) for of in ((first, 0), (first, 0), (second, 1))]
    assert [float(references) for references in found] == [1, 1, 2]
    assert encoded == [(first, 0, "dog"), (second, 1, "dog")]


def condition_first(translator, task, positions):
    return condition_outputs(translator, task, None, 0, positions[0])


def test_no_value_is_read_from_the_device_within_a_task(setup, monkeypatch):
    """On the meta device every read of a value raises."""
    translator, config = setup
    collector = Evaluator(config, World()).collector
    metrics = collector.metrics
    for network in (*translator.networks.values(), metrics.features, metrics.diversity):
        network.to("meta")
    monkeypatch.setattr(World, "device", torch.device("meta"))
    monkeypatch.setattr("stargan_dist.evaluation.collector.GRID_SOURCES", 0)
    (task, *_) = [task for task in tasks(3) if task.guide == LATENT]
    progress = type("Silent", (), {"update": lambda self, units: None})()
    suite = DomainSuite(collector, translator, 0)
    condition = partial(condition_first, translator, task)
    translation = Translation(suite.sources(task), OUTPUTS, condition, suite.rate)
    translations = collector._translate_share(translator, translation, progress)
    assert translations.statistics.outer.is_meta
