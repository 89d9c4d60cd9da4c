"""TLS and tokens over TCP, with real certificates and real sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop

from eventsh.address import Address, parse_address
from eventsh.api import AsyncEvents
from eventsh.errors import AuthenticationError, ConfigureError, TransportError
from eventsh.options import Options
from eventsh.protocol.frame import FrameDecoder, Kind
from eventsh.protocol.messages import Error
from eventsh.runtime.blocking import BlockingClient
from eventsh.runtime.broker import Broker
from eventsh.runtime.endpoint import find_endpoint
from eventsh.testing import TransportConformance
from eventsh.testing.addresses import free_port
from eventsh.testing.recorder import DEADLINE_S, Recorder
from eventsh.transports import listening
from eventsh.transports.tcp import TcpTransport
from tests.certificates import NAME, Certificates

both_loops = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


@pytest.fixture(scope="session")
def certificates(tmp_path_factory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


class TestConformance(TransportConformance):
    # What they show depends on the sockets below, and takes the longest.
    test_frames_that_were_taken_leave_no_memory_behind = None  # type: ignore[assignment]
    test_many_processes_may_send_at_once = None  # type: ignore[assignment]

    @pytest.fixture(autouse=True)
    def with_tls(self, certificates, monkeypatch):
        monkeypatch.setenv("EVENTSH_TLS_CERT", certificates.cert)
        monkeypatch.setenv("EVENTSH_TLS_CA", certificates.ca)

    def make_address(self, directory: Path) -> str:
        return f"tcp://127.0.0.1:{free_port()}"


@asynccontextmanager
async def serving(address: str = "tcp://127.0.0.1:0", **options: Any) -> AsyncIterator[Broker]:
    """A broker in this loop."""
    found = Options.from_values(linger=None, **options)
    broker = Broker(*find_endpoint(address, found), found)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.close()


async def attach(address: str, **options: Any) -> None:
    """Attach, and have an event come back. Raises what the attaching raises."""
    handled = asyncio.Event()
    async with AsyncEvents(address, broker="never", timeout=2.0, **options) as events:
        events.register(lambda *_: handled.set(), "test")
        client = events._bus.working_client()
        await client.waiters.wait_first_attempt(DEADLINE_S)
        events.post("test", "event")
        await asyncio.wait_for(handled.wait(), DEADLINE_S)


def ask(address: str) -> Any:
    """As commands do it, on a blocking socket, with what the environment says."""
    with BlockingClient(*find_endpoint(address), timeout_s=DEADLINE_S) as client:
        return client.ask("status")


# The token


@both_loops
@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "unix:{}/s"], ids=["tcp", "unix"])
@pytest.mark.parametrize(
    ("mine", "theirs", "words"),
    [
        ("token", "token", None),
        ("other_token", "token", "refused: the token is not this broker's"),
        (None, "token", "refused: this broker asks for a token: give token_file"),
        ("token", None, "refused: this broker has no token to prove"),
    ],
    ids=["same", "other", "none given", "none asked"],
)
def test_only_who_has_the_broker_s_token_is_let_in(
    run, address, mine, theirs, words, certificates, tmp_path, monkeypatch
):
    def file(name: str | None) -> str | None:
        return getattr(certificates, name) if name else None

    async def main() -> None:
        async with serving(address.format(tmp_path), token_file=file(theirs)) as broker:
            if mine:
                monkeypatch.setenv("EVENTSH_TOKEN_FILE", getattr(certificates, mine))
            if words is None:
                await attach(broker.listening, token_file=file(mine))
                assert (await asyncio.to_thread(ask, broker.listening))["workers"] is not None
                return
            with pytest.raises(AuthenticationError, match=words):
                await attach(broker.listening, token_file=file(mine))
            with pytest.raises(AuthenticationError, match=words):
                await asyncio.to_thread(ask, broker.listening)

    run(main())


def test_a_wait_for_a_broker_with_another_token_says_so(certificates, caplog):
    async def main() -> None:
        async with serving(token_file=certificates.token) as broker:
            events = AsyncEvents(broker.listening, broker="never", timeout=0.5, token_file=certificates.other_token)
            async with events:
                with pytest.raises(AuthenticationError):
                    await events._bus.working_client().waiters.wait_first_attempt(DEADLINE_S)
                with pytest.raises(AuthenticationError, match=r"within 0.2 s: .*the token is not this broker's"):
                    await events.wait_ready(0.2)

    asyncio.run(main())
    text = Path(certificates.token).read_text().strip()
    assert text not in caplog.text
    assert "the token is not this broker's" in caplog.text


def test_a_broker_that_only_sends_back_what_it_gets_is_not_believed(certificates, monkeypatch):
    """It has no token: it returns challenge and proof, and would welcome anybody."""
    monkeypatch.setenv("EVENTSH_TOKEN_FILE", certificates.token)
    got: list[bytes] = []

    def mirror(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            while data := sock.recv(65536):
                got.append(data)
                sock.sendall(data)

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
            mirroring = asyncio.create_task(asyncio.to_thread(mirror, listener))
            with pytest.raises(AuthenticationError, match="the broker could not prove that it has the token"):
                await asyncio.to_thread(ask, address)
            await mirroring

    asyncio.run(main())
    kinds = [frame[4] for frame in FrameDecoder().receive_data(b"".join(got))]
    assert kinds == [Kind.CHALLENGE, Kind.PROOF]


def test_a_handshake_that_was_recorded_opens_no_other_connection(certificates, monkeypatch):
    monkeypatch.setenv("EVENTSH_TOKEN_FILE", certificates.token)

    async def main() -> None:
        async with serving(token_file=certificates.token) as broker:
            sent: list[bytes] = []
            session_frames = await asyncio.to_thread(recorded, broker.listening, sent)
            assert session_frames
            assert [frame[4] for frame in FrameDecoder().receive_data(b"".join(sent))][:2] == [
                Kind.CHALLENGE,
                Kind.PROOF,
            ]
            answer = await asyncio.to_thread(replay, broker.listening, b"".join(sent))
            frames = FrameDecoder().receive_data(answer)
            assert [frame[4] for frame in frames] == [Kind.CHALLENGE, Kind.ERROR]
            assert Error.decode(frames[-1]).code == "token_wrong"

    asyncio.run(main())


def recorded(address: str, sent: list[bytes]) -> Any:
    class Spy(BlockingClient):
        def _send(self, connection: socket.socket) -> None:
            before = bytes(self._unsent)
            super()._send(connection)
            sent.append(before[: len(before) - len(self._unsent)])

    with Spy(*find_endpoint(address), timeout_s=DEADLINE_S) as client:
        return client.ask("status")


def replay(address: str, data: bytes) -> bytes:
    sock = TcpTransport().dial(parse_address(address), DEADLINE_S)
    assert sock is not None
    answer = b""
    with sock:
        sock.sendall(data)
        while piece := sock.recv(65536):
            answer += piece
    return answer


# The token's file


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622, 0o644])
def test_a_token_that_others_can_use_is_refused(certificates, tmp_path, mode):
    path = tmp_path / "token"
    path.write_bytes(b"x" * 32)
    path.chmod(mode)
    with pytest.raises(ConfigureError, match=rf"can be used by others \(mode {mode:04o}\): chmod 600 it") as caught:
        AsyncEvents("tcp://127.0.0.1:1", token_file=str(path)).configure()
    assert caught.value.option == "token_file"


@pytest.mark.parametrize("content", [b"", b"\n", b"x" * 15, b"x" * 5000], ids=len)
def test_a_token_of_a_wrong_length_is_refused_and_not_shown(tmp_path, content):
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigureError, match=r"holds .* bytes, and a token has from 16 to 4096") as caught:
        AsyncEvents("tcp://127.0.0.1:1", token_file=str(path)).configure()
    assert "xxx" not in str(caught.value)


def test_what_is_no_file_of_a_token_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name, why in (("pipe", "is no file"), ("missing", "can't be read: No such file"), (".", "is no file")):
        with pytest.raises(ConfigureError, match=why):
            AsyncEvents("tcp://127.0.0.1:1", token_file=str(tmp_path / name)).configure()


# Where a listener may be


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
@pytest.mark.parametrize("given", [(), ("token_file",), ("tls_cert",)], ids=str)
def test_an_address_that_others_can_reach_takes_a_token_and_tls(host, given, certificates):
    options = {"token_file": certificates.token, "tls_cert": certificates.cert}
    with pytest.raises(ConfigureError, match=r"takes a token and TLS: give token_file, tls_cert and tls_key") as caught:
        asyncio.run(listen(f"tcp://{host}:0", {name: options[name] for name in given}))
    assert caught.value.option in options


async def listen(address: str, options: dict[str, str]) -> None:
    async with serving(address, **options):
        pass


@both_loops
def test_with_both_it_may_listen_anywhere_and_is_verified(run, certificates, monkeypatch):
    monkeypatch.setenv("EVENTSH_TOKEN_FILE", certificates.token)

    async def main() -> None:
        options = {"token_file": certificates.token, "tls_cert": certificates.cert}
        async with serving("tcp://0.0.0.0:0", **options) as broker:
            port = parse_address(broker.listening).port
            await attach(f"tcp://127.0.0.1:{port}", token_file=certificates.token, tls_ca=certificates.ca)
            await attach(broker.listening, token_file=certificates.token, tls_ca=certificates.ca, tls_name=NAME)
            with pytest.raises(AuthenticationError, match=r"mismatch.*give the name that stands in it with tls_name"):
                await attach(f"tcp://localhost:{port}", token_file=certificates.token, tls_ca=certificates.ca)
            with pytest.raises(AuthenticationError, match=r"give the certificate of its CA with tls_ca"):
                await attach(f"tcp://127.0.0.1:{port}", token_file=certificates.token, tls_ca=certificates.other_ca)
            # Where others could listen, nothing is said without TLS, whatever the options.
            with pytest.raises(AuthenticationError, match="is not accepted"):
                await attach(f"tcp://{own_address()}:{port}", token_file=certificates.token)

    run(main())


def own_address() -> str:
    """The address of this host in the network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            # Sends nothing.
            sock.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this host is in no network")
        return str(sock.getsockname()[0])


# TLS


@both_loops
def test_who_speaks_no_tls_to_one_who_does_is_told_so(run, certificates):
    async def main() -> None:
        async with serving(tls_cert=certificates.cert) as broker:
            with pytest.raises(AuthenticationError, match=r"refused: it speaks TLS: give tls_ca \(--tls-ca\)"):
                await attach(broker.listening)
            with pytest.raises(AuthenticationError, match="it speaks TLS"):
                await asyncio.to_thread(ask, broker.listening)

    run(main())


@both_loops
def test_who_speaks_tls_to_one_who_does_not_is_told_so(run, certificates, monkeypatch):
    async def main() -> None:
        async with serving() as broker:
            with pytest.raises(TransportError, match="speaks no TLS: if it is a broker without"):
                await attach(broker.listening, tls_ca=certificates.ca)
            monkeypatch.setenv("EVENTSH_TLS_CA", certificates.ca)
            with pytest.raises(TransportError, match="speaks no TLS"):
                await asyncio.to_thread(ask, broker.listening)

    run(main())


@both_loops
def test_old_versions_of_tls_are_refused(run, certificates):
    def talk(port: int) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings(action="ignore"):
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        with (
            socket.create_connection(("127.0.0.1", port), DEADLINE_S) as sock,
            pytest.raises(ssl.SSLError),
        ):
            context.wrap_socket(sock)

    async def main() -> None:
        async with serving(tls_cert=certificates.cert) as broker:
            await asyncio.to_thread(talk, parse_address(broker.listening).port or 0)

    run(main())


@both_loops
@pytest.mark.parametrize("first", [b"", b"\x16", b"\x16\x03\x01\x02\x00"], ids=["nothing", "a byte", "a header"])
def test_a_tls_handshake_has_the_time_of_the_hello(run, certificates, first):
    async def main() -> None:
        async with serving(tls_cert=certificates.cert, hello_timeout=0.2) as broker:
            reader, writer = await asyncio.open_connection("127.0.0.1", parse_address(broker.listening).port)
            writer.write(first)
            async with asyncio.timeout(DEADLINE_S):
                with suppress(ConnectionError):
                    assert await reader.read() == b""
            writer.close()

    run(main())


@both_loops
def test_the_time_that_tls_took_is_taken_from_the_hello_s(run, certificates):
    """A slow handshake and a slow hello, each within the time: not both."""

    async def main() -> None:
        made = asyncio.Event()
        opened: list[float] = []

        def on_connection(connection: Any) -> Recorder:
            opened.append(connection.opening_s)
            made.set()
            return Recorder(connection=connection)

        transport = TcpTransport(Options(tls_cert=certificates.cert, tls_ca=certificates.ca))
        listener = await transport.listen(Address("tcp", host="127.0.0.1", port=0), on_connection)
        port = parse_address(listener.address).port
        context = ssl.create_default_context(cafile=certificates.ca)
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(0.3)
        await writer.start_tls(context, server_hostname="127.0.0.1")
        await asyncio.wait_for(made.wait(), DEADLINE_S)
        assert opened[0] >= 0.25
        writer.transport.abort()
        await listener.close()

    asyncio.run(main())


@asynccontextmanager
async def knocking(broker: Broker, number: int) -> AsyncIterator[list[asyncio.StreamWriter]]:
    """Connections that say nothing by themselves."""
    port = parse_address(broker.listening).port
    crowd = [(await asyncio.open_connection("127.0.0.1", port))[1] for _ in range(number)]
    try:
        yield crowd
    finally:
        for writer in crowd:
            writer.close()


@both_loops
@pytest.mark.parametrize("limit", ["OPENING_LIMIT", "HANDSHAKE_LIMIT"])
def test_a_crowd_that_never_finishes_its_handshake_keeps_nobody_out(run, limit, certificates, monkeypatch):
    monkeypatch.setattr(listening, limit, 4)

    async def main() -> None:
        # The time that the crowd takes is also the one that a loaded machine has for the handshake of who is no part of it.
        async with serving(tls_cert=certificates.cert, hello_timeout=1.5) as broker, knocking(broker, 6) as crowd:
            if limit == "HANDSHAKE_LIMIT":
                for writer in crowd:
                    writer.write(b"\x16")
            await attach(broker.listening, tls_ca=certificates.ca)

    run(main())


@both_loops
def test_a_crowd_that_says_nothing_is_not_waited_for(run, certificates):
    async def main() -> None:
        options = {"tls_cert": certificates.cert, "hello_timeout": DEADLINE_S}
        async with serving(**options) as broker, knocking(broker, 2 * listening.HANDSHAKE_LIMIT):
            await attach(broker.listening, tls_ca=certificates.ca)

    run(main())


FORKING = """
import asyncio, os, socket, sys, uvloop
from eventsh.address import Address
from eventsh.options import Options
from eventsh.testing.recorder import Recorder
from eventsh.transports.tcp import TcpTransport

def connected():
    found = 0
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            with socket.socket(fileno=os.dup(fd)) as sock:
                sock.getpeername()
                found += 1
        except OSError:
            pass
    return found

async def main():
    transport = TcpTransport(Options(tls_cert=sys.argv[1], tls_ca=sys.argv[2]))
    if sys.argv[3] == "connecting":
        sock = socket.create_server(("127.0.0.1", 0))
        task = asyncio.ensure_future(transport.connect(
            Address("tcp", host="127.0.0.1", port=sock.getsockname()[1]), lambda connection: Recorder()))
    else:
        listener = await transport.listen(Address("tcp", host="127.0.0.1", port=0), lambda connection: Recorder())
        sock = socket.create_connection(listener.address.removeprefix("tcp://").split(":"))
        sock.send(b"\\x16")
    standing = connected() + 1
    while connected() < standing: await asyncio.sleep(0.001)
    # Until its handshake is under way.
    await asyncio.sleep(0.1)
    if (pid := os.fork()) == 0:
        os._exit(connected())
    print(standing - os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    os._exit(0)
uvloop.run(main()) if sys.argv[4] == "uvloop" else asyncio.run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("end", ["connecting", "accepting"])
def test_a_child_that_is_forked_during_a_handshake_does_not_have_the_connection(end, loop, certificates):
    done = subprocess.run(
        # Python 3.12 warns of the threads that name resolution may have left.
        [
            sys.executable,
            "-W",
            "ignore::DeprecationWarning",
            "-c",
            FORKING,
            certificates.cert,
            certificates.ca,
            end,
            loop,
        ],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert (done.stdout.strip(), done.stderr) == ("1", "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tls_cert": "missing"}, "tls_cert: .*missing can't be read: No such file"),
        ({"tls_cert": "ca"}, "tls_cert: .*ca.pem can't be used"),
        ({"tls_cert": "cert", "tls_key": "missing"}, "tls_key: .*missing can't be read"),
        ({"tls_cert": "cert", "tls_key": "ca"}, "tls_cert: .* can't be used"),
        ({"tls_cert": "open"}, r"holds a key and can be used by others \(mode 0644\): chmod o-rwx it"),
    ],
    ids=str,
)
def test_a_certificate_that_can_not_be_used_is_refused_when_it_listens(options, words, certificates, tmp_path):
    open_key = tmp_path / "open.pem"
    open_key.write_bytes(Path(certificates.cert).read_bytes())
    open_key.chmod(0o644)
    files = {"missing": "/nowhere/missing", "ca": certificates.ca, "cert": certificates.cert, "open": str(open_key)}
    with pytest.raises(ConfigureError, match=words):
        asyncio.run(listen("tcp://127.0.0.1:0", {name: files[file] for name, file in options.items()}))


def test_trusted_certificates_that_can_not_be_read_are_refused(certificates):
    with pytest.raises(ConfigureError, match=r"tls_ca: .*token can't be used: no certificate in it"):
        asyncio.run(connect(tls_ca=certificates.token))
    with pytest.raises(ConfigureError, match="tls_ca: /nowhere can't be used: No such file"):
        asyncio.run(connect(tls_ca="/nowhere"))


async def connect(**options: Any) -> None:
    async with serving() as broker:
        transport, address = find_endpoint(broker.listening, Options.from_values(**options))
        await transport.connect(address, lambda connection: Recorder())
