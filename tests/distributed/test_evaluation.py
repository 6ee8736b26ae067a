"""Evaluation by real processes. Any number of them gives the same metrics."""

import json
import os
import shutil
import signal
import subprocess

import pytest

from baselines import random_weights as weights
from stargan_dist.data.index import read_index
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.shards.build import build
from tests.conftest import PATIENCE_SECONDS, ROOT, Trainer, launch
from tests.helpers.runs import assert_same_bits, scalars

DEMO = ("--evaluation.protocol", "demo", "--evaluation.every", "3")


def evaluate(run, *args, processes=1, code=0):
    result = subprocess.run(
        [*launch(processes), "-m", "stargan_dist.evaluate", "--run", str(run), *map(str, args)],
        cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False,
        timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert result.returncode == code, result.stdout + result.stderr
    return result


def read(run, protocol, step, seed=0):
    """Read the result of a protocol in any variant."""
    (file,) = (run / "evaluation").glob(f"{protocol}*/step_{step:08d}_seed_{seed}.json")
    return json.loads(file.read_text())


def assert_equal(result, expected):
    """Assert that two results have metrics equal to 1e-6 and all other fields equal."""
    metrics = {"rows": None, "means": None, "score": None}
    assert result | metrics == expected | metrics
    for row, expected_row in zip(result["rows"], expected["rows"], strict=True):
        assert row.keys() == expected_row.keys()
        for name, value in expected_row.items():
            exact = isinstance(value, str)
            assert row[name] == (value if exact else pytest.approx(value, rel=1e-6))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Options that name a shared cache: the demo network is trained once for all tests."""
    return ("--evaluation.cache", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def uneven(animals, tmp_path_factory):
    """A folder with shards of two domains, with two and three validation images, and a run."""
    folder = tmp_path_factory.mktemp("uneven")
    for domain, count in (("cat", 8), ("dog", 12)):
        (folder / "source" / domain).mkdir(parents=True)
        for file in sorted((animals / domain).iterdir())[:count]:
            shutil.copy(file, folder / "source" / domain)
    build(str(folder / "source"), str(folder / "shards"), val_fraction=0.25, shard_images=4)
    assert read_index(str(folder / "shards")).counts("val") == ((2,), (3,))
    Trainer(str(folder / "shards"))(folder / "run", "--steps", "2")
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Options that name files of random weights in the layouts of the published ones."""
    folder = tmp_path_factory.mktemp("weights")
    inception = weights.write(folder / "inception.pth", weights.paper_inception())
    alexnet = weights.write(folder / "alexnet.pth", weights.alexnet_features())
    return ["--inception-weights", inception, "--alexnet-weights", alexnet]


@pytest.fixture(scope="module", params=["demo", pytest.param("paper", marks=pytest.mark.slow)])
def evaluate_with(request, uneven):
    """A function that evaluates a run under a protocol in float32, with a number of processes and
    an empty cache."""
    files = request.getfixturevalue("files") if request.param == "paper" else []

    def evaluate_copy(folder, processes):
        run = shutil.copytree(uneven / "run", folder / "run")
        options = ["--protocol", request.param, *files, "--cache", folder / "cache"]
        evaluate(run, *options, processes=processes)
        return read(run, request.param, 2)

    return evaluate_copy


@pytest.fixture(scope="module")
def result_of_one_process(evaluate_with, tmp_path_factory):
    result = evaluate_with(tmp_path_factory.mktemp("one"), 1)
    # The name is not just "fid", because these are not the published weights.
    assert result["metrics"][0].startswith(("fid_", "demo_fid"))
    assert result["score"] > 0.1
    return result


@pytest.mark.parametrize("processes", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_several_processes_measure_the_same_as_one(
    evaluate_with, result_of_one_process, tmp_path, processes
):
    """With three processes and two sources, one rank has no share."""
    assert_equal(evaluate_with(tmp_path, processes), result_of_one_process)


def test_an_evaluation_in_training_equals_the_command_and_does_not_affect_training(
    train, cache, tmp_path, run_of_two
):
    """Two processes evaluate at steps 3 and 6. The trained tensors equal those of a run without
    evaluations, every evaluation saves a checkpoint, and the metrics equal those of `evaluate` in
    one process."""
    run = tmp_path / "run"
    stdout = train(run, *DEMO, *cache, processes=2).stdout
    assert_same_bits(run, run_of_two)
    assert scalars(run) == scalars(run_of_two)
    assert stdout.count("protocol demo") == 2
    assert checkpoints.list_steps(str(run)) == [3, 4, 6]
    results = {step: read(run, "demo", step) for step in (3, 6)}
    best = min(results, key=lambda step: results[step]["score"])
    assert checkpoints.find(str(run), "best").step == best
    assert [step for step, _ in evaluation_scalars(run)["demo/demo_fid_latent"]] == [3, 6]

    shutil.rmtree(run / "evaluation")
    evaluate(run, "--checkpoint", 3)
    assert_equal(read(run, "demo", 3), results[3])


def evaluation_scalars(run):
    """Return the scalars of evaluations: a TensorBoard run below that of the training."""
    shutil.copytree(run / "tensorboard" / "evaluation", run.parent / "board" / "tensorboard")
    return scalars(run.parent / "board", ("demo/",))


@pytest.mark.slow
def test_a_rank_that_cannot_read_an_image_fails_its_tasks_on_all_ranks(uneven, tmp_path):
    """The other ranks neither hang nor stop. The command exits with 2, the launcher with 1."""
    shutil.copytree(uneven / "shards", tmp_path / "shards")
    bad = read_index(str(tmp_path / "shards")).splits["val"]["dog"][0].name
    damaged = bytearray((tmp_path / "shards" / bad).read_bytes())
    damaged[-2000:] = bytes(2000)  # the last image, which belongs to rank 0
    (tmp_path / "shards" / bad).write_bytes(damaged)
    run = tmp_path / "run"
    Trainer(str(tmp_path / "shards"))(run, "--steps", "2")
    done = evaluate(run, "--protocol", "demo", processes=2, code=1)
    assert f"not measured: cannot read sample 2 of shard {tmp_path}/shards/{bad}" in done.stdout
    rows = {(r["guide"], r["source"], r["target"]): r for r in read(run, "demo", 2)["rows"]}
    assert "demo_fid" in rows["latent", "cat", "dog"]
    assert {key for key, row in rows.items() if "error" in row} == {
        ("latent", "dog", "cat"), ("reference", "dog", "cat"),
        ("reference", "cat", "dog"), ("real", "dog", "dog"),
    }  # fmt: skip


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_missing_weights_are_reported_before_training(train, tmp_path, processes):
    """One rank prints one line."""
    options = ("--evaluation.every", "3", "--evaluation.inception_weights", "/nowhere.pth")
    files = ("--evaluation.alexnet_weights", "/nowhere.pth")
    code = 2 if processes == 1 else 1
    done = train(tmp_path / "run", *options, *files, processes=processes, code=code)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert "/nowhere.pth" in errors[0]
    assert "--evaluation.every 0" in errors[0]
    assert not checkpoints.list_steps(str(tmp_path / "run"))


KILLED = str(ROOT / "tests" / "distributed" / "killed.py")


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_killed_in_an_evaluation_resumes_it(train, cache, finished_run, tmp_path, processes):
    """The same command measures the remaining tasks, and training ends with the tensors of an
    uninterrupted run."""
    run = tmp_path / "run"
    moment = "stargan_dist.evaluation.collector/Collector:translate:8"
    code = -signal.SIGKILL if processes == 1 else 1
    train(run, *DEMO, *cache, driver=KILLED, KILL_AT=moment, code=code, processes=processes)
    assert checkpoints.find(str(run)).step == 3
    partial = read(run, "demo", 3)
    assert partial["score"] is None
    assert 5 <= len(partial["rows"]) <= 10
    train(run, *DEMO, *cache, processes=processes)
    complete = read(run, "demo", 3)
    assert complete["score"] is not None
    assert [row for row in partial["rows"] if row not in complete["rows"]] == []
    if processes == 1:
        assert_same_bits(run, finished_run)


@pytest.mark.slow
@pytest.mark.parametrize(("every", "step"), [(3, 3), (6, 6)])
def test_a_run_stopped_in_an_evaluation_resumes_it(
    train, cache, finished_run, tmp_path, every, step
):
    """A signal arrives in the middle of the training or at its end. The state is saved, the exit
    code reports an unfinished run, and the same command first measures the remaining tasks."""
    options = (*DEMO[:2], "--evaluation.every", str(every), *cache)
    moment = {
        "KILL_AT": "stargan_dist.evaluation.collector/Collector:translate:3",
        "KILL_BY": "SIGUSR1",
    }
    run = tmp_path / "run"
    done = train(run, *options, driver=KILLED, code=75, **moment)
    assert f"stopped by SIGUSR1 at step {step}" in done.stdout
    assert json.loads((run / "status.json").read_text())["status"] == "stopped"
    assert checkpoints.find(str(run)).step == step
    assert read(run, "demo", step)["score"] is None
    done = train(run, *options)
    assert "finished at step 6" in done.stdout
    assert read(run, "demo", step)["score"] is not None
    assert done.stdout.count("protocol demo") == 6 // every
    assert_same_bits(run, finished_run)
    assert "protocol demo" not in train(run, *options).stdout  # nothing remains
