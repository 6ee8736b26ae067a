"""The command that trains all pairs of a set, and the evaluation of the set as one translator."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from itertools import permutations

import numpy as np
import pytest

from stargan_dist.data.index import read_index, write_index
from stargan_dist.evaluation.collector import Collector
from stargan_dist.launch.children import Children
from tests.conftest import PAIR_OPTIONS, PATIENCE_SECONDS, ROOT, Trainer, here, restore_signals
from tests.helpers.runs import assert_same_bits

SPECIES = ["cat", "dog", "rabbit"]
PAIRS = ["cat-dog", "cat-rabbit", "dog-rabbit"]
STEPS = 2


def options(folder, shards, *extra):
    """Return the options of the fixture `pair_runs` for another folder, and further ones."""
    return [*Trainer(shards).options(folder), *PAIR_OPTIONS, *extra]


def rows(folder, shards, *extra):
    """Return the plan as JSON."""
    return json.loads(here("pairs", *options(folder, shards, *extra), "--json").stdout)


def states(folder, shards, *extra):
    return [row["state"] for row in rows(folder, shards, *extra)]


@pytest.fixture
def in_process(monkeypatch):
    """Children train in this process. Returns the command lines, and exit codes to come instead."""
    commands, codes, logger = [], {}, logging.getLogger("stargan_dist")

    def run(_, command):
        words = [*map(str, command)]
        commands.append(words)
        if len(commands) in codes:
            return codes[len(commands)]
        handlers = logger.handlers
        here("train", *words[words.index("stargan_dist.train") + 1 :])
        logger.handlers = handlers  # of the plan
        return 0

    monkeypatch.setattr(Children, "run", run)
    return commands, codes


# The plan.


def test_a_plan_names_all_pairs_and_trains_none(shards, tmp_path):
    listed = here("pairs", *options(tmp_path / "set", shards), "--list").stdout.splitlines()
    assert listed[0].split() == ["number", "pair", "run", "state"]
    assert [line.split()[0] for line in listed[1:]] == ["0", "1", "2"]
    assert [line.split()[4] for line in listed[1:]] == [str(tmp_path / "set" / p) for p in PAIRS]
    assert all(line.endswith("not begun") for line in listed[1:])
    assert not (tmp_path / "set").exists()


def test_a_pair_is_trained_as_a_run_of_two_domains(pair_runs, shards, train, tmp_path):
    extra = ["--data.pair", "[cat, rabbit]", "--run", str(tmp_path / "run")]
    here("train", *options("replaced", shards, *extra))
    assert_same_bits(pair_runs / "cat-rabbit", tmp_path / "run")
    assert json.loads((pair_runs / "pairs.json").read_text()) == {"domains": SPECIES}


def test_a_plan_continues_with_what_is_not_finished(pair_runs, shards, in_process, tmp_path):
    """One pair is finished, one has a step less, one has not begun."""
    commands, _ = in_process
    folder = tmp_path / "set"
    shutil.copytree(pair_runs / "cat-dog", folder / "cat-dog")
    here("pairs", "--index", 1, *options(folder, shards, "--steps", 1))
    assert states(folder, shards) == ["finished", "begun", "not begun"]
    assert [row["step"] for row in rows(folder, shards)] == [2, 1, 0]
    out = here("pairs", *options(folder, shards)).stdout
    assert re.findall(r"pair (\d of 3: .*)", out) == [
        "2 of 3: cat and rabbit",
        "3 of 3: dog and rabbit",
    ]
    assert f"evaluate --run {folder}" in out
    assert len(commands) == 2
    for pair in PAIRS:
        assert_same_bits(folder / pair, pair_runs / pair)
    assert states(folder, shards) == ["finished"] * 3
    here("pairs", *options(folder, shards))
    assert len(commands) == 2


def test_a_training_whose_end_was_not_reported_is_resumed(pair_runs, shards, tmp_path):
    """Its last evaluation may be missing."""
    shutil.copytree(pair_runs, tmp_path / "set")
    (tmp_path / "set" / "cat-dog" / "status.json").write_text('{"status": "running", "step": 2}')
    (tmp_path / "set" / "cat-rabbit" / "status.json").unlink()
    assert states(tmp_path / "set", shards) == ["begun", "begun", "finished"]


def test_a_finished_pair_goes_on_with_more_steps(pair_runs, shards):
    assert states(pair_runs, shards, "--steps", STEPS + 1) == ["begun"] * 3


@pytest.mark.parametrize("code", [2, 137])
def test_a_failing_pair_ends_the_plan_with_its_exit_code(shards, in_process, tmp_path, code):
    commands, codes = in_process
    codes[2] = code
    done = here("pairs", *options(tmp_path / "set", shards), code=code)
    assert len(commands) == 2
    assert done.stderr.count("\n") == 1
    assert f"the training of cat and rabbit failed with exit code {code}" in done.stderr
    assert states(tmp_path / "set", shards) == ["finished", "not begun", "not begun"]


def test_a_stopped_pair_ends_the_plan_with_the_exit_code_of_stopped_runs(
    shards, in_process, tmp_path
):
    commands, codes = in_process
    codes[1] = 75
    done = here("pairs", *options(tmp_path / "set", shards), code=75)
    assert len(commands) == 1 and not done.stderr
    assert "stopped: the same command continues with cat and dog" in done.stdout


def test_the_processes_of_a_training_are_started_by_the_launcher(shards, in_process, tmp_path):
    commands, codes = in_process
    codes[1] = 3
    here("pairs", *options(tmp_path / "set", shards), "--processes", 2, code=3)
    words = commands[0]
    assert words[2] == "stargan_dist.launch"
    assert words[words.index("--num_processes") + 1] == "2"


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_plan_that_is_stopped_and_resumed_equals_an_uninterrupted_one(shards, tmp_path, sent):
    """Real processes. The plan is stopped in the training of its second pair. If it is killed, that
    training saves by itself."""
    folder, whole = tmp_path / "set", tmp_path / "whole"
    steps = ("--steps", 200, "--monitor.log_every", 1, "--checkpoint.every", 1000)
    for number in (1, 2):
        here("pairs", "--index", number, *options(whole, shards, *steps))
    command = [
        sys.executable,
        "-m",
        "stargan_dist.pairs",
        *map(str, options(folder, shards, *steps)),
    ]
    restore_signals()  # the child would inherit that a training which has ended ignores them
    plan = subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    lines = iter(plan.stdout)
    assert any("cat-rabbit: steps 0 to 200" in line for line in lines)
    assert any("step 3/200" in line for line in lines)
    plan.send_signal(sent)
    output = plan.communicate(timeout=PATIENCE_SECONDS)[0]  # the child has its end of the pipe
    step = int(re.search(r"stopped by SIGTERM at step (\d+), saved in .*cat-rabbit", output)[1])
    assert 3 <= step < 200
    if sent == signal.SIGTERM:
        assert plan.returncode == 75
        assert "stopped: the same command continues with cat and rabbit" in output
    assert states(folder, shards, *steps) == ["finished", "begun", "not begun"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"cat-rabbit: steps {step} to 200" in done.stdout
    for pair in PAIRS[1:]:
        assert_same_bits(folder / pair, whole / pair)


# One pair.


def test_a_number_trains_one_pair_alone(shards, tmp_path):
    here("pairs", "--index", 2, *options(tmp_path / "set", shards))
    assert states(tmp_path / "set", shards) == ["not begun", "not begun", "finished"]


def test_the_steps_of_one_pair_are_reported_in_the_words_of_status(pair_runs, shards):
    output = here("pairs", "--list", "--index", 1, *options(pair_runs, shards)).stdout
    assert output == f"2 of 2 steps saved in {pair_runs}/cat-rabbit\n"
    of_run = here("status", *options(pair_runs / "cat-rabbit", shards)).stdout
    assert output == of_run


def test_settings_of_the_launcher_count_as_for_any_training(shards, tmp_path):
    """An option may need one of them."""
    set_options = options(tmp_path / "set", shards, "--engine.offload_optimizer", "true")
    launcher = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    output = here("pairs", "--list", "--index", 0, *set_options, **launcher).stdout
    assert output.startswith("0 of 2 steps saved in ")


# Errors.


def error(*args, **env):
    text = here("pairs", *args, code=2, **env).stderr
    assert text.startswith("error: ") and text.count("\n") == 1
    return text


def test_a_number_without_a_pair_is_rejected(shards, tmp_path):
    output = error("--index", 3, *options(tmp_path / "set", shards))
    assert "--index: there is no pair 3, the last one is 2" in output


def test_another_configuration_is_refused_before_anything_is_trained(pair_runs, shards, in_process):
    output = error(*options(pair_runs, shards, "--loss.cyc", 5, "--steps", 3))
    assert "cat-dog was trained with another configuration (loss.cyc was 10.0, is 5.0)" in output
    assert in_process[0] == []


def test_ranks_do_not_each_train_all_pairs(shards, tmp_path):
    output = error(*options(tmp_path / "set", shards), WORLD_SIZE="2", RANK="0")
    assert "start it without a launcher" in output


def test_data_sources_have_no_pairs_of_domains(tmp_path):
    output = error("--config", ROOT / "configs" / "joint.yaml", "--run", tmp_path, "--list")
    assert "data.sources" in output


def test_one_domain_has_no_pair(shards, tmp_path):
    write_index(str(tmp_path / "shards"), read_index(shards).of_domains(["cat"]))
    output = error(*options(tmp_path / "set", tmp_path / "shards"), "--list")
    assert "has one domain, and a pair needs two" in output


# The set as one translator.


@pytest.fixture(scope="module")
def evaluated(pair_runs, tmp_path_factory):
    """A copy of the set that was evaluated, the results of its pairs' own runs, and the cache."""
    folder = tmp_path_factory.mktemp("evaluated") / "set"
    shutil.copytree(pair_runs, folder)
    runs = [folder, *(folder / pair for pair in PAIRS)]
    return folder, [evaluate(run, folder.parent / "cache") for run in runs]


def evaluate(run, cache, *extra, code=0):
    arguments = ("--run", run, "--protocol", "demo", "--cache", cache, "--json", *extra)
    printed = here("evaluate", *arguments, code=code)
    assert code == 0, printed.stderr
    return json.loads(printed.stdout)[0]


def values(result, metric, guide):
    """Return the values of a metric by source and target."""
    rows = [row for row in result["rows"] if row["guide"] == guide and metric in row]
    return {(row["source"], row["target"]): row[metric] for row in rows}


METRICS = ["demo_fid", "demo_kid", "demo_lpips"]


@pytest.mark.parametrize("metric", METRICS)
def test_the_table_of_a_set_is_that_of_its_pairs(evaluated, metric):
    """CycleGAN has no latents, so each pair's own run has the same outputs."""
    _, (set_result, *pair_results) = evaluated
    by_direction = {}
    for result in pair_results:
        by_direction |= values(result, metric, "latent")
    assert by_direction.keys() == set(permutations(SPECIES, 2))
    assert values(set_result, metric, "latent") == pytest.approx(by_direction, rel=1e-9)
    mean = np.mean([*by_direction.values()])
    assert set_result["means"][f"{metric}_latent"] == pytest.approx(mean, rel=1e-9)


def test_the_bound_of_a_set_is_the_mean_over_its_domains(evaluated):
    _, (set_result, *pair_results) = evaluated
    by_domain = {}
    for result in pair_results:
        by_domain |= values(result, "demo_fid", "real")
    assert len(by_domain) == 3
    expected = np.mean([*by_domain.values()])
    assert set_result["means"]["demo_fid_real"] == pytest.approx(expected, rel=1e-9)
    assert set_result["score"] == set_result["means"]["demo_fid_latent"]


def test_an_evaluated_set_is_reported_and_not_measured_again(evaluated, shards):
    folder, (set_result, *_) = evaluated
    assert states(folder, shards) == ["evaluated"] * 3
    arguments = (
        "--run",
        folder,
        "--protocol",
        "demo",
        "--cache",
        folder.parent / "cache",
        "--json",
    )
    again = here("evaluate", *arguments)
    assert json.loads(again.stdout) == [set_result]
    assert "sources" not in again.stderr


def test_a_set_is_compared_with_a_run_of_all_domains(evaluated, finished_run, tmp_path):
    folder, (set_result, *_) = evaluated
    shutil.copytree(finished_run, tmp_path / "f")
    evaluate(tmp_path / "f", folder.parent / "cache")
    groups = json.loads(here("evaluate", "--compare", folder, tmp_path / "f", "--json").stdout)
    assert len(groups) == 1
    assert [row["run"] for row in groups[0]["rows"]] == [str(folder), str(tmp_path / "f")]
    assert (
        groups[0]["rows"][0]["means"]["demo_fid_latent"][0]
        == set_result["means"]["demo_fid_latent"]
    )
    assert groups[0]["domains"] == SPECIES


def test_pairs_that_were_trained_differently_are_no_set(evaluated, shards, tmp_path):
    folder, _ = evaluated
    shutil.copytree(folder, tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "dog-rabbit")
    here("pairs", "--index", 2, *options(tmp_path / "set", shards, "--seed", 1))
    output = here("evaluate", "--run", tmp_path / "set", "--protocol", "demo", code=2).stderr
    assert "dog-rabbit was not trained as" in output and "(seed was 0, is 1)" in output


def test_pairs_of_a_recipe_with_styles_are_measured_by_latents_and_references(
    evaluated, shards, tmp_path, monkeypatch
):
    """Of the first pair, a set draws what the pair's own run draws: its domains have the numbers 0
    and 1 in both."""
    folder, cache = tmp_path / "set", evaluated[0].parent / "cache"
    recipe = ("--recipe", "f", "--steps", 1)
    for number in range(3):
        here("pairs", "--index", number, *options(folder, shards, *recipe))
    encode, encoded = Collector.reference_conditioning, []

    def record(self, model, label, images):
        encoded.append((model.domains[label], images.name))
        return encode(self, model, label, images)

    monkeypatch.setattr(Collector, "reference_conditioning", record)
    set_result = evaluate(folder, cache)
    assert encoded == [(name, name) for name in SPECIES for _ in range(2)]  # by each of its pairs
    of_pair = evaluate(folder / "cat-dog", cache)
    for guide in ("latent", "reference"):
        measured = values(set_result, "demo_fid", guide)
        assert measured.keys() == set(permutations(SPECIES, 2))
        expected = values(of_pair, "demo_fid", guide)
        assert {names: measured[names] for names in expected} == pytest.approx(expected, rel=1e-9)
    assert states(folder, shards, *recipe) == ["evaluated"] * 3


def test_labels_of_a_set_are_not_measured(evaluated):
    folder, _ = evaluated
    arguments = ("--run", folder, "--protocol", "demo", "--cache", folder.parent / "cache")
    assert (
        "a set of pairs is measured between"
        in here("evaluate", *arguments, "--labels", code=2).stderr
    )
