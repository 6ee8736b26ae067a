"""Find the network interface of this machine that leads to another machine.

`python -m stargan_dist.launch.network_interfaces HOST` prints its name, for GLOO_SOCKET_IFNAME.
Without that variable, gloo listens on the address that the machine's own host name resolves to. On
Debian this is 127.0.1.1. Elsewhere it may be on a network that the other machines do not reach.
"""

import argparse
import socket
from collections.abc import Sequence
from ipaddress import ip_address

import psutil

from stargan_dist.errors import UserError, run_command


def interface_towards(host: str) -> str:
    """Return the name of the interface of this machine that the route to a host goes through.

    Args:
        host: host name or address.

    Raises:
        UserError: the host name does not resolve, or resolves to this machine, or there is no
            route to the host.
    """
    source = _source_address(host, _remote_addresses(host))
    for name, addresses in psutil.net_if_addrs().items():
        if source in {_without_zone(each.address) for each in addresses}:
            return name
    raise UserError(
        f"{host}: reached from the address {source}, which no interface of {socket.gethostname()} "
        "has; set the interface explicitly: GLOO_SOCKET_IFNAME=…"
    )


def _remote_addresses(host: str) -> Sequence[tuple[socket.AddressFamily, tuple]]:
    """Return family and address of a host, for all addresses but loopback ones.

    A loopback address would mean this machine.
    """
    here = socket.gethostname()
    try:
        found = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"{host}: {here} finds no address for this name ({error}); check /etc/hosts on {here} "
            "and the DNS"
        ) from error
    remote = [(each[0], each[4]) for each in found if not ip_address(_ip(each[4])).is_loopback]
    if not remote:
        raise UserError(
            f"{host}: on {here} this name resolves to {_ip(found[0][4])}, which is {here} itself "
            f"and not another machine; set its network address in /etc/hosts on {here} or in the "
            "DNS"
        )
    return remote


def _source_address(host: str, addresses: Sequence[tuple[socket.AddressFamily, tuple]]) -> str:
    """Return this machine's address on the route to the first address that has a route."""
    reasons = []
    for family, address in addresses:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(address)  # sends no packet, only selects the route
            except OSError as error:
                reasons.append(f"{_ip(address)}: {error.strerror}")
                continue
            return _ip(probe.getsockname())
    here = socket.gethostname()
    raise UserError(
        f"{host}: no route from {here} to it ({'; '.join(reasons)}); check `ip route` on {here}"
    )


def _ip(address: tuple) -> str:
    return _without_zone(address[0])


def _without_zone(ip: str) -> str:
    """Remove the zone of an IPv6 address: fe80::1%eth0 becomes fe80::1."""
    return ip.partition("%")[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="stargan_dist.launch.network_interfaces", description=__doc__
    )
    parser.add_argument("host", help="name or address of the machine to reach")
    print(interface_towards(parser.parse_args().host))


if __name__ == "__main__":
    run_command(main)
