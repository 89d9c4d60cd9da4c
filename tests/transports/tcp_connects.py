"""Ten thousand connections over TCP that come and go, and what they leave behind: nothing, or the test fails.

pytest -q --timeout 600 tests/transports/tcp_connects.py -k come_and_go
"""

from __future__ import annotations

from tests.transports import test_tcp

__all__: list[str] = []


class TestManyConnections(test_tcp.TestConformance):
    connects = 10_000
