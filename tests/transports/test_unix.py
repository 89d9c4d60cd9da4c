from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import socket
import stat
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop

from eventsh.address import Address
from eventsh.errors import ConfigureError, TransportError
from eventsh.protocol.frame import encode_frame
from eventsh.protocol.messages import Error
from eventsh.testing import TransportConformance
from eventsh.testing.recorder import DEADLINE_S, Recorder, event_frame, numbers, turns
from eventsh.transport import Connection, Peer
from eventsh.transports import listening, unix
from eventsh.transports.unix import UnixTransport

OTHER_UID = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
both_loops = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


class TestConformance(TransportConformance):
    def make_address(self, directory: Path) -> str:
        return f"unix:{directory}/s"


@pytest.fixture
def address(tmp_path: Path) -> Address:
    return Address("unix", str(tmp_path / "s"))


def listen_and_close(address: Address) -> None:
    async def main() -> None:
        listener = await UnixTransport().listen(address, lambda connection: Recorder())
        await listener.close()

    asyncio.run(main())


def refusal(address: Address) -> str:
    """The message of the error that listening there must raise."""
    with pytest.raises(TransportError) as caught:
        listen_and_close(address)
    return str(caught.value)


# Frames.


async def until_read(sock: socket.socket) -> None:
    """Until the peer has read all that was sent."""
    async with asyncio.timeout(DEADLINE_S):
        while struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]:
            await asyncio.sleep(0)
    await asyncio.sleep(0)


@both_loops
def test_frames_cut_at_every_byte_are_the_same_frames(run, address):
    stream = bytes(event_frame(1, 30) + event_frame(2, 0) + event_frame(3, 50))

    async def main() -> None:
        accepted: list[Recorder] = []

        def on_connection(connection: Connection) -> Recorder:
            accepted.append(Recorder())
            return accepted[-1]

        listener = await UnixTransport().listen(address, on_connection)
        for cut in range(1, len(stream)):
            sock = UnixTransport().dial(address, 5)
            assert sock is not None
            with sock:
                sock.sendall(stream[:cut])
                await until_read(sock)
                sock.sendall(stream[cut:])
                await until_read(sock)
            await accepted[-1].until(lambda recorder: recorder.lost)
            assert numbers(accepted[-1].frames) == [1, 2, 3]
            assert accepted[-1].lost == [None]
        await listener.close()

    run(main())


@both_loops
def test_a_stream_that_ends_at_any_byte_gives_the_whole_frames_before_it(run, address):
    frames = [event_frame(1, 30), event_frame(2, 0), event_frame(3, 50)]
    stream = b"".join(frames)
    ends = [sum(map(len, frames[:count])) for count in (1, 2, 3)]

    async def main() -> None:
        recorder = Recorder()
        listener = await UnixTransport().listen(address, lambda connection: recorder)
        for cut in range(len(stream)):
            recorder.__init__()  # type: ignore[misc]
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(address.path)
                sock.sendall(stream[:cut])
            await recorder.until(lambda recorder: recorder.lost)
            assert len(numbers(recorder.frames)) == sum(end <= cut for end in ends)
            assert (recorder.lost, recorder.refused) == ([None], [])
        await listener.close()

    run(main())


@both_loops
def test_send_now_reaches_the_kernel_before_it_returns(run, address):
    async def main() -> None:
        connections: list[Connection] = []

        def on_connection(connection: Connection) -> Recorder:
            connections.append(connection)
            return recorder

        recorder = Recorder()
        listener = await UnixTransport().listen(address, on_connection)
        sock = UnixTransport().dial(address, 5)
        assert sock is not None
        with sock:
            while not connections:
                await asyncio.sleep(0.001)
            connections[0].send_now([encode_frame(1, b"now")])
            assert sock.recv(1000, socket.MSG_DONTWAIT) == bytes(encode_frame(1, b"now"))
            # What the kernel has no room for follows in its place.
            large = encode_frame(3, bytes(3_000_000))
            connections[0].send_now([large])
            connections[0].send_now([encode_frame(1, b"last")])
            assert connections[0].unsent_bytes > 0
            received = bytearray()
            sock.setblocking(False)
            async with asyncio.timeout(DEADLINE_S):
                while not received.endswith(b"last"):
                    received += await asyncio.get_running_loop().sock_recv(sock, 1 << 20)
            assert received == large + encode_frame(1, b"last")
        await recorder.until(lambda recorder: recorder.lost)
        await listener.close()

    run(main())


@both_loops
@pytest.mark.parametrize("unread", [False, True], ids=["all read", "some unread"])
def test_what_the_peer_said_last_is_received_although_writing_fails_first(run, address, unread):
    async def main() -> None:
        accepted: list[Recorder] = []

        def on_connection(connection: Connection) -> Recorder:
            accepted.append(Recorder(connection=connection))
            return accepted[-1]

        listener = await UnixTransport().listen(address, on_connection)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(address.path)
            while not accepted:
                await asyncio.sleep(0.001)
            connection = accepted[0].connection
            assert connection is not None
            if unread:
                connection.send_now([event_frame(0)])
            sock.sendall(event_frame(1) + event_frame(2))
        # In the same turn: the loop has not read, and the kernel refuses to write.
        connection.send([event_frame(3)])
        connection.send([event_frame(4), event_frame(5)])
        await accepted[0].until(lambda recorder: recorder.lost)
        assert numbers(accepted[0].frames) == [1, 2]
        # What the peer did not read is no orderly end.
        assert isinstance(accepted[0].lost[0], ConnectionError) if unread else accepted[0].lost == [None]
        await listener.close()

    run(main())


# Addresses.


@pytest.mark.parametrize("extra", [0, 1])
def test_a_path_may_have_107_bytes_and_no_more(tmp_path, extra):
    # Counted in bytes, not in characters.
    path = f"{tmp_path}/é".ljust(106 + extra, "x")
    assert len(os.fsencode(path)) == 107 + extra
    address = Address("unix", path)
    if extra == 0:
        listen_and_close(address)
        return
    with pytest.raises(ConfigureError, match=r"108 bytes.*at most 107.*use a shorter one") as caught:
        listen_and_close(address)
    assert caught.value.option == "address"
    with pytest.raises(ConfigureError):
        UnixTransport().dial(address, 1)


@pytest.mark.parametrize(
    "address", [Address("unix", "/tmp/"), Address("unix", host="host"), Address("unix", "/tmp/\ud800")], ids=str
)
def test_what_can_be_no_path_of_a_socket_is_refused(address):
    with pytest.raises(ConfigureError) as caught:
        UnixTransport().check_address(address)
    assert caught.value.option == "address"


def test_an_option_that_is_not_known_is_refused(address):
    with pytest.raises(
        ConfigureError, match=r"asks for cut, and unix knows nothing of the kind; write unix:/"
    ) as caught:
        UnixTransport().check_address(replace(address, query={"cut": "0.1"}))
    assert caught.value.option == "address"


def test_the_lock_stands_beside_the_socket(address):
    assert UnixTransport().lock_path(address) == f"{address.path}.lock"


# Directories and files.


def test_prepare_makes_a_missing_directory_for_its_user_alone(tmp_path):
    address = Address("unix", str(tmp_path / "new" / "s"))
    UnixTransport().prepare(address)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    UnixTransport().prepare(address)


def test_a_directory_whose_parent_is_missing_is_not_made(tmp_path):
    assert "No such file" in refusal(Address("unix", str(tmp_path / "a" / "b" / "s")))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("umask", [0, 0o777])
def test_the_socket_has_mode_0600_from_the_start_whatever_the_umask(address, umask, monkeypatch):
    modes: list[int] = []
    chmod = os.chmod

    def watched(path: str, mode: int) -> None:
        modes.append(stat.S_IMODE(os.stat(path).st_mode))
        chmod(path, mode)
        modes.append(stat.S_IMODE(os.stat(path).st_mode))

    monkeypatch.setattr(os, "chmod", watched)
    before = os.umask(umask)
    try:
        listen_and_close(address)
    finally:
        os.umask(before)
    assert modes == [0o600 & ~umask, 0o600]


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_directory_that_others_can_write_is_refused(tmp_path, mode):
    tmp_path.chmod(mode)
    message = refusal(Address("unix", str(tmp_path / "s")))
    assert f"{mode:04o}" in message
    assert str(tmp_path) in message


def test_a_shared_directory_with_the_sticky_bit_is_accepted(tmp_path):
    tmp_path.chmod(0o1777)
    listen_and_close(Address("unix", str(tmp_path / "s")))


@as_root
def test_a_directory_of_another_user_is_refused(tmp_path):
    os.chown(tmp_path, OTHER_UID, -1)
    assert f"belongs to user {OTHER_UID}" in refusal(Address("unix", str(tmp_path / "s")))


@as_root
def test_a_directory_that_is_another_users_symlink_is_refused(tmp_path):
    (tmp_path / "real").mkdir(0o700)
    (tmp_path / "link").symlink_to("real")
    listen_and_close(Address("unix", str(tmp_path / "link" / "s")))
    os.lchown(tmp_path / "link", OTHER_UID, -1)
    assert "symbolic link" in refusal(Address("unix", str(tmp_path / "link" / "s")))


@pytest.mark.parametrize("runtime_dir", [False, True])
def test_the_directory_of_the_default_address_must_be_real_and_private(tmp_path, monkeypatch, runtime_dir):
    if runtime_dir:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    name = "eventsh" if runtime_dir else f"eventsh-{os.geteuid()}"
    address = Address("unix", str(tmp_path / name / "events.sock"))
    listen_and_close(address)
    (tmp_path / name).chmod(0o755)
    assert "mode 0700" in refusal(address)
    (tmp_path / name).rename(tmp_path / "real")
    (tmp_path / "real").chmod(0o700)
    (tmp_path / name).symlink_to("real")
    assert "symbolic link" in refusal(address)


def test_a_file_in_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "file").touch()
    assert "Not a directory" in refusal(Address("unix", str(tmp_path / "file" / "x" / "s")))
    assert "is no directory" in refusal(Address("unix", str(tmp_path / "file" / "s")))


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "dangling symlink", "fifo"])
def test_what_is_no_socket_is_never_removed(tmp_path, address, kind):
    path = Path(address.path)
    match kind:
        case "file":
            path.write_text("precious")
        case "directory":
            path.mkdir()
        case "symlink":
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(tmp_path / "target"))
            path.symlink_to("target")
        case "dangling symlink":
            path.symlink_to("nowhere")
        case "fifo":
            os.mkfifo(path)
    before = path.lstat()
    message = refusal(address)
    assert address.path in message
    expected = (
        "symbolic link"
        if "symlink" in kind
        else "is a directory: name a file in it"
        if kind == "directory"
        else "no socket"
    )
    assert expected in message
    assert ("remove it" in message) == (kind != "directory")
    assert path.lstat() == before


@as_root
def test_a_stale_socket_of_another_user_is_left_alone(tmp_path, address):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(address.path)
    os.chown(address.path, OTHER_UID, -1)
    assert f"user {OTHER_UID}" in refusal(address)
    assert os.path.exists(address.path)


def test_close_removes_the_socket_unless_it_is_another_one(address):
    async def main() -> None:
        listener = await UnixTransport().listen(address, lambda connection: Recorder())
        await listener.close()
        assert not os.path.lexists(address.path)
        listener = await UnixTransport().listen(address, lambda connection: Recorder())
        # Renamed rather than removed, so that its inode number can't be used again.
        os.rename(address.path, address.path + ".old")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(address.path)
        await listener.close()
        assert os.path.exists(address.path)

    asyncio.run(main())


def test_a_failure_to_listen_leaves_no_file_and_no_descriptor_behind(tmp_path, address, monkeypatch):
    def fail(path: str, mode: int) -> None:
        raise PermissionError(1, "no")

    monkeypatch.setattr(os, "chmod", fail)
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TransportError, match="can't listen") as caught:
        unix.open_socket(address)
    assert isinstance(caught.value.__cause__, PermissionError)
    assert os.listdir(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == descriptors


# Who is at the other end.


def test_the_kernel_tells_pid_and_uid_of_both_ends(address):
    async def main() -> None:
        peers: list[Peer] = []

        def on_connection(connection: Connection) -> Recorder:
            peers.append(connection.peer)
            return Recorder()

        listener = await UnixTransport().listen(address, on_connection)
        program = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)"
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, address.path)
        async with asyncio.timeout(DEADLINE_S):
            while not peers:
                await asyncio.sleep(0.001)
        process.kill()
        await process.wait()
        await turns(3)
        assert peers == [Peer(f"pid {process.pid}", process.pid, os.geteuid())]
        await listener.close()

    asyncio.run(main())


def start_as_other_user(program: Callable[[str], str], path: str) -> tuple[int, int]:
    """Start a child that runs `program` as another user: its pid, and a pipe that gets what `program` returned.

    Forked and not started afresh: that user may have no right to run this interpreter.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(OTHER_UID, OTHER_UID, OTHER_UID)
            os.write(write_end, program(path).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    return pid, read_end


def answer_of(pid: int, read_end: int) -> str:
    with os.fdopen(read_end) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return answer


def come_three_times(path: str) -> str:
    received = []
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            sock.settimeout(DEADLINE_S)
            with sock.makefile("rb") as stream:
                received.append(Error.decode(bytearray(stream.read())))
    return str([(error.code, "belongs to user" in error.message) for error in received])


def serve_twice(path: str) -> str:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path + ".new")
        listener.listen()
        # Seen by the test only once it listens.
        os.rename(path + ".new", path)
        listener.settimeout(DEADLINE_S)
        return str([listener.accept()[0].recv(1) for _ in range(2)])


@pytest.fixture
def public_address():
    """An address in a directory that other users can reach, which those of pytest are not."""
    import shutil
    import tempfile

    directory = tempfile.mkdtemp(dir="/tmp")
    os.chmod(directory, 0o755)
    yield Address("unix", f"{directory}/s")
    shutil.rmtree(directory)


@as_root
@both_loops
def test_a_client_of_another_user_is_turned_away_and_warned_about_now_and_then(
    run, public_address, caplog, monkeypatch
):
    # Longer than it takes to come three times.
    monkeypatch.setattr(listening, "WARNING_INTERVAL_S", 600.0)

    async def main() -> None:
        accepted: list[Connection] = []

        def on_connection(connection: Connection) -> Recorder:
            accepted.append(connection)
            return Recorder()

        listener = await UnixTransport().listen(public_address, on_connection)
        # As if the modes did not stop that user already.
        os.chmod(public_address.path, 0o666)
        pid, pipe = start_as_other_user(come_three_times, public_address.path)
        answer = await asyncio.to_thread(answer_of, pid, pipe)
        # The reason, and the end.
        assert answer == str([("other_user", True)] * 3)
        assert accepted == []
        await listener.close()

    run(main())
    assert [record.name for record in caplog.records] == ["eventsh"]
    assert f"belongs to user {OTHER_UID}" in caplog.text


@as_root
def test_a_listener_of_another_user_is_not_spoken_to(public_address):
    os.chmod(os.path.dirname(public_address.path), 0o777)
    pid, pipe = start_as_other_user(serve_twice, public_address.path)
    until = time.monotonic() + DEADLINE_S
    while not os.path.exists(public_address.path):
        assert time.monotonic() < until
        time.sleep(0.001)
    with pytest.raises(TransportError, match=f"belongs to user {OTHER_UID}"):
        UnixTransport().dial(public_address, 5)
    with pytest.raises(TransportError, match=f"belongs to user {OTHER_UID}"):
        asyncio.run(UnixTransport().connect(public_address, lambda connection: Recorder()))
    assert answer_of(pid, pipe) == str([b""] * 2)


# dial.


def test_dial_gives_a_socket_that_a_listener_serves(address):
    listening = threading.Event()
    received: list[int] = []

    async def serve() -> None:
        recorder = Recorder()
        listener = await UnixTransport().listen(address, lambda connection: recorder)
        listening.set()
        received.extend(await recorder.until_frames(1))
        await recorder.until(lambda recorder: recorder.lost)
        await listener.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert listening.wait(DEADLINE_S)
    sock = UnixTransport().dial(address, 1.5)
    assert sock is not None
    assert sock.gettimeout() == 1.5
    sock.sendall(event_frame(5))
    sock.close()
    thread.join(DEADLINE_S)
    assert received == [5]


def test_dial_tells_nobody_listens_apart(address):
    with pytest.raises(TransportError, match="nobody listens") as caught:
        UnixTransport().dial(address, 1)
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(address.path)
    with pytest.raises(TransportError, match="nobody listens") as caught:
        UnixTransport().dial(address, 1)
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


def connect_until_full(path: str) -> list[socket.socket]:
    clients: list[socket.socket] = []
    while True:
        clients.append(socket.socket(socket.AF_UNIX))
        clients[-1].setblocking(False)
        try:
            clients[-1].connect(path)
        except BlockingIOError:
            return clients


def close_all(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def test_dial_and_connect_give_up_on_a_backlog_that_stays_full(address, monkeypatch):
    monkeypatch.setattr(unix, "CONNECT_TIMEOUT_S", 0.1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address.path)
        listener.listen(1)
        clients = connect_until_full(address.path)
        start = time.monotonic()
        with pytest.raises(TransportError, match="backlog stayed full"):
            UnixTransport().dial(address, 0.1)
        assert time.monotonic() - start >= 0.1
        with pytest.raises(TransportError, match="backlog stayed full"):
            asyncio.run(UnixTransport().connect(address, lambda connection: Recorder()))
        close_all(clients)


@both_loops
def test_connect_waits_for_room_in_a_full_backlog(run, address):
    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address.path)
            listener.listen(1)
            clients = connect_until_full(address.path)
            recorder = Recorder()
            task = asyncio.ensure_future(UnixTransport().connect(address, lambda connection: recorder))
            await turns(3)
            assert not task.done()
            accepted = [listener.accept()[0] for _ in clients[:-1]]
            connection = await asyncio.wait_for(task, DEADLINE_S)
            connection.close()
            await recorder.until(lambda recorder: recorder.lost)
            close_all(clients + accepted)

    run(main())


# Descriptors.


@both_loops
def test_without_descriptors_accepting_rests_and_goes_on_later(run, address, caplog, monkeypatch):
    monkeypatch.setattr(listening, "WARNING_INTERVAL_S", 600.0)

    async def main() -> None:
        accepted: list[Connection] = []
        lost: list[Recorder] = []

        def on_connection(connection: Connection) -> Recorder:
            accepted.append(connection)
            lost.append(Recorder())
            return lost[-1]

        listener = await UnixTransport().listen(address, on_connection)
        clients = []
        for _ in range(5):
            clients.append(socket.socket(socket.AF_UNIX))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(sock.fileno() for sock in clients) + 1, hard))
        fillers = fill_descriptors()
        try:
            for sock in clients:
                sock.connect(address.path)
            async with asyncio.timeout(DEADLINE_S):
                while not caplog.records:
                    await asyncio.sleep(0.01)
            await turns()
            assert accepted == []
        finally:
            close_all(fillers)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        async with asyncio.timeout(DEADLINE_S):
            while len(accepted) < 5:
                await asyncio.sleep(0.01)
        close_all(clients)
        for recorder in lost:
            await recorder.until(lambda recorder: recorder.lost)
        await listener.close()

    run(main())
    assert len(caplog.records) == 1
    assert "Too many open files" in caplog.text


def fill_descriptors() -> list[socket.socket]:
    fillers: list[socket.socket] = []
    while True:
        try:
            fillers.append(socket.socket(socket.AF_UNIX))
        except OSError:
            return fillers


# Start-up.


def test_importing_it_imports_no_asyncio():
    program = (
        "import sys, eventsh.transports.unix; print([m for m in ('asyncio', 'pluggy', 'logging') if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=DEADLINE_S
    )
    assert output.stdout == "[]\n"
