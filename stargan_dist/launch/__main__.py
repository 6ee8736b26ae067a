"""Start ranks as `accelerate launch` does, and exit with the exit code of the training.

    python -m stargan_dist.launch --config_file launchers/cpu.yaml -m stargan_dist.train …

The arguments are those of `accelerate launch`, which parses them and starts the ranks in this
process. It differs in three ways: exit codes survive, the launcher's own errors are one line each,
and a signal is passed on to the ranks, which then have the time that they need to save. (A torchrun
without the option --signals-to-handle still handles signals itself: the exit code is then 128 + N,
and the ranks act as under `accelerate launch`.)
"""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from accelerate.commands.config import load_config_from_file
from accelerate.commands.config.config_args import default_config_file
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from stargan_dist.errors import UserError, print_meaning, printable, run_command
from stargan_dist.launch.node_agent import exit_code, shell_code, signal_ranks

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
MAX_ERROR = 1000  # characters
HANDLED_BY_TORCHRUN = "SIGQUIT"  # it requires at least one


def launch(arguments: Sequence[str]) -> int:
    """Start the ranks, wait for them, and return their exit code in the convention of a shell.

    Raises:
        UserError: the arguments or a configuration file of Accelerate are wrong.
    """
    args = launch_command_parser().parse_args(arguments)
    _check_file(args.config_file)
    args.signals_to_handle = HANDLED_BY_TORCHRUN  # an option of torchrun
    args.quiet = False  # it would turn the exit code of a single process into 1
    try:
        launch_command(args)
    except ChildFailedError as error:
        return exit_code(error)
    except subprocess.CalledProcessError as error:  # a launcher of a single process
        return shell_code(error.returncode)
    except SignalException as error:  # of a torchrun without that option
        return 128 + error.sigval
    except (ValueError, ImportError, RuntimeError) as error:
        raise _explained(error) from error
    except Exception as error:  # of other types: it does not check whether an argument is missing
        raise _explained(error, f"{type(error).__name__} (see --help): ") from error
    return 0


def _check_file(file: str | None) -> None:
    """Raise a UserError if Accelerate cannot read its configuration file."""
    if not file and not Path(default_config_file).is_file():
        return
    try:
        load_config_from_file(file)
    except Exception as error:  # of any type: it reads keys of what may be no mapping
        raise _explained(error, f"{file or default_config_file}: ") from error


def _explained(error: Exception, where: str = "") -> UserError:
    message = " ".join(str(error).split()) or type(error).__name__
    return UserError(printable(f"accelerate launch: {where}{message}", MAX_ERROR))


def _forward(number: int, _frame: FrameType | None) -> None:
    signal_ranks(signal.Signals(number))


def main() -> int:
    for number in FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:  # under nohup
            signal.signal(number, _forward)
    code = launch(sys.argv[1:])
    print_meaning(code)
    return code


if __name__ == "__main__":
    run_command(main)
