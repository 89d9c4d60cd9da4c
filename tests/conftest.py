"""What property tests have in common: no example of theirs fails because the machine was busy with something else."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("eventsh", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("eventsh")
