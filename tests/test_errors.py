"""Exit codes and one-line errors of the commands."""

import errno
import os
import pickle
import subprocess
import sys

import pytest

from stargan_dist import storage
from stargan_dist.config import StorageConfig
from stargan_dist.data.index import read_index
from stargan_dist.errors import (
    OUTSIDE_FAULT,
    USER_ERROR,
    OutsideFault,
    PermanentError,
    RankError,
    UserError,
    WorldError,
    as_user_error,
    explained,
    run_command,
)


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        (ConnectionRefusedError(111, "refused"), OUTSIDE_FAULT),
        (TimeoutError("no answer"), OUTSIDE_FAULT),
        (OSError(errno.ENOSPC, "full"), OUTSIDE_FAULT),
        (OSError(errno.EIO, "fault"), OUTSIDE_FAULT),
        (OutsideFault("away"), OUTSIDE_FAULT),
        (WorldError("away", OUTSIDE_FAULT), OUTSIDE_FAULT),
        (FileNotFoundError("x"), USER_ERROR),
        (PermissionError("x"), USER_ERROR),
        (OSError(errno.ENAMETOOLONG, "long"), USER_ERROR),
        (PermanentError("its hash differs"), USER_ERROR),
        (UserError("x"), USER_ERROR),
        (ValueError("x"), USER_ERROR),
    ],
)
def test_the_exit_code_tells_faults_of_the_outside_from_mistakes(cause, code):
    error = explained("message", cause)
    assert (str(error), error.exit_code) == ("message", code)
    assert isinstance(error, OutsideFault) == (code == OUTSIDE_FAULT)
    assert pickle.loads(pickle.dumps(error)).exit_code == code


def test_an_error_of_the_program_is_not_explained():
    for error in (KeyError("x"), RuntimeError("x"), BrokenPipeError()):
        assert as_user_error(error) is error


def ended(main, capsys):
    with pytest.raises(SystemExit) as caught:
        run_command(main)
    return caught.value.code, capsys.readouterr().err


def test_a_hidden_exit_code_is_explained_once_by_the_rank_that_reports(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command"])

    def fail(error):
        raise error

    def lines(main, rank="0", hides=True):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit):
            run_command(main, lambda: hides)
        return capsys.readouterr().err.splitlines()

    stopped = "exit code 75: stopped with the state saved; the same command resumes"
    assert lines(lambda: 75) == [stopped]
    assert lines(lambda: 75, rank="1") == lines(lambda: 75, hides=False) == []
    assert lines(lambda: 0) == lines(lambda: 1) == []
    outside = "exit code 74: a fault of storage or the machine; the same command may succeed"
    assert lines(lambda: fail(OutsideFault("away"))) == ["error: away", outside]
    user_error = ["error (rank 1): x", "exit code 2: correct what is reported above"]
    assert lines(lambda: fail(RankError("x")), rank="1") == user_error
    assert lines(lambda: fail(WorldError("x")), rank="1") == []  # rank 0 reports it
    assert lines(lambda: fail(RankError("")), rank="0") == []  # already reported


def test_a_storage_fault_without_a_message_of_its_own_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command"])

    def fail():
        raise OSError(errno.EIO, "Input/output error", "/a\nb")

    code, err = ended(fail, capsys)
    assert (code, len(err.splitlines())) == (OUTSIDE_FAULT, 1)
    assert "Input/output error" in err


def test_an_argument_that_is_not_utf8_is_rejected(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command", "a\udcff"])
    assert ended(lambda: 0, capsys) == (
        USER_ERROR,
        "error: the argument 'a\\udcff' is not UTF-8: rename the file\n",
    )


def test_a_terminal_of_ascii_ends_no_command():
    """Such as an arrow in the table of an evaluation."""
    program = (
        "import logging; from stargan_dist.console.logs import setup_logging\n"
        "from stargan_dist.errors import run_command\n"
        "def main():\n"
        "    setup_logging()\n"
        "    logging.getLogger('stargan_dist').info('cat \\u2192 dog')\n"
        "    print('cat \\u2192 dog')\n"
        "run_command(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("cat \\u2192 dog") == 2


def test_a_server_that_is_away_has_the_exit_code_of_the_outside():
    storage.configure(StorageConfig(tries=2, wait_seconds=0.0))
    with pytest.raises(UserError, match=r"cannot read http.*index\.json") as caught:
        read_index("http://127.0.0.1:9/set")
    assert caught.value.exit_code == OUTSIDE_FAULT
