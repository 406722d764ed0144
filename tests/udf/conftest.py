"""The interpreter and the set arithmetic, compiled and uncompiled: tests that take these fixtures run with both."""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType

import pytest

from xok_host.abi import accel

_PURE: dict[str, ModuleType] = {}


def _module(name: str, way: str) -> ModuleType:
    if way == "compiled":
        if os.environ.get("XOK_PURE") == "1":
            pytest.skip("XOK_PURE=1: nothing compiled to test")
        # Not at the top: this file is read before the session has brought the compiled modules up to date.
        module = importlib.import_module(name)
        assert (module.__file__ or "").endswith(".so")
        return module
    if name not in _PURE:
        spec = importlib.util.spec_from_file_location(f"pure_{name.rpartition('.')[2]}", accel.source_path(name))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        _PURE[name] = module
    return _PURE[name]


@pytest.fixture(params=["compiled", "pure"], scope="session")
def interp(request: pytest.FixtureRequest) -> ModuleType:
    return _module("xok_host.kernel.xn.interp", request.param)


@pytest.fixture(params=["compiled", "pure"], scope="session")
def sets(request: pytest.FixtureRequest) -> ModuleType:
    return _module("xok_host.kernel.xn.udf", request.param)
