"""The interface that leads to another machine, and the errors if there is none."""

import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from stargan_dist.errors import UserError
from stargan_dist.launch import network_interfaces


def resolve_to(monkeypatch, *addresses):
    """Make every host name resolve to these addresses."""
    families = [socket.AF_INET6 if ":" in each else socket.AF_INET for each in addresses]
    found = [
        (family, socket.SOCK_DGRAM, 17, "", (each, 9, 0, 0) if ":" in each else (each, 9))
        for family, each in zip(families, addresses, strict=True)
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


def set_routes(monkeypatch, **sources):
    """Provide a route from these source addresses, by address family, and no others."""

    class Probe:
        def __init__(self, family, _kind):
            self.family = "v6" if family == socket.AF_INET6 else "v4"

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def connect(self, _address):
            if self.family not in sources:
                raise OSError(101, "Network is unreachable")

        def getsockname(self):
            return (sources[self.family], 1)

    monkeypatch.setattr(socket, "socket", Probe)


def set_interfaces(monkeypatch, **addresses):
    """Give the interfaces of this machine these addresses, each after a hardware address."""
    interfaces = {
        name: [SimpleNamespace(address=each) for each in ("02:00:00:00:00:01", address)]
        for name, address in addresses.items()
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: interfaces)


def test_the_interface_with_the_source_address_of_the_route_is_returned(monkeypatch):
    resolve_to(monkeypatch, "10.0.0.2")
    set_routes(monkeypatch, v4="10.0.0.1")
    set_interfaces(monkeypatch, lo="127.0.0.1", eth0="172.16.0.1", eth1="10.0.0.1")
    assert network_interfaces.interface_towards("node1") == "eth1"


def test_ipv6_addresses_are_compared_without_their_zone(monkeypatch):
    """A link-local address includes the name of its link."""
    resolve_to(monkeypatch, "fe80::2%ib0")
    set_routes(monkeypatch, v6="fe80::1")
    set_interfaces(monkeypatch, eth0="fe80::9%eth0", ib0="fe80::1%ib0")
    assert network_interfaces.interface_towards("node1") == "ib0"


def test_an_address_without_a_route_is_skipped(monkeypatch):
    resolve_to(monkeypatch, "fd00::2", "10.0.0.2")
    set_routes(monkeypatch, v4="10.0.0.1")
    set_interfaces(monkeypatch, eth0="10.0.0.1")
    assert network_interfaces.interface_towards("node1") == "eth0"


def test_a_host_without_a_route_is_an_error(monkeypatch):
    resolve_to(monkeypatch, "fd00::2", "10.0.0.2")
    set_routes(monkeypatch)
    with pytest.raises(UserError, match=r"node1: no route .*fd00::2: Network.*; 10\.0\.0\.2: Net"):
        network_interfaces.interface_towards("node1")


def test_a_loopback_address_beside_another_one_is_skipped(monkeypatch):
    resolve_to(monkeypatch, "127.0.1.1", "10.0.0.2")
    set_routes(monkeypatch, v4="10.0.0.1")
    set_interfaces(monkeypatch, eth0="10.0.0.1")
    assert network_interfaces.interface_towards("node1") == "eth0"


@pytest.mark.parametrize("address", ["127.0.1.1", "::1"])
def test_a_name_that_resolves_to_this_machine_is_an_error(monkeypatch, address):
    resolve_to(monkeypatch, address)
    with pytest.raises(UserError, match=f"node1: on .* resolves to {address}, .*/etc/hosts"):
        network_interfaces.interface_towards("node1")


def test_a_source_address_of_no_interface_is_an_error(monkeypatch):
    resolve_to(monkeypatch, "10.0.0.2")
    set_routes(monkeypatch, v4="10.0.0.1")
    set_interfaces(monkeypatch, lo="127.0.0.1")
    with pytest.raises(UserError, match=r"node1: .*10\.0\.0\.1, which no interface .*GLOO_SOCKET"):
        network_interfaces.interface_towards("node1")


@pytest.mark.parametrize("name", ["nosuch.invalid", "x" * 80, "a..b"])
def test_an_unknown_name_is_an_error(name):
    with pytest.raises(UserError, match=r"finds no address for this name .*/etc/hosts on"):
        network_interfaces.interface_towards(name)


def test_the_command_starts_fast_and_without_torch():
    began = time.monotonic()
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "stargan_dist.launch.network_interfaces",
        "localhost",
    ]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert time.monotonic() - began < 10
    *imports, error = done.stderr.splitlines()
    assert done.returncode == 2
    assert error.startswith("error: localhost: on ")
    assert not [line for line in imports if line.endswith((" torch", " accelerate"))]
