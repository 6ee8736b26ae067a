import json
import resource

import pytest
import torch

from stargan_dist import storage
from stargan_dist.data.labels import Labels, LabelSpace, domain_labels
from stargan_dist.errors import UserError
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.runs import scores
from stargan_dist.runs.checkpoint import State


def make_state(seed):
    torch.manual_seed(seed)
    networks = {"G.weight": torch.randn(3, 2), "D.weight": torch.randn(2)}
    moments = {"G.weight:exp_avg": torch.randn(3, 2), "G.step": torch.tensor(7.0)}
    return State(networks, {"G.weight": torch.randn(3, 2)}, moments, {"D": [2.0**15, 3.0 + seed]})


FACTS = {"config": {"seed": 1}, "domains": ["a", "b"], "data": "abc"}


@pytest.fixture(params=["local", "memory"])
def run(request, tmp_path):
    if request.param == "local":
        yield str(tmp_path / "run")
    else:
        yield "memory://run"
        if storage.exists("memory://run"):
            storage.remove_folder("memory://run")


def test_everything_comes_back(run):
    saved, other = make_state(0), make_state(1)
    checkpoints.save(run, 5, saved, FACTS)
    found = checkpoints.find(run)
    facts = {"config": found.config, "domains": found.domains, "data": found.data}
    assert (found.step, facts) == (5, FACTS)
    torch.testing.assert_close(vars(found.state()), vars(saved), rtol=0, atol=0)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(vars(other), vars(saved), rtol=0, atol=0)


def test_labels_come_back_and_are_the_domains_where_none_were_saved(run):
    checkpoints.save(run, 1, make_state(0), FACTS)
    assert checkpoints.find(run).labels == domain_labels(["a", "b"])
    labels = Labels(
        (LabelSpace("s", ("x", "y"), binary=True), LabelSpace("t", ("z", "w"), key="kind"))
    )
    checkpoints.save(run, 2, make_state(0), FACTS | {"labels": labels.to_dict()})
    assert checkpoints.find(run).labels == labels


def test_find(run):
    assert checkpoints.find(run) is None
    for step in (1, 2, 3):
        checkpoints.save(run, step, make_state(step), FACTS)
    assert checkpoints.find(run).step == 3
    assert checkpoints.find(run, "2").step == checkpoints.find(run, "step_00000002").step == 2
    for missing in ("9", "first"):
        with pytest.raises(UserError, match=r"no checkpoint .*\[1, 2, 3\]"):
            checkpoints.find(run, missing)
    storage.write_bytes(storage.join(run, "checkpoints", "latest"), b"step_00000002\n")
    assert checkpoints.find(run).step == 2
    storage.write_bytes(storage.join(run, "checkpoints", "latest"), b"step_00000009\n")
    assert checkpoints.find(run).step == 3


def test_a_folder_without_its_manifest_is_no_checkpoint(run):
    for step in (1, 2):
        checkpoints.save(run, step, make_state(step), FACTS)
    fs, path = storage.filesystem(checkpoints.find(run, "2").url)
    fs.rm_file(f"{path}/manifest.json")
    assert checkpoints.list_steps(run) == [1]
    assert checkpoints.find(run).step == 1


@pytest.mark.parametrize(
    "name", ["networks.safetensors", "ema.safetensors", "optimizers.safetensors"]
)
def test_damage_is_told_with_file_and_remedy(run, name):
    checkpoints.save(run, 5, make_state(0), FACTS)
    where = storage.join(run, "checkpoints", "step_00000005", name)
    data = bytearray(storage.read_bytes(where))
    data[len(data) // 2] ^= 1
    storage.write_bytes(where, bytes(data))
    with pytest.raises(UserError, match=f"{name} is damaged.*remove .*step_00000005"):
        checkpoints.find(run).state()


def test_a_checkpoint_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match="cannot save the checkpoint"):
        checkpoints.save(str(tmp_path / "run"), 5, make_state(0), FACTS)


def test_a_full_disk_is_told(tmp_path):
    """By a limit on the size of files, which fails a write as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot save the checkpoint"):
            checkpoints.save(str(tmp_path / "run"), 5, make_state(0), FACTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints.find(str(tmp_path / "run")) is None


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "best", "gone"),
    [
        (2, 0, [], [1, 2, 3, 4]),
        (1, 3, [], [1, 2, 4, 5]),
        (1, 0, [2], [1, 3, 4, 5]),
        (9, 0, [], []),
    ],
)
def test_retention(keep_last, keep_every, best, gone):
    steps = [1, 2, 3, 4, 5, 6]
    assert (
        checkpoints.superseded_steps(steps, keep_last=keep_last, keep_every=keep_every, best=best)
        == gone
    )


def write_evaluation(run, step, score, name="{}_seed_0.json", **facts):
    row = dict.fromkeys(scores.COMPARABLE, "same") | {"protocol": "paper", "seed": 0, **facts}
    row |= {"step": step, "score": score}
    file = name.format(checkpoints.step_name(step))
    storage.write_bytes(storage.join(run, "evaluation", "paper", file), json.dumps(row).encode())


def test_the_best_is_of_evaluations_that_compare(run):
    """Not unfinished ones, nor other seeds or protocols, nor of steps that are no more; one for
    each way of measuring, the most used ahead."""
    assert scores.best_steps(run, range(9), "paper") == []
    write_evaluation(run, 1, 5.0)
    write_evaluation(run, 2, 4.0)
    write_evaluation(run, 3, None)
    write_evaluation(run, 4, 1.0, name="{}_seed_1.json", seed=1)
    assert scores.best_steps(run, range(9), "paper") == [2]
    assert scores.best_steps(run, [1, 3], "paper") == [1]
    write_evaluation(run, 5, 1.0, precision="bfloat16")
    assert scores.best_steps(run, range(9), "paper") == [2, 5]
    assert scores.best_steps(run, range(9), "demo") == []


@pytest.mark.parametrize("damage", [b"{", b"[]", b"{}", b"\xff"])
def test_a_damaged_evaluation_is_no_evaluation(run, damage):
    write_evaluation(run, 1, 5.0)
    where = storage.join(run, "evaluation", "paper", "step_00000002_seed_0.json")
    storage.write_bytes(where, damage)
    assert scores.best_steps(run, range(9), "paper") == [1]


def test_retention_keeps_the_best_evaluated(run):
    for step in (1, 2, 3):
        checkpoints.save(run, step, make_state(step), FACTS)
        write_evaluation(run, step, [2.0, 1.0, 3.0][step - 1])
    checkpoints.apply_retention(run, 3, "paper", keep_last=1, keep_every=0)
    assert checkpoints.list_steps(run) == [2, 3]
    assert checkpoints.find(run, "best").step == 2


def test_a_run_that_was_set_back_keeps_what_it_saves(run):
    for step in (2, 4, 6, 4):
        checkpoints.save(run, step, make_state(step), FACTS)
    checkpoints.apply_retention(run, 4, "paper", keep_last=1, keep_every=0)
    assert checkpoints.find(run).step == 4
