"""The cases of the conformance kit, by what they are about. `TransportConformance` is all of them."""

from __future__ import annotations
