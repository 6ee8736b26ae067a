"""The Slurm cluster that other tests rely on."""

import pytest


def test_a_job_runs_two_tasks_on_two_nodes(cluster, tmp_path):
    words = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--output=out.%j"]
    job = cluster.sbatch(*words, "--wrap", "srun hostname", cwd=tmp_path)
    record = cluster.wait(job, "COMPLETED")
    assert record["NodeList"] == "node[1-2]"
    assert sorted(cluster.log(job).split()) == ["node1", "node2"]
    assert (tmp_path / f"out.{job}").is_file()


def test_jobs_receive_only_the_given_environment(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "7")
    wrap = "echo $GREETING ${WORLD_SIZE-none} $SLURM_GPUS_ON_NODE ${CUDA_VISIBLE_DEVICES:-none}"
    words = ["--gpus-per-node=4", "--wrap", wrap]
    job = cluster.sbatch(*words, cwd=tmp_path, env={"GREETING": "this"})
    cluster.wait(job, "COMPLETED")
    assert cluster.log(job).split() == ["this", "none", "4", "none"]


def test_an_unexpected_state_is_reported_with_record_and_log(cluster, tmp_path):
    job = cluster.sbatch("--wrap", "echo because; exit 3", cwd=tmp_path)
    with pytest.raises(AssertionError, match=r"(?s)ExitCode=3:0.*because"):
        cluster.wait(job, "COMPLETED")


def test_a_setting_is_removed_and_restored(cluster):
    def signals_are_configured():
        return "preempt_send_user_signal" in cluster.client("scontrol", "show", "config").stdout

    with cluster.without("SlurmctldParameters=preempt_send_user_signal"):
        assert not signals_are_configured()
    assert signals_are_configured()


@pytest.mark.slow
def test_a_killed_node_can_be_restarted(cluster, tmp_path):
    """Its job is restarted on the other node."""
    wrap = "hostname; [ $SLURM_RESTART_COUNT ] || sleep 300"
    job = cluster.sbatch("--requeue", "--wrap", wrap, cwd=tmp_path)
    dead = cluster.wait(job, "RUNNING")["NodeList"]
    cluster.machines.kill(dead)
    try:
        assert cluster.wait(job, "COMPLETED")["Restarts"] == "1"
    finally:
        cluster.start(dead)
    assert sorted(cluster.log(job).split()) == ["node1", "node2"]
    both = cluster.sbatch("--nodes=2", "--wrap", "srun true", cwd=tmp_path)
    cluster.wait(both, "COMPLETED")
