"""Find the network interface of this machine that leads to another machine.

`python -m stargan_dist.launch.network_interfaces HOST` prints its name, for GLOO_SOCKET_IFNAME.
Without that variable, gloo listens on the address of the machine's own name. On Debian that is
127.0.1.1, and it may be on a network that the other machines do not reach.
"""

import argparse
import socket
from collections.abc import Sequence
from ipaddress import ip_address

import psutil

from stargan_dist.errors import UserError, run_command


def interface_towards(host: str) -> str:
    """The interface of this machine through which a host is reached.

    Raises:
        UserError: the host has no address, or that of this machine, or there is no way to it.
    """
    own = _own_address(host, _addresses(host))
    for name, addresses in psutil.net_if_addrs().items():
        if own in {_without_zone(each.address) for each in addresses}:
            return name
    raise UserError(
        f"{host}: reached from the address {own}, which no interface of {socket.gethostname()} "
        "has; name the interface yourself: GLOO_SOCKET_IFNAME=…"
    )


def _addresses(host: str) -> Sequence[tuple[socket.AddressFamily, tuple]]:
    """Family and address of a host, loopback left out: that would be this machine."""
    here = socket.gethostname()
    try:
        found = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"{host}: no address for this name on {here} ({error}); look for it in /etc/hosts "
            "there, or in the DNS"
        ) from error
    others = [(each[0], each[4]) for each in found if not ip_address(_ip(each[4])).is_loopback]
    if not others:
        raise UserError(
            f"{host}: on {here} this name means {_ip(found[0][4])}, which is {here} itself and not "
            "another machine; give it its address on the network, in /etc/hosts there or in the DNS"
        )
    return others


def _own_address(host: str, addresses: Sequence[tuple[socket.AddressFamily, tuple]]) -> str:
    """The address that this machine has on the way to the first of them that has a way."""
    reasons = []
    for family, address in addresses:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(address)  # sends nothing: the route is chosen
            except OSError as error:
                reasons.append(f"{_ip(address)}: {error.strerror}")
                continue
            return _ip(probe.getsockname())
    raise UserError(
        f"{host}: no way from {socket.gethostname()} to it ({'; '.join(reasons)}); look at "
        "`ip route` there"
    )


def _ip(address: tuple) -> str:
    return _without_zone(address[0])


def _without_zone(ip: str) -> str:
    """fe80::1%eth0 as fe80::1."""
    return ip.partition("%")[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="stargan_dist.launch.network_interfaces", description=__doc__
    )
    parser.add_argument("host", help="the machine that is to be reached, as name or address")
    print(interface_towards(parser.parse_args().host))


if __name__ == "__main__":
    run_command(main)
