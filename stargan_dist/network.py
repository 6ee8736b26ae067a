import socket, psutil
def interface_to(host):
    info = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(info[0], socket.SOCK_DGRAM) as probe:
        probe.connect(info[4]); own = probe.getsockname()[0]
    return next(n for n, a in psutil.net_if_addrs().items() if own in {x.address.partition("%")[0] for x in a})
