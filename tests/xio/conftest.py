"""What tests of XIO share: a network namespace for each test that makes a TAP."""

from __future__ import annotations

from tests.dpf.conftest import tap_name

__all__ = ["tap_name"]
