"""The one writer of a run: fencing numbers, on a local disk and in an object store."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import torch

from stargan_dist import storage
from stargan_dist.errors import UserError
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.runs import owner as owners
from stargan_dist.runs.checkpoint import CheckpointState

METADATA = {"config": {}, "domains": ["a", "b"], "data": "abc"}


@pytest.fixture(params=["local", "s3"])
def run(request, tmp_path):
    if request.param == "local":
        return str(tmp_path)
    return f"{request.getfixturevalue('s3')}/run"


def save(run, step, owner):
    state = CheckpointState({"G.w": torch.tensor([step])}, {}, {}, {})
    checkpoints.save(run, step, state, METADATA | {"fence": owner.fence}, owner.check)


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def own(stack, monkeypatch):
    """A function that owns a run until the end of the test, also where another owner has a lock."""
    monkeypatch.setattr(storage, "exclusive_lock", lambda *_: ExitStack())
    return lambda run: stack.enter_context(owners.own(run, "in use"))


def test_a_later_owner_takes_over_and_the_former_one_publishes_nothing(run, own):
    former = own(run)
    save(run, 2, former)
    later = own(run)
    save(run, 2, later)
    with pytest.raises(UserError, match=r'taken over by another training \({"fence": 2, "host": '):
        save(run, 4, former)
    assert storage.list_names(f"{run}/checkpoints") == ["latest", "step_00000002"]
    save(run, 4, later)
    found = checkpoints.find(run)
    assert (found.step, found.manifest.fence) == (4, 2)


@pytest.mark.parametrize("before", range(1, 5))
def test_a_run_that_is_taken_over_during_an_upload_is_not_published(s3, own, before, monkeypatch):
    """Whichever of the four files is the next to upload."""
    run, calls = f"{s3}/run", []
    former = own(run)

    def check():
        calls.append(None)
        if len(calls) == 1 + before:  # the first call precedes the upload
            own(run)
        former.check()

    state = CheckpointState({"G.w": torch.zeros(1)}, {}, {}, {})
    with pytest.raises(UserError, match="taken over"):
        checkpoints.save(run, 2, state, METADATA, check)
    assert checkpoints.list_steps(run) == []


def test_trainings_that_start_at_once_have_different_numbers(run, own):
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda _: own(run), range(8)))
    assert sorted(claim.fence for claim in claims) == list(range(1, 9))
    valid = [claim for claim in claims if not lost(claim)]
    assert [claim.fence for claim in valid] == [8]


def lost(owner):
    try:
        owner.check()
    except UserError:
        return True
    return False


def test_a_store_that_ignores_the_condition_still_has_one_owner(tmp_path, own, monkeypatch):
    """Two trainings write the same number: the one whose file remains owns the run."""
    first = own(str(tmp_path))
    second = owners.Owner(str(tmp_path), 1, b"another claim of the same number")
    storage.write_bytes(f"{tmp_path}/owners/00000001.json", second.data)
    assert lost(first)
    assert not lost(second)


def test_a_lock_precedes_the_claim(tmp_path):
    with (
        storage.exclusive_lock(str(tmp_path), ""),
        pytest.raises(UserError, match="in use"),
        owners.own(str(tmp_path), "in use"),
    ):
        pass
    assert not (tmp_path / "owners").exists()
