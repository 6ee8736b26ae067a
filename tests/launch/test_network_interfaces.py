"""The interface that leads to another machine, and what is said where there is none."""

import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from stargan_dist.errors import UserError
from stargan_dist.launch import network_interfaces


def names(monkeypatch, *addresses):
    """Every name means these addresses."""
    families = [socket.AF_INET6 if ":" in each else socket.AF_INET for each in addresses]
    found = [
        (family, socket.SOCK_DGRAM, 17, "", (each, 9, 0, 0) if ":" in each else (each, 9))
        for family, each in zip(families, addresses, strict=True)
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


def routes(monkeypatch, **own):
    """Sockets that lead from these addresses, and from no others."""

    class Probe:
        def __init__(self, family, _kind):
            self.way = "v6" if family == socket.AF_INET6 else "v4"

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def connect(self, _address):
            if self.way not in own:
                raise OSError(101, "Network is unreachable")

        def getsockname(self):
            return (own[self.way], 1)

    monkeypatch.setattr(socket, "socket", Probe)


def cards(monkeypatch, **addresses):
    named = {
        name: [SimpleNamespace(address=each) for each in ("02:00:00:00:00:01", address)]
        for name, address in addresses.items()
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: named)


def test_the_card_with_the_address_on_the_way(monkeypatch):
    names(monkeypatch, "10.0.0.2")
    routes(monkeypatch, v4="10.0.0.1")
    cards(monkeypatch, lo="127.0.0.1", eth0="172.16.0.1", eth1="10.0.0.1")
    assert network_interfaces.interface_towards("node1") == "eth1"


def test_ipv6(monkeypatch):
    """An address of one link names the link as well."""
    names(monkeypatch, "fe80::2%ib0")
    routes(monkeypatch, v6="fe80::1")
    cards(monkeypatch, eth0="fe80::9%eth0", ib0="fe80::1%ib0")
    assert network_interfaces.interface_towards("node1") == "ib0"


def test_an_address_without_a_way_is_passed_over(monkeypatch):
    names(monkeypatch, "fd00::2", "10.0.0.2")
    routes(monkeypatch, v4="10.0.0.1")
    cards(monkeypatch, eth0="10.0.0.1")
    assert network_interfaces.interface_towards("node1") == "eth0"


def test_no_way(monkeypatch):
    names(monkeypatch, "fd00::2", "10.0.0.2")
    routes(monkeypatch)
    with pytest.raises(UserError, match=r"node1: no way .*fd00::2: Network.*; 10\.0\.0\.2: Net"):
        network_interfaces.interface_towards("node1")


def test_a_loopback_address_beside_another_is_passed_over(monkeypatch):
    names(monkeypatch, "127.0.1.1", "10.0.0.2")
    routes(monkeypatch, v4="10.0.0.1")
    cards(monkeypatch, eth0="10.0.0.1")
    assert network_interfaces.interface_towards("node1") == "eth0"


@pytest.mark.parametrize("address", ["127.0.1.1", "::1"])
def test_another_machine_cannot_be_this_one(monkeypatch, address):
    names(monkeypatch, address)
    with pytest.raises(UserError, match=f"node1: on .* means {address}, .*/etc/hosts"):
        network_interfaces.interface_towards("node1")


def test_no_card_has_the_address(monkeypatch):
    names(monkeypatch, "10.0.0.2")
    routes(monkeypatch, v4="10.0.0.1")
    cards(monkeypatch, lo="127.0.0.1")
    with pytest.raises(UserError, match=r"node1: .*10\.0\.0\.1, which no interface .*GLOO_SOCKET"):
        network_interfaces.interface_towards("node1")


@pytest.mark.parametrize("name", ["nosuch.invalid", "x" * 80, "a..b"])
def test_a_name_without_an_address(name):
    with pytest.raises(UserError, match=r"no address for this name on .*/etc/hosts"):
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
    *imports, told = done.stderr.splitlines()
    assert done.returncode == 2
    assert told.startswith("error: localhost: on ")
    assert not [line for line in imports if line.endswith((" torch", " accelerate"))]
