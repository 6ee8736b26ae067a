"""The pretended cluster itself: other tests believe what it does."""

import pytest


def test_two_tasks_on_two_nodes(cluster, tmp_path):
    words = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--output=out.%j"]
    job = cluster.sbatch(*words, "--wrap", "srun hostname", cwd=tmp_path)
    record = cluster.wait(job, "COMPLETED")
    assert record["NodeList"] == "node[1-2]"
    assert sorted(cluster.log(job).split()) == ["node1", "node2"]
    assert (tmp_path / f"out.{job}").is_file()


def test_jobs_see_what_they_are_given(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "7")
    wrap = "echo $GIVEN ${WORLD_SIZE-none} $SLURM_GPUS_ON_NODE ${CUDA_VISIBLE_DEVICES:-none}"
    words = ["--gpus-per-node=4", "--wrap", wrap]
    job = cluster.sbatch(*words, cwd=tmp_path, env={"GIVEN": "this"})
    cluster.wait(job, "COMPLETED")
    assert cluster.log(job).split() == ["this", "none", "4", "none"]


def test_a_failure_is_told(cluster, tmp_path):
    job = cluster.sbatch("--wrap", "echo because; exit 3", cwd=tmp_path)
    with pytest.raises(AssertionError, match=r"(?s)ExitCode=3:0.*because"):
        cluster.wait(job, "COMPLETED")


@pytest.mark.slow
def test_a_node_dies_and_comes_back(cluster, tmp_path):
    """Its job is requeued, begins again on the other one, and the node serves anew."""
    wrap = "hostname; [ $SLURM_RESTART_COUNT ] || sleep 300"
    job = cluster.sbatch("--requeue", "--nodelist=node1", "--wrap", wrap, cwd=tmp_path)
    cluster.wait(job, "RUNNING")
    cluster.machines.kill("node1")
    try:
        cluster.wait(job, "PENDING", seconds=60)
    finally:
        cluster.start("node1")
    cluster.wait(job, "COMPLETED")
    assert cluster.job(job)["Restarts"] == "1"
    assert cluster.log(job).split() == ["node1", "node1"]
