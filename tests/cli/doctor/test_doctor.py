"""`graphopt doctor`, in order and on broken surroundings: what is wrong comes first, with a way out."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import graphopt
from graphopt.base.cache_directory import temporary_directory
from graphopt.cli import cli
from graphopt.cli.doctor import devices, doctor, surroundings
from graphopt.cli.doctor.finding import Finding

needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc, where no folder can be made")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(tmp_path / "cache"))
    temporary_directory.cache_clear()


@pytest.fixture
def no_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is broken does not depend on how fast the machine is."""
    monkeypatch.setattr(doctor, "_DEVICES", ())


def examined(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], str]:
    """The exit code, what JSON says, and the text."""
    code = cli.main(["doctor", "--json"])
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "graphopt.doctor/1" and data["ok"] == (code == 0) == (not data["problems"])
    assert all(each["remedy"] for each in data["problems"])
    text = doctor.as_text([Finding(**each) for each in data["findings"]])
    assert "Traceback" not in text
    return code, data, text


def problem(data: dict[str, Any], group: str) -> str:
    (found,) = (each["problem"] for each in data["problems"] if each["group"] == group)
    return str(found)


def test_variables_that_are_read_are_known_here_and_in_the_documentation() -> None:
    root = Path(graphopt.__file__).parent
    read = {name for path in root.rglob("*.py") for name in re.findall(r'"(GRAPHOPT_[A-Z_]+)"', path.read_text())}
    documented = re.findall(r"^\| `(GRAPHOPT_\w+)`", (root.parent / "docs" / "cli.md").read_text(), re.MULTILINE)
    assert read == set(surroundings.OWN_VARIABLES) == set(documented)


def test_a_machine_in_order(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, data, text = examined(capsys)
    found = {(each["group"], each["name"]): each["text"] for each in data["findings"]}
    assert code == 0, text
    assert text.startswith("graphopt doctor: nothing is wrong\n\nversions\n  Python ")
    assert found["versions", "torch"] == metadata.version("torch")
    assert found["cache", "folder"].startswith(f"{tmp_path / 'cache'}, ")
    assert "GFLOP/s: float32 " in found["devices", "cpu"] and " GB/s" in found["devices", "cpu"]
    assert found["environment", "GRAPHOPT_CACHE_DIR"] == repr(str(tmp_path / "cache"))
    assert "a small library in" in found["compiler", "C++"]
    assert [path.suffix for path in (tmp_path / "cache").iterdir() if path.name.startswith(".")] == []


@pytest.mark.usefixtures("no_devices")
class TestBroken:
    """Surroundings in which something is wrong."""

    def test_no_compiler(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        code, data, text = examined(capsys)
        assert code == 1 and "no C++ compiler (no-such-compiler)" in problem(data, "compiler")
        first, second, third = text.splitlines()[:3]
        assert first.endswith("1 thing is wrong") and second.startswith("  ✗ compiler") and "CXX" in third

    @pytest.mark.parametrize("script", ["echo 'probe.cpp:1: error: no room' >&2; exit 1", "exit 0", "kill -9 $$"])
    def test_a_compiler_that_does_not_work(
        self, script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        broken = tmp_path / "c++"
        broken.write_text(f"#!/bin/sh\n{script}\n")
        broken.chmod(0o755)
        monkeypatch.setenv("CXX", str(broken))
        code, data, _ = examined(capsys)
        assert code == 1 and "makes no library that can be loaded" in problem(data, "compiler")
        assert "no room" not in script or "error: no room" in problem(data, "compiler")

    @needs_proc
    def test_a_home_that_cannot_be_written_to(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delenv("GRAPHOPT_CACHE_DIR")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv("HOME", "/proc")
        code, data, text = examined(capsys)
        assert code == 1 and "cannot be made" in problem(data, "cache")
        assert "GRAPHOPT_CACHE_DIR=/absolute/path" in text

    def test_a_cache_that_cannot_be_named(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("GRAPHOPT_CACHE_DIR", "somewhere")
        monkeypatch.setattr(doctor, "_DEVICES", (("devices", "speed", devices.speeds, "install PyTorch anew"),))
        code, data, _ = examined(capsys)
        assert code == 1 and "must be an absolute path" in problem(data, "cache")
        named = {each["group"] for each in data["problems"]}
        assert named == {"cache"}, "what fails for a reason that is told of is not told of again"

    def test_a_variable_that_is_misspelled(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("GRAPHOPT_CACHE", "/tmp\x1b[31m")
        code, data, text = examined(capsys)
        assert code == 1 and problem(data, "environment") == "GRAPHOPT_CACHE is not heeded"
        assert "\x1b" not in text

    def test_no_pytorch(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        def fails() -> Iterable[Finding]:
            raise OSError("libtorch_cpu.so: cannot open shared object file")

        def asked() -> Iterable[Finding]:
            pytest.fail("devices are asked for without PyTorch")

        monkeypatch.setattr(devices, "torch_itself", fails)
        monkeypatch.setattr(doctor, "_DEVICES", (("devices", "speed", asked, ""),))
        code, data, _ = examined(capsys)
        assert code == 1 and problem(data, "devices").startswith("OSError: libtorch_cpu.so")

    def test_packages_that_are_missing_or_old(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        versions = {"torch": "2.9.1+cpu", "numpy": None, "ortools": None}
        real = surroundings._version
        monkeypatch.setattr(surroundings, "_version", lambda name: versions.get(name, real(name)))
        code, data, text = examined(capsys)
        found = {each["name"]: each["problem"] for each in data["problems"]}
        assert code == 1 and found == {
            "torch": "torch 2.9.1+cpu is older than 2.11",
            "numpy": "numpy is not installed",
        }
        assert "pip install 'graphopt[exact]'" in text


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_cache_that_others_can_write_to_is_said_and_not_wrong(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    (found,) = surroundings.cache_folder()
    assert not found.problem and "others can write to it" in found.text
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o777
