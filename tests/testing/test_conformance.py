"""The conformance kit finds what is wrong: transports with one fault each fail the test that is about it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

# Of a whole pytest process.
DEADLINE_S = 160.0

HEAD = """
    import asyncio, os
    from eventsh.hookspecs import hookimpl
    from eventsh.testing import TransportConformance
    from eventsh.transports.inproc import InprocConnection, InprocTransport
    from eventsh.transports.stream import StreamConnection
    from eventsh.transports.unix import UnixTransport
"""
# The fault, the transport that has it, and the tests that must fail.
FAULTS = {
    "a frame is lost": (
        """
    true_send = InprocConnection.send
    InprocConnection.send = lambda self, frames: true_send(self, list(frames)[:999])
""",
        "inproc:{directory}",
        "test_many_frames_in_one_call_arrive",
    ),
    "frames overtake each other": (
        """
    true_send = InprocConnection.send
    InprocConnection.send = lambda self, frames: true_send(self, list(frames)[::-1])
""",
        "inproc:{directory}",
        "test_frames_keep_their_boundaries_and_their_order",
    ),
    "the limit is not kept": (
        "    InprocConnection.limit_body = lambda self, max_body_bytes: None\n",
        "inproc:{directory}",
        "test_a_body_may_have_any_size_up_to_the_limit",
    ),
    "frames are shared": (
        """
    import eventsh.transports.inproc
    eventsh.transports.inproc.bytearray = lambda frame: frame
""",
        "inproc:{directory}",
        "test_the_receiver_owns_its_frames",
    ),
    "the end is told out of a call": (
        """
    true_abort = InprocConnection.abort
    def abort(self):
        true_abort(self)
        self._turn()
    InprocConnection.abort = abort
""",
        "inproc:{directory}",
        "test_abort_ends_both_sides_at_once",
    ),
    "connections are kept": (
        """
    kept = []
    true_close = InprocConnection.close
    InprocConnection.close = lambda self: (kept.append(self), true_close(self))
""",
        "inproc:{directory}",
        "test_connections_that_come_and_go_leave_nothing_behind",
    ),
    "descriptors are kept": (
        """
    true_made = StreamConnection.connection_made
    def connection_made(self, transport):
        true_made(self, transport)
        os.dup(self._descriptor)
    StreamConnection.connection_made = connection_made
""",
        "unix:{directory}/s",
        "test_connections_that_come_and_go_leave_nothing_behind",
    ),
    "a frame is delivered in part": (
        """
    from eventsh.protocol.frame import FrameDecoder
    true_lost = StreamConnection.connection_lost
    def connection_lost(self, exc):
        if rest := bytearray(self._decoder._rest):
            self._receiver.frames_received([rest])
        true_lost(self, exc)
    StreamConnection.connection_lost = connection_lost
""",
        "unix:{directory}/s",
        "test_of_a_listener_killed_in_the_midst_of_a_frame_only_whole_frames_arrive",
    ),
    "every address will do": (
        "    InprocTransport.check_address = lambda self, address: None\n",
        "inproc:{directory}",
        "test_an_address_that_can_not_be_one_is_refused_everywhere",
    ),
    "a plain socket has words of its own for not now": (
        """
    import socket
    from eventsh.transports.unix import UnixTransport
    class Socket(socket.socket):
        def recv(self, *arguments):
            try:
                return super().recv(*arguments)
            except BlockingIOError as error:
                raise RuntimeError("not now") from error
    true_dial = UnixTransport.dial
    def dial(self, address, timeout_s):
        sock = Socket(fileno=true_dial(self, address, timeout_s).detach())
        sock.settimeout(timeout_s)
        return sock
    UnixTransport.dial = dial
""",
        "unix:{directory}/s",
        "test_a_plain_socket_is_a_connection_too",
    ),
    "a live endpoint is displaced": (
        """
    import eventsh.transports.unix
    eventsh.transports.unix._is_stale = lambda path: True
""",
        "unix:{directory}/s",
        "test_an_endpoint_that_accepts_connections_is_not_displaced",
    ),
    "a listener believes that its files are gone": (
        """
    from eventsh.transports.listening import StreamListener
    StreamListener.keep = lambda self: False
""",
        "unix:{directory}/s",
        "test_an_endpoint_that_accepts_connections_is_not_displaced",
    ),
    "a stale endpoint stays": (
        """
    import eventsh.transports.unix
    eventsh.transports.unix._remove_stale = lambda address: None
""",
        "unix:{directory}/s",
        "test_a_stale_endpoint_is_taken_over",
    ),
}


# Each in a pytest of its own: every third is enough to see that a fault is found.
@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, marks=[pytest.mark.long] if number % 3 else []) for number, fault in enumerate(FAULTS)],
)
def test_a_fault_fails_the_test_that_is_about_it(pytester: pytest.Pytester, fault: str) -> None:
    code, address, test = FAULTS[fault]
    tests = "\n    class TestFaulty(TransportConformance):\n        def make_address(self, directory):\n"
    # What waits in vain must not wait for as long as the kit would.
    hurry = "    from eventsh.testing import bench, recorder\n    recorder.DEADLINE_S = bench.DEADLINE_S = 2.0\n"
    pytester.makepyfile(f"{HEAD}{hurry}{code}{tests}            return f'{address}'\n")
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "-q", "-k", f"{test} and asyncio", timeout=DEADLINE_S
    )
    outcomes = result.parseoutcomes()
    assert outcomes.get("failed", 0) >= 1, result.stdout.str()
    assert "passed" not in outcomes or "any_size" in test


def test_a_class_without_an_address_says_so(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from eventsh.testing import TransportConformance

        class TestMine(TransportConformance):
            pass
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-k", "both_sides and asyncio", timeout=DEADLINE_S)
    result.stdout.fnmatch_lines(["*NotImplementedError: TestMine must give an address: define make_address*"])


def test_every_case_of_the_kit_is_in_the_class() -> None:
    from eventsh.testing import TransportConformance, cases

    for path in Path(cases.__file__).parent.glob("*.py"):
        for line in path.read_text().splitlines():
            if line.startswith("class ") and line.endswith("Cases:"):
                name = line.removeprefix("class ").removesuffix(":")
                assert name in {base.__name__ for base in TransportConformance.__mro__}, name
