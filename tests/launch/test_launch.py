"""`python -m stargan_dist.launch`: exit codes, signals, and errors of the launcher itself."""

import os
import signal
import subprocess
import sys
from unittest import mock

import pytest

from stargan_dist.errors import UserError
from stargan_dist.launch import __main__ as module
from tests.conftest import PATIENCE_SECONDS, ROOT, Trainer
from tests.distributed.test_resume import LONG, wait_for_line

COMMAND = [sys.executable, "-m", "stargan_dist.launch"]
WORLDS = {
    1: ("--num_processes", "1", "--num_machines", "1"),
    2: ("--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"),
}
DEFAULTS = ("--mixed_precision", "no", "--dynamo_backend", "no")
# A rank that saves and exits with 75: rank 0 at once, rank 1 a second later.
SAVES = """
import os, signal, sys, time
def stop(*_):
    time.sleep(int(os.environ.get("RANK", 0)))
    os.write(1, b"saved\\n")
    os._exit(75)
signal.signal(signal.SIGTERM, stop)
os.write(1, b"ready\\n")
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def restored():
    """Undo what torchrun changes in its process: the environment, and a handler of SIGQUIT."""
    handler = signal.getsignal(signal.SIGQUIT)
    with mock.patch.dict(os.environ):
        yield
    signal.signal(signal.SIGQUIT, handler)


@pytest.fixture
def rank(tmp_path):
    """Return a function that writes the program of a rank."""

    def write(program):
        (tmp_path / "rank.py").write_text(program)
        return str(tmp_path / "rank.py")

    return write


@pytest.mark.parametrize(
    ("processes", "end", "code"),
    [
        (1, "sys.exit(75)", 75),
        (1, "os.kill(os.getpid(), 9)", 137),
        (2, "sys.exit(2)", 2),
        pytest.param(1, "sys.exit(0)", 0, marks=pytest.mark.slow),
        pytest.param(2, "sys.exit(0)", 0, marks=pytest.mark.slow),
        pytest.param(2, "os.kill(os.getpid(), 9)", 137, marks=pytest.mark.slow),
        # Rank 0 is ended by torchrun: that hides that it had stopped, too.
        pytest.param(2, "time.sleep(600 * (1 - int(os.environ['RANK']))); sys.exit(75)", 75,
                     marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_the_exit_code_of_the_ranks_survives(rank, processes, end, code):
    program = rank(f"import os, sys, time\n{end}\n")
    assert module.launch([*WORLDS[processes], *DEFAULTS, "--quiet", program]) == code


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_signal_is_passed_on_to_the_ranks(rank, processes):
    process = subprocess.Popen(
        [*COMMAND, *WORLDS[processes], *DEFAULTS, rank(SAVES)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert [process.stdout.readline() for _ in range(processes)] == ["ready\n"] * processes
    process.terminate()
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 75, err
    assert "saved" in out
    assert err.splitlines()[-1] == (
        "exit code 75: stopped with the state saved; the same command resumes"
    )
    assert "Traceback" not in err


def test_without_ranks_a_signal_ends_the_launcher():
    """Such as one that comes while it imports or waits for other machines."""
    program = "import os, signal, sys; from stargan_dist.launch import __main__ as module; "
    program += "module.launch = lambda _: signal.raise_signal(signal.SIGTERM); module.main()"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, timeout=120)
    assert done.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("foo: 1\n", "distributed_type"),
        ("distributed_type: MULTI_GPU\nsparkle: 1\n", "sparkle"),
        ("text", "launch.yaml: "),
        ("a: [", "launch.yaml: "),
    ],
)
def test_a_file_that_accelerate_cannot_read_is_one_line(tmp_path, text, message):
    file = tmp_path / "launch.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=r"^accelerate launch: ") as caught:
        module.launch(["--config_file", str(file), "-m", "stargan_dist.train"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--multi_gpu", "--use_fsdp"), "You can only use one of"),
        (("--multi_gpu", "--num_processes", "1"), "at least 2 processes"),
        (("--multi_gpu", "--num_processes", "2", "--num_machines", "2"), "see --help"),
    ],
)
def test_contradictory_arguments_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        module.launch([*arguments, "-m", "stargan_dist.train"])


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_that_is_stopped_exits_with_75(shards, tmp_path, processes):
    command = [*COMMAND, *WORLDS[processes], *DEFAULTS, "-m", "stargan_dist.train"]
    process = subprocess.Popen(
        [*command, *Trainer(shards).options(tmp_path / "run"), *LONG], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ,
    )  # fmt: skip
    wait_for_line(process, "step 2/")
    process.terminate()
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 75, err
    assert "stopped by SIGTERM at step" in out
    assert err.count("exit code 75: ") == 1


@pytest.mark.slow
def test_a_mistake_exits_with_2_and_is_told_once(shards, tmp_path):
    command = [*COMMAND, *WORLDS[2], *DEFAULTS, "-m", "stargan_dist.train"]
    options = [*Trainer(shards).options(tmp_path / "run"), "--batch_size", "5"]
    done = subprocess.run(
        [*command, *options], cwd=ROOT, text=True, capture_output=True, check=False,
        timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith(("error", "exit code"))]
    assert [line.partition(":")[0] for line in lines] == ["error", "exit code 2"]
