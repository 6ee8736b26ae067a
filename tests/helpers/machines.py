"""Pretended machines: namespaces of this one's kernel, each with a name and a network card.

A site holds a bridge, and the machines are connected to it. All share this machine's files.
Sites know nothing of each other, and nothing of a site is seen outside it: any number of them may
be there at once. A site ends when its first process does, whose standard input is a pipe from
here: whatever becomes of the tests, no machine outlives them.
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
BURIAL_SECONDS = 5
# --kill-child: with the first process goes the namespace, and with a namespace those below it.
UNSHARE = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child"]

# The first process of a machine: $1 its name, $2 its file of hosts. It tells its process id as
# seen from here, which the old /proc knows. It lives until its standard input ends; children that
# lost their parents need no burying where the signal of their death is ignored.
BOOT = """
read -r pid rest </proc/self/stat
mount -t proc proc /proc
mount --bind "$2" /etc/hosts
echo "$1" >/proc/sys/kernel/hostname
ip link set lo up
echo "$pid"
exec env --ignore-signal=CHLD cat >/dev/null
"""
# In the site: $1 its address.
BRIDGE = """
ip link add name bridge type bridge forward_delay 0
ip address add "$1/24" dev bridge
ip link set bridge up
"""
# In the site's network, seen from here: a cable from the bridge to the eth0 of the machine $1,
# whose first process is $2. The bridge's end has the machine's name.
CABLE = """
ip link add name "$1" type veth peer name eth0 netns "$2"
ip link set "$1" master bridge up
"""
# On a machine: $1 its address, $2 that of its card.
CARD = """
ip address add "$1/24" dev eth0
ip link set eth0 address "$2" up
"""


@functools.cache
def unavailable() -> str:
    """Why machines cannot be pretended here; "" if they can."""
    if os.geteuid() != 0:
        return "machines are pretended by root alone"
    for program, package in PROGRAMS.items():
        if not shutil.which(program):
            return f"no program {program}: apt-get install {package}"
    trial = "mount -t proc proc /proc; ip link add name x type bridge; ip link add name y type veth"
    command = [*UNSHARE, *script(trial)]
    tried = subprocess.run(command, check=False, capture_output=True, text=True)
    return f"the kernel pretends no machines: {tried.stderr.strip()}" if tried.returncode else ""


def script(lines: str, *words: object) -> list[str]:
    """A command: lines of sh, that end at the first failure, and what $1, $2, … are."""
    return ["sh", "-ec", lines, "sh", *map(str, words)]


class Machine:
    """A machine's first process, and its end."""

    def __init__(self, name: str, hosts: Path, *prefix: str) -> None:
        boot = [*prefix, *UNSHARE, *script(BOOT, name, hosts)]
        # A session of its own: Ctrl-C is for the tests, which then clean up.
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen(boot, text=True, start_new_session=True, **pipes)
        answer = self.process.stdout.readline()
        assert answer, f"{name}: {self.process.communicate()[1]}"
        self.pid = int(answer)

    def end(self) -> None:
        """Kill all its processes, and wait until they are gone."""
        if self.process.poll() is None:  # else it went with the site
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        # A namespace waits for the burial of its dead. Those of commands that were killed from
        # here are orphans of this machine's own init, and in some containers that buries none.
        with suppress(subprocess.TimeoutExpired):
            self.process.communicate(timeout=BURIAL_SECONDS)


class Machines:
    """Machines of these names, up while the context lasts.

    `hosts` makes a machine's /etc/hosts of its name and the usual lines. "head" is the site.
    """

    def __init__(
        self, names: Sequence[str], hosts: Callable[[str, str], str] = lambda name, usual: usual
    ) -> None:
        assert not unavailable(), unavailable()
        self.names, self.hosts = list(names), hosts
        self.addresses = {HEAD: f"{NETWORK}.1"}
        self.addresses |= {name: f"{NETWORK}.{11 + i}" for i, name in enumerate(names)}
        self.up: dict[str, Machine] = {}  # head among them

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
        # The site first: the machines are below it and go with it.
        while self.up:
            self.up.pop(next(iter(self.up))).end()
        self._folder.cleanup()

    def _start_site(self) -> None:
        self.up[HEAD] = Machine(HEAD, self._hosts_file(HEAD))
        self.run(HEAD, *script(BRIDGE, self.addresses[HEAD]))

    def start(self, name: str) -> None:
        """Let a machine come up, again with the same name, address and card."""
        site = ["nsenter", "--target", str(self.pid(HEAD))]
        machine = Machine(name, self._hosts_file(name), *site, "--pid")
        self.up[name] = machine
        subprocess.run([*site, "--net", *script(CABLE, name, machine.pid)], check=True)
        card = f"02:00:00:00:00:{11 + self.names.index(name):02x}"
        self.run(name, *script(CARD, self.addresses[name], card))

    def kill(self, name: str) -> None:
        """A machine loses its power: others hear nothing more, not even of closed connections."""
        self.run(HEAD, "ip", "link", "delete", name)
        self.up.pop(name).end()

    def pid(self, name: str) -> int:
        """The first process of a machine, as seen from here."""
        return self.up[name].pid

    def command(self, name: str, cwd: Path | str | None = None) -> list[str]:
        """The beginning of a command that runs on a machine, in this folder or in `cwd`.

        Whoever kills it kills what it began, by whatever signal: nsenter passes none on.
        """
        enter = ["nsenter", "--target", str(self.pid(name)), "--net", "--mount", "--uts", "--pid"]
        # Entering a mount namespace leads to its root.
        chdir = ["env", f"--chdir={cwd or Path.cwd()}"]
        return [*enter, "setpriv", "--pdeathsig", "KILL", "--", *chdir]

    def run(self, name, *command, cwd=None, code=0, timeout=240, **options):
        """Run a command on a machine to its end and check the exit code, unless that is None."""
        words = [*self.command(name, cwd), *map(str, command)]
        options |= {"capture_output": True, "text": True, "timeout": timeout}
        done = subprocess.run(words, check=False, **options)
        assert code in (None, done.returncode), f"{name}: {command}\n{done.stdout}{done.stderr}"
        return done

    def _hosts_file(self, name: str) -> Path:
        lines = [f"{address} {other}" for other, address in self.addresses.items()]
        usual = "\n".join(["127.0.0.1 localhost", *lines]) + "\n"
        file = Path(self._folder.name) / f"hosts.{name}"
        file.write_text(self.hosts(name, usual))
        return file
