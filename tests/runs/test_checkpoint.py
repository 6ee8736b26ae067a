import json
import resource

import pytest
import torch

from stargan_dist import storage
from stargan_dist.data.labels import Labels, LabelSpace, domain_labels
from stargan_dist.errors import UserError
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.runs import scores
from stargan_dist.runs.checkpoint import CheckpointState


def make_state(seed):
    torch.manual_seed(seed)
    networks = {"G.weight": torch.randn(3, 2), "D.weight": torch.randn(2)}
    moments = {"G.weight:exp_avg": torch.randn(3, 2), "G.step": torch.tensor(7.0)}
    ema = {"G.weight": torch.randn(3, 2)}
    return CheckpointState(networks, ema, moments, {"D": [2.0**15, 3.0 + seed]})


METADATA = {"config": {"seed": 1}, "domains": ["a", "b"], "data": "abc"}


@pytest.fixture(params=["local", "memory"])
def run(request, tmp_path):
    if request.param == "local":
        yield str(tmp_path / "run")
    else:
        yield "memory://run"
        if storage.exists("memory://run"):
            storage.remove_folder("memory://run")


def test_a_checkpoint_restores_state_and_metadata(run):
    saved, different = make_state(0), make_state(1)
    checkpoints.save(run, 5, saved, METADATA)
    found = checkpoints.find(run)
    manifest = found.manifest
    metadata = {"config": manifest.config, "domains": manifest.domains, "data": manifest.data}
    assert (found.step, metadata) == (5, METADATA)
    torch.testing.assert_close(vars(found.state()), vars(saved), rtol=0, atol=0)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(vars(different), vars(saved), rtol=0, atol=0)


def test_labels_are_restored_and_default_to_the_domains(run):
    checkpoints.save(run, 1, make_state(0), METADATA)
    assert checkpoints.find(run).manifest.labels == domain_labels(["a", "b"])
    labels = Labels(
        (LabelSpace("s", ("x", "y"), binary=True), LabelSpace("t", ("z", "w"), key="kind"))
    )
    checkpoints.save(run, 2, make_state(0), METADATA | {"labels": labels.to_dict()})
    assert checkpoints.find(run).manifest.labels == labels


def test_find_selects_a_step_or_the_latest(run):
    assert checkpoints.find(run) is None
    for step in (1, 2, 3):
        checkpoints.save(run, step, make_state(step), METADATA)
    assert checkpoints.find(run).step == 3
    assert checkpoints.find(run, "2").step == checkpoints.find(run, "step_00000002").step == 2
    for missing in ("9", "first"):
        with pytest.raises(UserError, match=r"no checkpoint .*\[1, 2, 3\]"):
            checkpoints.find(run, missing)
    storage.remove_file(storage.join(run, "checkpoints", "latest"))
    assert checkpoints.find(run).step == 3


def point_latest(run, data):
    storage.write_bytes(storage.join(run, "checkpoints", "latest"), data)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A run with checkpoints at steps 2 and 4."""
    run = str(tmp_path_factory.mktemp("two") / "run")
    for step in (2, 4):
        checkpoints.save(run, step, make_state(step), METADATA)
    return run


@pytest.mark.parametrize(
    "data",
    [b"step_00000002\n", b"2", b"step_2", b"step_00000002/\n", b"\xef\xbb\xbfstep_00000002\r\n"],
)
def test_latest_may_be_written_by_hand(two_steps, data):
    point_latest(two_steps, data)
    assert checkpoints.find(two_steps).step == 2


@pytest.mark.parametrize(
    "data", [b"", b"9", b"step_00000009", b"-2", b"2 4", b"\xff\xfe", b"9" * 5000, b"../2"]
)
def test_latest_that_names_no_checkpoint_is_rejected(two_steps, data):
    """Silently resuming from the newest step would let retention remove the one that was meant."""
    point_latest(two_steps, data)
    with pytest.raises(UserError, match=r"latest says .* write one of the steps \[2, 4\] into it"):
        checkpoints.find(two_steps)


def test_a_folder_without_a_manifest_is_not_a_checkpoint(run):
    for step in (1, 2):
        checkpoints.save(run, step, make_state(step), METADATA)
    storage.remove_file(storage.join(checkpoints.find(run, "2").url, "manifest.json"))
    storage.remove_file(storage.join(run, "checkpoints", "latest"))
    assert checkpoints.list_steps(run) == [1]
    assert checkpoints.find(run).step == 1


@pytest.mark.parametrize(
    "name", ["networks.safetensors", "ema.safetensors", "optimizers.safetensors"]
)
def test_a_damaged_file_is_reported_with_a_remedy(run, name):
    checkpoints.save(run, 5, make_state(0), METADATA)
    url = storage.join(run, "checkpoints", "step_00000005", name)
    data = bytearray(storage.read_bytes(url))
    data[len(data) // 2] ^= 1
    storage.write_bytes(url, bytes(data))
    with pytest.raises(
        UserError, match=f"{name} is damaged.*write its step into .*/checkpoints/latest"
    ):
        checkpoints.find(run).state()


def test_a_checkpoint_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match="cannot save the checkpoint"):
        checkpoints.save(str(tmp_path / "run"), 5, make_state(0), METADATA)


def test_a_full_disk_is_an_error_and_leaves_no_checkpoint(tmp_path):
    """A limit on the size of files fails a write as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot save the checkpoint"):
            checkpoints.save(str(tmp_path / "run"), 5, make_state(0), METADATA)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints.find(str(tmp_path / "run")) is None


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "best", "removed"),
    [
        (2, 0, [], [1, 2, 3, 4]),
        (1, 3, [], [1, 2, 4, 5]),
        (1, 0, [2], [1, 3, 4, 5]),
        (9, 0, [], []),
    ],
)
def test_retention_keeps_the_newest_the_multiples_and_the_best(
    keep_last, keep_every, best, removed
):
    superseded = checkpoints.superseded_steps(
        [1, 2, 3, 4, 5, 6], keep_last=keep_last, keep_every=keep_every, best=best
    )
    assert superseded == removed


def write_evaluation(run, step, score, name="{}_seed_0.json", **fields):
    result = dict.fromkeys(scores.COMPARISON_FIELDS, "same")
    result |= {"protocol": "paper", "seed": 0, **fields, "step": step, "score": score}
    file = name.format(checkpoints.step_name(step))
    storage.write_bytes(storage.join(run, "evaluation", "paper", file), json.dumps(result).encode())


def test_best_steps_compares_complete_evaluations_of_each_group(run):
    """Incomplete evaluations, other seeds, other protocols and steps outside the given ones do not
    count. Results that are not comparable form groups; the largest group comes first."""
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


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b"\xff"])
def test_a_damaged_evaluation_is_ignored(run, content):
    write_evaluation(run, 1, 5.0)
    url = storage.join(run, "evaluation", "paper", "step_00000002_seed_0.json")
    storage.write_bytes(url, content)
    assert scores.best_steps(run, range(9), "paper") == [1]


def test_retention_keeps_the_best_evaluated_checkpoint(run):
    for step in (1, 2, 3):
        checkpoints.save(run, step, make_state(step), METADATA)
        write_evaluation(run, step, [2.0, 1.0, 3.0][step - 1])
    checkpoints.apply_retention(run, 3, "paper", keep_last=1, keep_every=0)
    assert checkpoints.list_steps(run) == [2, 3]
    assert checkpoints.find(run, "best").step == 2


def test_a_run_that_was_set_back_keeps_its_new_checkpoint(run):
    for step in (2, 4, 6, 4):
        checkpoints.save(run, step, make_state(step), METADATA)
    checkpoints.apply_retention(run, 4, "paper", keep_last=1, keep_every=0)
    assert checkpoints.find(run).step == 4


def test_a_checkpoint_that_cannot_be_removed_is_tried_again(tmp_path, monkeypatch, caplog):
    """As on network filesystems, which keep the files that another process has open."""
    run, remove_folder = str(tmp_path / "run"), storage.remove_folder

    def busy(url, first=""):
        storage.remove_file(storage.join(url, first))
        raise OSError(16, "Device or resource busy")

    for step in (1, 2):
        checkpoints.save(run, step, make_state(step), METADATA)
    monkeypatch.setattr(storage, "remove_folder", busy)
    checkpoints.apply_retention(run, 2, "paper", keep_last=1, keep_every=0)
    (message,) = caplog.messages
    assert "cannot remove the old checkpoint" in message
    assert "step_00000001 yet" in message
    monkeypatch.setattr(storage, "remove_folder", remove_folder)
    checkpoints.apply_retention(run, 2, "paper", keep_last=1, keep_every=0)
    assert storage.list_names(storage.join(run, "checkpoints")) == ["latest", "step_00000002"]
