"""Which backend runs, who decides, and what is said when one cannot."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from core.wkv import available_backends, build, operator, use_backend, wkv7

_NATIVE = ["native"] if available_backends()["native"] is None else []


@pytest.fixture
def calls(monkeypatch):
    """The names of the backends that were run, in order; three stand-ins and one that cannot run."""
    seen = []

    def spy(name):
        def run(r, log_w, k, v, a, b, state, reset, return_state):
            seen.append(name)
            return v.clone(), None

        return run

    for name in list(operator.BACKENDS):
        monkeypatch.setitem(operator.BACKENDS, name, operator.Backend(spy(name), lambda: None))
    broken = operator.Backend(spy("broken"), lambda: "its licence has expired")
    monkeypatch.setitem(operator.BACKENDS, "broken", broken)
    monkeypatch.setattr(operator, "wkv7_reference", spy("reference"))
    monkeypatch.setattr(operator.native, "ready", lambda: True)
    monkeypatch.delenv("GREYLAG_WKV", raising=False)
    return seen


@pytest.fixture
def inputs(make):
    return make(1, 3, 1, 4, 4).tensors


def test_every_backend_is_available_or_says_why_in_a_sentence():
    backends = available_backends()
    assert backends["reference"] is None
    assert backends["chunked"] is None
    for name, reason in backends.items():
        if reason is not None:
            assert len(reason) > 20, name
            assert " " in reason, name
            assert "\n" not in reason, name


def test_a_cpu_takes_the_compiled_kernel_else_the_chunks(calls, inputs, monkeypatch):
    wkv7(*inputs)
    wkv7(*(x.double() for x in inputs))
    monkeypatch.setattr(operator.native, "ready", lambda: False)
    wkv7(*inputs)
    assert calls == ["native", "chunked", "chunked"]


def test_argument_before_block_before_environment(calls, inputs, monkeypatch):
    monkeypatch.setenv("GREYLAG_WKV", "reference")
    wkv7(*inputs)
    with use_backend("fla"):
        wkv7(*inputs)
        with use_backend("chunked"):
            wkv7(*inputs)
        wkv7(*inputs)
        wkv7(*inputs, backend="reference")
    wkv7(*inputs)
    assert calls == ["reference", "fla", "chunked", "fla", "reference", "reference"]


def test_an_empty_environment_variable_is_none(calls, inputs, monkeypatch):
    monkeypatch.setenv("GREYLAG_WKV", "")
    wkv7(*inputs)
    assert calls == ["native"]


def test_a_block_ends_with_an_error_too(calls, inputs):
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    wkv7(*inputs)
    assert calls == ["native"]


def _ways(name, inputs, monkeypatch, way):
    if way == "argument":
        wkv7(*inputs, backend=name)
    elif way == "environment":
        monkeypatch.setenv("GREYLAG_WKV", name)
        wkv7(*inputs)
    else:
        with use_backend(name):
            wkv7(*inputs)


every_way = pytest.mark.parametrize("way", ["argument", "environment", "block"])


@every_way
def test_an_unknown_name_is_answered_with_the_names(calls, inputs, monkeypatch, way):
    with pytest.raises(ValueError, match=r"'chunkd'.*reference, chunked, native, fla") as caught:
        _ways("chunkd", inputs, monkeypatch, way)
    assert "\n" not in str(caught.value)
    assert calls == []


@every_way
def test_an_unavailable_backend_says_why(calls, inputs, monkeypatch, way):
    with pytest.raises(ValueError, match=r"'broken' cannot run here: its licence has expired"):
        _ways("broken", inputs, monkeypatch, way)
    assert calls == []


def test_a_failed_block_leaves_nothing_behind(calls, inputs):
    for name in ("broken", "chunkd"):
        with pytest.raises(ValueError), use_backend(name):
            pytest.fail("the block must not run")
    wkv7(*inputs)
    assert calls == ["native"]


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("state", [True, False])
def test_backends_agree_in_shape_and_dtype_for_every_length(make, steps, state):
    case = make(2, 5, 2, 8, 12, state=state)
    parts = [x[:, :steps] for x in case.tensors]
    found = [wkv7(*parts, case.state, backend=name) for name in ("reference", "chunked", *_NATIVE)]
    for other in found[1:]:
        for x, y in zip(found[0], other, strict=True):
            assert x.shape == y.shape
            assert x.dtype is y.dtype
            torch.testing.assert_close(x, y)


def test_with_a_compiler_there_is_a_native_kernel():
    if build.find_compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    assert available_backends()["native"] is None


def test_without_a_compiler_the_reason_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr(build, "find_compiler", lambda: None)
    library = build.library.__wrapped__()
    assert library.handle is None
    assert "no C++ compiler was found" in (library.reason or "")
    assert "apt install g++" in (library.reason or "")
    with pytest.raises(RuntimeError, match="no C\\+\\+ compiler"):
        library.require()


def test_a_compiler_that_fails_is_told_and_leaves_nothing(monkeypatch, tmp_path):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\n[ $1 = --version ] && exit 0\necho 'error: out of luck' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("GREYLAG_CACHE", str(tmp_path / "cache"))
    assert "out of luck" in (build.library.__wrapped__().reason or "")
    assert not list((tmp_path / "cache").glob("*.so"))


@pytest.mark.skipif(not _NATIVE, reason="the native kernel cannot be compiled on this machine")
def test_processes_that_start_together_compile_once(tmp_path):
    code = "from core.wkv import build; import sys; sys.exit(build.library().reason is not None)"
    environment = {**os.environ, "GREYLAG_CACHE": str(tmp_path)}
    several = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(3)]
    assert [process.wait(timeout=120) for process in several] == [0, 0, 0]
    assert len(list(tmp_path.glob("*.so"))) == 1


def test_importing_the_operator_costs_no_fla():
    """fla takes seconds to import and probes for a GPU: only its use may pay for it."""
    code = "import sys, core.wkv; core.wkv.available_backends(); sys.exit('fla' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
