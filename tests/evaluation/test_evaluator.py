"""Evaluation in one process, by the demo's networks. Real processes: tests/distributed."""

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
from stargan_dist.data.reader import load_split
from stargan_dist.distributed.world import World
from stargan_dist.errors import UserError
from stargan_dist.evaluation import results
from stargan_dist.evaluation.collector import Stopped, _guides
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
from stargan_dist.inference.translator import Translator
from stargan_dist.runs import scores
from stargan_dist.shards.build import build
from tests.evaluation.metrics.test_fid import by_gram


@pytest.fixture(scope="module")
def trained(train, tmp_path_factory):
    """A run in float64, where no pixel lies so near a rounding that it could fall otherwise."""
    run = tmp_path_factory.mktemp("evaluated") / "run"
    train(run, "--precision", "float64", "--steps", "2")
    return run


def opened(run, cache):
    """(translator, config) of a run, to be measured by the demo's networks."""
    translator = Translator.load(str(run))
    config = translator.config
    evaluation = dataclasses.replace(config.evaluation, protocol="demo", cache=str(cache))
    return translator, dataclasses.replace(config, run=str(run), evaluation=evaluation)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def setup(trained, cache, whole, tmp_path):
    """A copy of the run without the evaluation, and of the cache that this filled."""
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    shutil.copytree(cache, tmp_path / "cache")
    return opened(tmp_path / "run", tmp_path / "cache")


def place(setup):
    return storage.join(setup[1].run, "evaluation", "demo", "step_00000002_seed_0.json")


def evaluate(setup, seed=0, stopped=lambda: False, **data):
    translator, config = setup
    if data:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, **data))
    return Evaluator(config, World(), stopped).evaluate(translator, seed)


def values(result):
    names = [*result["metrics"], "images", "real_images"]
    return {
        (r["guide"], r["source"], r["target"]): [r.get(name) for name in names]
        for r in result["rows"]
    }


@pytest.fixture(scope="module")
def whole(trained, cache):
    """An evaluation that went through."""
    return evaluate(opened(trained, cache))


def of(split, label):
    return split.images[split.labels == label]


def literal_outputs(translator, task, val, seed):
    """Each output by a pass of its own through all of G, F or E."""
    references = of(val, task.target)
    y = torch.tensor([task.target])
    for number, image in enumerate(of(val, task.source)):
        z = torch.from_numpy(draw_latents(task, number, 16, seed))
        picked = draw_references(task, number, len(references), seed)
        for i in range(OUTPUTS):
            style = (
                translator.networks["F"](z[i, None], y)
                if task.guide == LATENT
                else translator.networks["E"](
                    to_unit(references[picked[i], None], torch.float64), y
                )
            )
            yield translator.G(to_unit(image[None], torch.float64), style)


def literal_row(translator, measure, task, train, val, seed):
    with torch.no_grad():
        real = torch.cat([measure.features(x[None]) for x in of(train, task.target)])
        outputs = list(literal_outputs(translator, task, val, seed))
        fakes = torch.cat([measure.features(to_uint8(x)) for x in outputs])
        groups = torch.cat(outputs).float().split(OUTPUTS)
        distances = [
            mean_pairwise_distance(
                [f[None] for f in measure.diversity.network.layers(group[[i, j]])],
                [torch.ones(1)] * 3,
            )
            for group in groups
            for i, j in combinations(range(OUTPUTS), 2)
        ]
    return by_gram(real.double(), fakes.double()), float(torch.cat(distances).mean())


def test_equals_the_protocol_done_literally(setup, whole):
    translator, config = setup
    evaluator = Evaluator(config, World())
    readers = evaluator.collector.readers
    train, val = (load_split(readers[split], 32) for split in ("train", "val"))
    found = values(whole)
    for task in tasks(3):
        if task.guide == REAL or task.target == 2:
            continue
        key = (task.guide, val.domains[task.source], val.domains[task.target])
        fid, diversity = literal_row(
            translator, evaluator.collector.measure, task, train, val, seed=0
        )
        assert found[key][0] == pytest.approx(fid, rel=1e-5)  # features are of float32
        assert found[key][2] == pytest.approx(diversity, rel=1e-5)
        assert found[key][3:] == [30, 9]


def test_what_a_result_tells(whole):
    names = ["demo_fid", "demo_kid", "demo_lpips"]
    assert whole["metrics"] == names
    assert (whole["protocol"], whole["step"], whole["seed"]) == ("demo", 2, 0)
    assert whole["outputs_per_source"] == 10
    assert len(whole["extractors"]["features"]["sha256"]) == 64
    rows = [row for row in whole["rows"] if row["guide"] != REAL]
    assert len(rows) == 12
    assert whole["score"] == pytest.approx(sum(row["demo_fid"] for row in rows) / 12)
    latent = [row["demo_lpips"] for row in rows if row["guide"] == LATENT]
    assert whole["means"]["demo_lpips_latent"] == pytest.approx(sum(latent) / 6)
    # Real images are nearer to real images than those of an untrained generator.
    assert whole["means"]["demo_fid_real"] < whole["score"] / 10


def test_files_of_a_result(setup, whole):
    result = evaluate(setup)
    where = place(setup)
    assert json.loads(storage.read_bytes(where)) == result == whole
    pictures = storage.list_names(where.removesuffix(".json"))
    assert len(pictures) == 12
    picture = Image.open(storage.join(where.removesuffix(".json"), pictures[0]))
    assert picture.width == 11 * (64 + 2) + 2
    assert picture.height == 3 * (64 + 2) + 2 + 16  # three validation images


def test_the_seed_draws_other_latents_and_references(setup, whole):
    other = values(evaluate(setup, seed=1))
    same = values(whole)
    for key, row in same.items():
        assert (other[key] == row) == (key[0] == REAL)


def count_sources(monkeypatch):
    """How many sources are translated from now on."""
    seen = []
    translate = Translator.translate

    def counted(self, x, s):
        seen.extend(x)
        return translate(self, x, s)

    monkeypatch.setattr(Translator, "translate", counted)
    return seen


@pytest.mark.parametrize("sources", [0, 4, 17, 35])
def test_a_stopped_evaluation_goes_on_with_what_is_left(setup, whole, monkeypatch, sources):
    seen = count_sources(monkeypatch)
    with pytest.raises(Stopped):
        evaluate(setup, stopped=lambda: len(seen) >= sources)
    kept = scores.read(place(setup))
    measured = len(kept["rows"]) if kept else 0
    assert kept is None or kept["score"] is None
    del seen[:]
    assert evaluate(setup) == whole
    done = sources // 3  # whole tasks of three sources
    assert len(seen) == 36 - 3 * done
    assert measured >= done


def test_what_is_measured_is_not_measured_again(setup, whole, monkeypatch):
    evaluate(setup)
    seen = count_sources(monkeypatch)
    assert evaluate(setup) == whole
    assert not seen


def test_another_generator_is_measured_anew(setup, whole):
    evaluate(setup)
    translator, config = setup
    with torch.no_grad():
        translator.G.to_rgb[-1].bias += 0.1
    assert evaluate((translator, config))["score"] != whole["score"]


def test_real_statistics_are_computed_once_and_checked(setup, whole, monkeypatch, capsys):
    seen = []
    update = Statistics.update

    def counted(self, features, first):
        seen.append(len(features))
        update(self, features, first)

    monkeypatch.setattr(Statistics, "update", counted)
    evaluate(setup, seed=1)
    assert sum(seen) == 360  # translations alone
    for file in storage.list_names(setup[1].evaluation.cache):
        if file.endswith(".safetensors"):
            storage.write_bytes(storage.join(setup[1].evaluation.cache, file), b"damaged")
    storage.remove_folder(storage.join(setup[1].run, "evaluation"))
    del seen[:]
    assert values(evaluate(setup)) == values(whole)
    assert sum(seen) == 360 + 36
    assert "computed again: its hash is wrong" in capsys.readouterr().err


def test_outputs_that_are_not_finite(setup):
    translator, _ = setup
    with torch.no_grad():
        translator.networks["F"].branches[-1].bias[1] = float("nan")  # latents of dogs
    result = evaluate(setup)
    rows = dict(zip(values(result), result["rows"], strict=True))
    failed = {key for key, row in rows.items() if "error" in row}
    assert failed == {(LATENT, "cat", "dog"), (LATENT, "rabbit", "dog")}
    assert rows[LATENT, "cat", "dog"]["error"] == (
        "30 of 30 outputs are not finite: training diverged"
    )
    assert result["score"] is None
    assert result["means"]["demo_fid_reference"] > 0
    assert "not measured: 30 of 30 outputs are not finite" in results.table(result)


def rebuilt(animals, tmp_path, counts):
    """Shards with so many (train, val) images of each species."""
    for domain, numbers in counts.items():
        files = sorted((animals / domain).iterdir())
        for split, count in zip(("train", "val"), numbers, strict=True):
            folder = tmp_path / "source" / split / domain
            if count:
                folder.mkdir(parents=True)
            for _ in range(count):
                shutil.copy(files.pop(), folder)
    build(str(tmp_path / "source"), str(tmp_path / "rebuilt"))
    return str(tmp_path / "rebuilt")


def test_few_images(setup, animals, tmp_path, monkeypatch):
    """One training image has no covariance, one validation image no floor; each is told, and what
    can be measured is."""
    monkeypatch.setattr(demo_network, "STEPS", 2)
    url = rebuilt(animals, tmp_path, {"cat": (1, 2), "dog": (4, 1), "rabbit": (4, 2)})
    rows = {(r["guide"], r["source"], r["target"]): r for r in evaluate(setup, shards=url)["rows"]}
    errors = {key: row["error"] for key, row in rows.items() if "error" in row}
    assert {key[2] for key in errors} == {"cat", "dog"}
    assert errors.pop((REAL, "dog", "dog")) == (
        "1 validation images of dog: a covariance needs at least 2"
    )
    assert set(errors.values()) == {"1 training images of cat: a covariance needs at least 2"}
    assert len(errors) == 5
    assert rows[LATENT, "dog", "cat"]["demo_lpips"] > 0
    assert rows[LATENT, "dog", "rabbit"]["images"] == 10


def test_a_domain_without_validation_images(setup, animals, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_network, "STEPS", 2)
    url = rebuilt(animals, tmp_path, {"cat": (4, 2), "dog": (4, 0), "rabbit": (4, 2)})
    rows = {(r["guide"], r["source"], r["target"]): r for r in evaluate(setup, shards=url)["rows"]}
    errors = {key: row["error"] for key, row in rows.items() if "error" in row}
    assert {key for key in errors if key[0] == LATENT} == {
        (LATENT, "dog", "cat"), (LATENT, "dog", "rabbit")
    }  # fmt: skip
    assert errors[LATENT, "dog", "cat"] == "domain dog has no validation images"
    assert errors["reference", "cat", "dog"] == "domain dog has no validation images"
    assert "error" not in rows["reference", "cat", "rabbit"]


def test_a_damaged_shard_fails_the_tasks_that_need_it(setup, shards, tmp_path):
    shutil.copytree(shards, tmp_path / "damaged")
    evaluator = Evaluator(setup[1], World())
    bad = evaluator.collector.readers["val"].index.splits["val"]["dog"][0].name
    (tmp_path / "damaged" / bad).write_bytes(b"")
    result = evaluate(setup, shards=str(tmp_path / "damaged"))
    failed = {(r["guide"], r["source"], r["target"]) for r in result["rows"] if "error" in r}
    guided = {("reference", source, "dog") for source in ("cat", "rabbit")}
    assert failed == guided | {key for key in values(result) if key[1] == "dog" != key[2]}
    assert "error" not in result["rows"][-2]  # the floor of dogs came from the cache
    assert all(bad in error for error in results.errors(result))


def test_shards_of_other_domains_are_refused(setup, animals, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_network, "STEPS", 2)
    url = rebuilt(animals, tmp_path, {"cat": (2, 2), "dog": (2, 2)})
    with pytest.raises(UserError, match="hold the domains cat, dog; the networks were trained on"):
        evaluate(setup, shards=url)


def test_a_fault_that_has_passed_is_forgotten(setup, whole):
    """Of a store that failed during one evaluation of a training."""
    translator, config = setup
    evaluator = Evaluator(config, World())
    reader = evaluator.collector.readers["val"]
    reader._unreachable = {s.name: "no answer" for s in reader.index.shards()}
    assert evaluator.evaluate(translator) == whole


def test_a_result_that_cannot_be_written(setup):
    translator, config = setup
    storage.write_bytes(storage.join(config.run, "evaluation"), b"in the way")
    with pytest.raises(UserError, match=r"cannot (read|write)"):
        evaluate((translator, config))


def test_bfloat16_is_named_and_differs_little(finished_run, cache, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    translator, config = opened(tmp_path / "run", cache)
    exact = evaluate((translator, config))
    evaluation = dataclasses.replace(config.evaluation, precision="bfloat16")
    lowered = evaluate((translator, dataclasses.replace(config, evaluation=evaluation)))
    assert (exact["precision"], lowered["precision"]) == ("float32", "bfloat16")
    assert lowered["score"] != exact["score"]
    assert lowered["score"] == pytest.approx(exact["score"], rel=0.05)


def test_nothing_in_a_task_waits_for_the_device(setup, monkeypatch):
    """On the meta device every read of a value raises."""
    translator, config = setup
    collector = Evaluator(config, World()).collector
    measure = collector.measure
    for network in (*translator.networks.values(), measure.features, measure.diversity):
        network.to("meta")
    monkeypatch.setattr(World, "device", torch.device("meta"))
    monkeypatch.setattr("stargan_dist.evaluation.collector.PICTURED", 0)
    (task, *_) = [task for task in tasks(3) if task.guide == LATENT]
    progress = type("Silent", (), {"advance": lambda self, units: None})()
    guides = partial(_guides, translator, task, None, 0)
    fakes = collector._translate(translator, task.source, guides, progress)
    assert fakes.statistics.outer.is_meta
