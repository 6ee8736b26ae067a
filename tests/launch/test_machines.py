"""The simulated machines that other tests rely on."""

import errno
import subprocess
import sys

import pytest

from tests.helpers.machines import Machines, script, unavailable

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())

LISTEN = """
import socket
server = socket.create_server(("", 5000))
print("listening", flush=True)
connection, peer = server.accept()
print(peer[0], flush=True)
connection.recv(1)
print("the peer is gone")
"""
CALL = "import socket, time; s = socket.create_connection(('node1', 5000)); time.sleep(600)"


@pytest.fixture(scope="module")
def machines():
    def debian(name, default):
        return f"127.0.1.1 {name}\n{default}"

    with Machines(["node1", "node2"], hosts=debian) as machines:
        yield machines


def python(machines, name, program):
    command = [*machines.command(name), sys.executable, "-c", program]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_machine_has_its_own_name_hosts_file_and_processes(machines, tmp_path):
    assert machines.run("node2", "uname", "-n").stdout == "node2\n"
    first = machines.run("node1", "cat", "/etc/hosts").stdout.splitlines()[0]
    assert first == "127.0.1.1 node1"
    assert machines.run("node1", "pwd", cwd=tmp_path).stdout == f"{tmp_path}\n"
    assert machines.run("node1", "cat", "/proc/1/comm").stdout == "cat\n"


def test_an_interface_exists_on_one_machine_only(machines):
    dead = "ip link add name docker0 type bridge; ip address add 172.17.0.1/16 dev docker0"
    machines.run("node1", *script(dead))
    addresses = {name: machines.run(name, "ip", "address").stdout for name in machines.names}
    assert "172.17.0.1" in addresses["node1"]
    assert "172.17.0.1" not in addresses["node2"]


def test_a_killed_machine_closes_no_connection_and_can_be_restarted(machines):
    """A peer receives nothing. The restarted machine is reachable by its name."""
    server = python(machines, "node1", LISTEN)
    assert server.stdout.readline() == "listening\n"
    client = python(machines, "node2", CALL)
    assert server.stdout.readline() == "10.77.0.12\n"
    machines.kill("node2")
    client.communicate(timeout=120)
    with pytest.raises(subprocess.TimeoutExpired):
        server.wait(timeout=0.5)
    machines.run("node1", *script("kill -9 -1"))
    server.communicate(timeout=120)
    machines.start("node2")
    program = "import socket; print(socket.socket().connect_ex(('node2', 5000)))"
    answer = python(machines, "node1", program).communicate(timeout=120)[0]
    assert int(answer) == errno.ECONNREFUSED
