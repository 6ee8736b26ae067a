"""Simulated machines: namespaces of this machine's kernel, each with a host name and an interface.

A site is a namespace with a bridge that connects its machines. All machines share this machine's
files. Sites are isolated from each other and from this machine: any number of them may exist at the
same time. A site ends when its first process ends, whose standard input is a pipe from the tests.
Therefore no machine outlives the tests, however they end.
"""

import functools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

HEAD = "head"
NETWORK = "10.77.0"
PROGRAMS = {"unshare": "util-linux", "nsenter": "util-linux", "ip": "iproute2"}
REAP_SECONDS = 5
# --kill-child: the end of the first process ends its namespace and all nested namespaces.
UNSHARE = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child"]

# The first process of a machine. $1: name; $2: hosts file. It prints its process id in the outer
# namespace, read from the outer /proc, and lives until its standard input ends. It ignores SIGCHLD,
# so that the kernel reaps orphaned processes.
BOOT = """
read -r pid rest </proc/self/stat
mount -t proc proc /proc
mount --bind "$2" /etc/hosts
echo "$1" >/proc/sys/kernel/hostname
ip link set lo up
echo "$pid"
exec env --ignore-signal=CHLD cat >/dev/null
"""
# In the site. $1: address of the site.
BRIDGE = """
ip link add name bridge type bridge forward_delay 0
ip address add "$1/24" dev bridge
ip link set bridge up
"""
# In the network namespace of the site and no other of its namespaces: connect the bridge to eth0 of
# a machine. $1: name of the machine, and of the interface at the bridge; $2: process id of the
# machine's first process, outside its namespace.
CABLE = """
ip link add name "$1" type veth peer name eth0 netns "$2"
ip link set "$1" master bridge up
"""
# On a machine. $1: IP address; $2: hardware address.
INTERFACE = """
ip address add "$1/24" dev eth0
ip link set eth0 address "$2" up
"""


@functools.cache
def unavailable() -> str:
    """Return the reason why machines cannot be simulated here; "" if they can."""
    if os.geteuid() != 0:
        return "simulated machines require root"
    for program, package in PROGRAMS.items():
        if not shutil.which(program):
            return f"no program {program}: apt-get install {package}"
    trial = "mount -t proc proc /proc; ip link add name x type bridge; ip link add name y type veth"
    command = [*UNSHARE, *script(trial)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return f"cannot create namespaces: {done.stderr.strip()}" if done.returncode else ""


def script(lines: str, *words: object) -> list[str]:
    """Return a command that runs lines of sh up to the first failure, with `words` as $1, $2, …"""
    return ["sh", "-ec", lines, "sh", *map(str, words)]


class Machine:
    """The first process of a machine."""

    def __init__(self, name: str, hosts: Path, *prefix: str) -> None:
        boot = [*prefix, *UNSHARE, *script(BOOT, name, hosts)]
        # In its own session: Ctrl-C reaches only the tests, which then clean up.
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen(boot, text=True, start_new_session=True, **pipes)
        answer = self.process.stdout.readline()
        assert answer, f"{name}: {self.process.communicate()[1]}"
        self.pid = int(answer)

    def end(self) -> None:
        """Kill all processes of the machine and wait until they have ended."""
        if self.process.poll() is None:  # otherwise it ended with the site
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        # A namespace ends when all its processes are reaped. Commands that the tests killed leave
        # orphans to the init process of this machine, which reaps none in some containers.
        with suppress(subprocess.TimeoutExpired):
            self.process.communicate(timeout=REAP_SECONDS)


class Machines:
    """Context manager: simulated machines that run until the context ends.

    Args:
        names: names of the machines. "head" is the site, which is reached like a machine.
        hosts: function (name, default lines) -> lines of the /etc/hosts of a machine.
    """

    def __init__(
        self, names: Sequence[str], hosts: Callable[[str, str], str] = lambda name, default: default
    ) -> None:
        assert not unavailable(), unavailable()
        self.names, self.hosts = list(names), hosts
        self.addresses = {HEAD: f"{NETWORK}.1"}
        self.addresses |= {name: f"{NETWORK}.{11 + i}" for i, name in enumerate(names)}
        self.up: dict[str, Machine] = {}  # includes the head

    def __enter__(self) -> "Machines":
        self._folder = tempfile.TemporaryDirectory(prefix="machines-")
        try:
            self._start_site()
            for name in self.names:
                self.start(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        # The site first: the machines are nested in it and end with it.
        while self.up:
            self.up.pop(next(iter(self.up))).end()
        self._folder.cleanup()

    def _start_site(self) -> None:
        self.up[HEAD] = Machine(HEAD, self._hosts_file(HEAD))
        self.run(HEAD, *script(BRIDGE, self.addresses[HEAD]))

    def start(self, name: str) -> None:
        """Start a machine. A restarted one has the same name, IP address and hardware address."""
        site = ["nsenter", "--target", str(self.pid(HEAD))]
        machine = Machine(name, self._hosts_file(name), *site, "--pid")
        self.up[name] = machine
        subprocess.run([*site, "--net", *script(CABLE, name, machine.pid)], check=True)
        hardware_address = f"02:00:00:00:00:{11 + self.names.index(name):02x}"
        self.run(name, *script(INTERFACE, self.addresses[name], hardware_address))

    def kill(self, name: str) -> None:
        """Simulate a power failure: peers receive nothing more, not even closed connections."""
        self.run(HEAD, "ip", "link", "delete", name)
        self.up.pop(name).end()

    def pid(self, name: str) -> int:
        """Return the process id of a machine's first process, in the namespace of the tests."""
        return self.up[name].pid

    def command(self, name: str, cwd: Path | str | None = None) -> list[str]:
        """Return the prefix of a command that runs on a machine, in the current folder or `cwd`.

        nsenter forwards no signals. When it is killed, by any signal, the command is killed, too.
        """
        enter = ["nsenter", "--target", str(self.pid(name)), "--net", "--mount", "--uts", "--pid"]
        # Entering a mount namespace changes the current folder to its root.
        chdir = ["env", f"--chdir={cwd or Path.cwd()}"]
        return [*enter, "setpriv", "--pdeathsig", "KILL", "--", *chdir]

    def run(self, name, *command, cwd=None, code=0, timeout=240, **options):
        """Run a command on a machine to its end and check the exit code, unless `code` is None."""
        words = [*self.command(name, cwd), *map(str, command)]
        options |= {"capture_output": True, "text": True, "timeout": timeout}
        done = subprocess.run(words, check=False, **options)
        assert code in (None, done.returncode), f"{name}: {command}\n{done.stdout}{done.stderr}"
        return done

    def _hosts_file(self, name: str) -> Path:
        lines = [f"{address} {other}" for other, address in self.addresses.items()]
        default = "\n".join(["127.0.0.1 localhost", *lines]) + "\n"
        file = Path(self._folder.name) / f"hosts.{name}"
        file.write_text(self.hosts(name, default))
        return file
