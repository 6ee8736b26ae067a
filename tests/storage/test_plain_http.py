"""The cheap client of HTTP: real servers, one of which answers with the bytes that a test says."""

import asyncio
import datetime
import ipaddress
import multiprocessing
import random
import socket
import ssl
import threading
from contextlib import contextmanager

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from stargan_dist import storage
from stargan_dist.storage import plain_http
from stargan_dist.storage.plain_http import BUFFER_BYTES, UnusualResponse
from tests.helpers.servers import FileRequestHandler, http_server

DATA = random.Random(0).randbytes(3 * BUFFER_BYTES)


def read(url, begin, end, headers="", **options):
    coroutine = plain_http.read_range(url, begin, end, headers, **options)
    return storage.start(coroutine).result(10)


def idle_connections():
    async def count():
        idle = plain_http._idle(asyncio.get_running_loop())
        return sum(connection.is_open for of in idle.values() for connection in of)

    return storage.start(count()).result()


@pytest.fixture(autouse=True)
def no_connections():
    plain_http._idle.cache_clear()


@pytest.fixture
def url(http):
    (http.folder / "file").write_bytes(DATA)
    return f"{http.url}/file"


@contextmanager
def scripted(*connections, packet_seconds=0.002):
    """Serve scripted connections, one after the other; yields a URL and the received requests.

    Each connection is a list of responses, and a response a list of packets. A connection is closed
    after its last response; None instead of a response waits for the client to close it.
    """
    requests = []

    def serve(listener):
        for responses in connections:
            connection, _ = listener.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for packets in responses:
                    requests.append(connection.recv(2**16))
                    for packet in packets or ():
                        connection.sendall(packet)
                        threading.Event().wait(packet_seconds)
                    if packets is None:
                        connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/file", requests
        thread.join(10)
        assert not thread.is_alive()


def response(body, *lines, status="206 Partial Content"):
    head = "\r\n".join([f"HTTP/1.1 {status}", *lines])
    return f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


# Usual responses.


@pytest.mark.parametrize(
    ("begin", "end"),
    [(0, 1), (7, 50_000), (1, BUFFER_BYTES), (5, 3 * BUFFER_BYTES), (len(DATA) - 9, len(DATA) + 9)],
)
def test_ranges_are_those_of_the_file(url, begin, end):
    for _ in range(2):
        assert read(url, begin, end) == DATA[begin:end]


@pytest.mark.parametrize("packet_bytes", [1, 7, 64, 100])
def test_a_response_may_come_in_any_packets(packet_bytes):
    body = DATA[:40]
    whole = response(body, "Content-Type: x")
    packets = [whole[i : i + packet_bytes] for i in range(0, len(whole), packet_bytes)]
    with scripted([packets, packets]) as (url, _):
        assert [read(url, 0, 40), read(url, 0, 40)] == [body, body]


def test_a_response_may_be_as_long_as_the_buffer():
    head = len(response(b"")) + len("65432") - len("0")
    for length in range(BUFFER_BYTES - head - 1, BUFFER_BYTES - head + 2):
        with scripted([[response(DATA[:length])]]) as (url, _):
            assert read(url, 0, length) == DATA[:length]


def test_a_server_without_ranges_sends_the_whole_file(http, url):
    http.ranges = False
    assert read(url, 0, 10) == DATA


def test_a_request_has_what_servers_expect():
    with scripted([[response(b"ab")]]) as (url, requests):
        read(f"{url} ü?a=b", 3, 5, "X-Token: t\r\n")
    first, *lines = requests[0].decode("ascii").removesuffix("\r\n\r\n").split("\r\n")
    assert first == "GET /file%20%C3%BC?a=b HTTP/1.1"
    assert sorted(lines) == [
        "Accept-Encoding: identity",
        "Accept: */*",
        f"Host: {url.split('/')[2]}",
        "Range: bytes=3-4",
        "User-Agent: stargan_dist",
        "X-Token: t",
    ]


def test_a_url_can_be_sent_as_it_is():
    with scripted([[response(b"ab")]]) as (url, requests):
        read(f"{url}%2f+?a=%2B", 0, 2, is_signed=True)
    assert requests[0].startswith(b"GET /file%2f+?a=%2B HTTP/1.1\r\n")


# Connections.


def test_a_connection_has_one_request_after_the_other():
    with scripted([[response(b"ab")], [response(b"cd")]]) as (url, requests):
        assert [read(url, 0, 2), read(url, 2, 4)] == [b"ab", b"cd"]
        assert len(requests) == 2


def test_requests_at_the_same_time_have_connections_of_their_own(http, url):
    http.delay_seconds = 0.2

    async def read_all():
        return await asyncio.gather(*(plain_http.read_range(url, i, i + 9) for i in range(30)))

    for _ in range(2):
        assert storage.start(read_all()).result(10) == [DATA[i : i + 9] for i in range(30)]
    assert http.peak == 30 and idle_connections() == 30


@pytest.mark.parametrize("line", ["Connection: close", "connection:close", "Date: now"])
def test_a_connection_that_the_server_closes_is_replaced(line):
    waits = [None] * ("close" in line)  # for the client to close it
    with scripted([[response(b"ab", line)], *waits], [[response(b"cd")]]) as (url, requests):
        assert [read(url, 0, 2), read(url, 2, 4)] == [b"ab", b"cd"]
    assert requests[1] == b"" or not waits


def test_a_connection_that_is_closed_instead_of_an_answer_is_replaced_once():
    with scripted([[response(b"ab")], []], [[response(b"cd")]]) as (url, requests):
        assert [read(url, 0, 2), read(url, 2, 4)] == [b"ab", b"cd"]
        assert requests[1] == requests[2] != requests[0]
    with scripted([[]]) as (url, _), pytest.raises(ConnectionError):  # a new one
        read(url, 0, 2)


def test_a_late_answer_to_a_cancelled_request_is_not_that_of_another(http, url):
    read(url, 0, 1)
    http.delay_seconds = 0.3
    future = storage.start(plain_http.read_range(url, 0, 9))
    while not http._waiting:
        threading.Event().wait(0.01)
    future.cancel()
    assert read(url, 100, 109) == DATA[100:109]


def test_a_connection_that_was_idle_for_long_is_not_used(monkeypatch):
    monkeypatch.setattr(plain_http, "IDLE_SECONDS", 0)
    with scripted([[response(b"ab")], None], [[response(b"cd")]]) as (url, requests):
        assert [read(url, 0, 2), read(url, 2, 4)] == [b"ab", b"cd"]
    assert requests[1] == b""  # the client has closed it


def test_only_lost_connections_are_replaced():
    with scripted([[response(b"ab")], [response(b"", status="404 None")]]) as (url, requests):
        assert read(url, 0, 2) == b"ab"
        with pytest.raises(UnusualResponse):
            read(url, 2, 4)
    assert len(requests) == 2


def test_an_unreachable_server_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        read(f"http://127.0.0.1:{port}/file", 0, 2)


def read_in_child(url):
    assert read(url, 5, 9) == DATA[5:9]


def test_a_forked_process_and_its_parent_have_connections_of_their_own(url):
    assert read(url, 0, 9) == DATA[:9]
    process = multiprocessing.get_context("fork").Process(target=read_in_child, args=(url,))
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert read(url, 9, 12) == DATA[9:12] and idle_connections() == 1


# Unusual responses.

UNUSUAL = {
    "redirect": (response(b"", "Location: /", status="302 Found"), 302),
    "not found": (response(b"none", status="404 Not Found"), 404),
    "busy": (response(b"", status="503 Service Unavailable"), 503),
    "chunks": (b"HTTP/1.1 206 P\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", 206),
    "both lengths": (response(b"ab", "transfer-encoding: chunked"), 206),
    "no length": (b"HTTP/1.1 206 P\r\n\r\nab", 206),
    "two lengths": (b"HTTP/1.1 206 P\r\nContent-Length: 2\r\nContent-Length: 1\r\n\r\nab", 206),
    "line feeds": (b"HTTP/1.1 206 P\nContent-Length: 2\n\nab", 0),
    "interim": (b"HTTP/1.1 100 Continue\r\n\r\n" + response(b"ab"), 100),
    "no number": (b"HTTP/1.1 206 P\r\nContent-Length: -2\r\n\r\nab", 206),
    "encoded": (response(b"ab", "Content-Encoding: gzip"), 206),
    "more than requested": (response(b"abc"), 206),
    "endless file": (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\nab", 200),
    "more than announced": (response(b"ab") + b"c", 0),
    "old": (response(b"ab").replace(b"1.1", b"1.0"), 0),
    "another protocol": (b"SSH-2.0-OpenSSH\r\n\r\n", 0),
    "endless head": (b"HTTP/1.1 206 P\r\n" + b"a: b\r\n" * BUFFER_BYTES, 0),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_responses_are_errors_and_end_their_connection(name):
    packet, status = UNUSUAL[name]

    def served(packet):
        return [[packet[i : i + 2**15] for i in range(0, 3 * 2**15, 2**15)]]

    with scripted(served(packet)) as (url, _):
        with pytest.raises(UnusualResponse) as error:
            read(url, 0, 2)
        assert error.value.status == status and idle_connections() == 0


def test_stored_encodings_can_be_taken_as_they_are():
    with scripted([[response(b"ab", "Content-Encoding: gzip")]]) as (url, _):
        assert read(url, 0, 2, is_signed=True) == b"ab"


@pytest.mark.parametrize("cut", [3, 20, -1])
def test_a_response_that_ends_early_is_an_error(cut):
    with scripted([[response(b"abcdef")[:cut]]]) as (url, _), pytest.raises(ConnectionError):
        read(url, 0, 6)


def test_bytes_that_nobody_requested_end_the_connection():
    async def send_more(url):
        """Read, then receive more, without a pause in which the connection could be closed."""
        body = await plain_http.read_range(url, 0, 2)
        (connections,) = plain_http._idle(asyncio.get_running_loop()).values()
        connections[0].get_buffer(-1)[:4] = b"HTTP"
        connections[0].buffer_updated(4)
        return body

    with scripted([[response(b"ab")], None], [[response(b"cd")]]) as (url, requests):
        assert storage.start(send_more(url)).result(10) == b"ab"
        assert read(url, 2, 4) == b"cd"
    assert requests[1] == b""  # the client has closed the connection


@pytest.mark.parametrize(
    "url", ["http:///file", "http://user:word@127.0.0.1/file", "file:///etc/passwd"]
)
def test_requests_that_it_cannot_make_are_errors(url):
    with pytest.raises(UnusualResponse):
        read(url, 0, 2)


def test_a_url_cannot_add_lines_to_a_request():
    with pytest.raises(UnusualResponse):
        read("http://127.0.0.1:1/a\r\nX: y", 0, 2, is_signed=True)
    with scripted([[response(b"ab")]]) as (url, requests):
        read(f"{url}\r\nX: y", 0, 2)
    assert b"\r\nX" not in requests[0]


# HTTPS.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of 127.0.0.1 and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("certificate") / "server.pem"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    key_bytes = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    path.write_bytes(key_bytes + signed.public_bytes(pem))
    return path


@pytest.fixture
def secure_url(tmp_path, certificate):
    (tmp_path / "file").write_bytes(DATA)
    with http_server(tmp_path) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.RequestHandlerClass = FileRequestHandler
        yield f"https://127.0.0.1:{server.server_port}/file"


def test_files_are_read_by_https(secure_url, certificate, monkeypatch):
    context = ssl.create_default_context(cafile=certificate)
    monkeypatch.setattr(plain_http, "_tls_context", lambda: context)
    for begin, end in [(0, 1), (5, 50_000), (9, 3 * BUFFER_BYTES)]:
        assert read(secure_url, begin, end) == DATA[begin:end]
    assert idle_connections() == 1


def test_an_unknown_certificate_is_refused(secure_url):
    with pytest.raises(ssl.SSLCertVerificationError):
        read(secure_url, 0, 1)
