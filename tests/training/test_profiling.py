"""A profile of some iterations of a run."""

import gzip
import json

from tests.helpers.runs import assert_same_bits

OPTIONS = ("--monitor.profile", "2", "--steps", "6")


def test_a_profile_is_written_and_changes_nothing(train, tmp_path, finished_run):
    done = train.here(tmp_path / "run", *OPTIONS)
    [trace] = (tmp_path / "run" / "profile").iterdir()
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = {e["name"] for e in events if str(e.get("name")).startswith("ProfilerStep#")}
    assert steps == {"ProfilerStep#3", "ProfilerStep#4"}
    assert "aten::convolution_backward" in {event.get("name") for event in events}
    assert "profile of 2 iterations" in done.stdout
    assert "Self CPU %" in done.stdout
    assert_same_bits(tmp_path / "run", finished_run)


def test_a_profile_that_cannot_be_written_ends_nothing(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "profile").write_text("a file")
    done = train.here(tmp_path / "run", *OPTIONS)
    assert "training continues" in done.stdout + done.stderr
    assert "finished at step 6" in done.stdout
