"""What pip installs is the whole package and nothing else, from a wheel and from a source archive alike.

Everything is built from a copy without symbolic links, as a checkout on Windows has it: there git writes a
small text file in place of each link.
"""

from __future__ import annotations

import email
import email.message
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import graphopt

if sys.version_info >= (3, 11):
    import tomllib
else:  # pip, which these tests need anyhow, carries one
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = {"graphopt": "graphopt", **PROJECT["tool"]["setuptools"]["package-dir"]}
#: What else setuptools reads.
FILES = ("pyproject.toml", "LICENSE", PROJECT["project"]["readme"])
BUILD_SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"


def run(*words: object, cwd: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def sources() -> dict[str, Path]:
    """Every source file of the package, by its place in site-packages."""
    return {
        f"{name.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}": path
        for name, folder in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".cpp", ".h", ".typed", ".html", ".css", ".js", ".LICENSE")
        and "__pycache__" not in path.parts
    }


def build_wheel(tree: Path, into: Path) -> Path:
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
        "-w",
        into,
        tree,
        cwd=tree,
    )
    (wheel,) = into.glob("*.whl")
    return wheel


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout without symbolic links."""
    root = tmp_path_factory.mktemp("checkout")
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, root / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    links = [path for path in root.rglob("*") if path.is_symlink()]
    assert {link.relative_to(root).as_posix() for link in links} == {"graphopt/passes", "graphopt/cost_models"}
    for link in links:
        target = link.readlink().as_posix()
        link.unlink()
        link.write_text(target, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tree, tmp_path_factory.mktemp("wheel"))


def test_the_list_of_packages_is_complete() -> None:
    folders = {Path(name).parent.as_posix().replace("/", ".") for name in sources() if name.endswith(".py")}
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(folders)


def test_the_wheel_holds_every_source_file_and_nothing_else(wheel: Path) -> None:
    found = contents(wheel)
    expected = {name: path.read_bytes() for name, path in sources().items()}
    assert {name: data for name, data in found.items() if ".dist-info/" not in name} == expected
    about = f"graphopt-{graphopt.__version__}.dist-info"
    assert {name.partition("/")[0] for name in found} == {"graphopt", about}
    assert found[f"{about}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()


def test_its_metadata_is_whole_and_its_description_can_be_shown_anywhere(wheel: Path) -> None:
    about = email.message_from_bytes(contents(wheel)[f"graphopt-{graphopt.__version__}.dist-info/METADATA"])
    assert about["Version"] == graphopt.__version__ and about["License-Expression"] == "Apache-2.0"
    assert about["Author"] == "graphopt developers" and about["Summary"] and about["Keywords"]
    assert about["Description-Content-Type"] == "text/markdown"
    # A page of a package index has none of the files that a relative link or picture names.
    targets = re.findall(r"\]\(([^)]*)\)|(?:src|href)=\"([^\"]*)\"", str(about.get_payload()))
    assert not [target for pair in targets for target in pair if target and not target.startswith("https://")]


def test_the_source_archive_makes_the_same_wheel(tree: Path, wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-c", BUILD_SDIST, tmp_path, cwd=tree)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    again = build_wheel(tmp_path / archive.name.removesuffix(".tar.gz"), tmp_path / "wheel")
    assert contents(again) == contents(wheel)


def test_the_installed_command_runs(wheel: Path, tmp_path: Path) -> None:
    site, problem = tmp_path / "site", tmp_path / "problem.json"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel, cwd=tmp_path)
    assert {path.name for path in site.iterdir()} - {"bin"} == {p.partition("/")[0] for p in contents(wheel)}
    ours = {"PYTHONPATH": str(site)}
    for name in FOLDERS:
        where = f"import importlib.util; print(importlib.util.find_spec({name!r}).origin)"
        assert Path(run(sys.executable, "-c", where, cwd=tmp_path, environment=ours).strip()).is_relative_to(site)
    command = (sys.executable, site / "bin" / "graphopt") if os.name != "nt" else (site / "bin" / "graphopt.exe",)
    for words in ((sys.executable, "-m", "graphopt"), command):
        assert run(*words, "--version", cwd=tmp_path, environment=ours) == f"graphopt {graphopt.__version__}\n"
    op = {"seconds": 1, "workspace": 0, "inputs": [], "backward": False, "recomputable": True}
    ops = [{**op, "name": "a", "outputs": [0]}, {**op, "name": "b", "inputs": [0], "outputs": [1]}]
    values = [{"bytes": 100}, {"bytes": 50}]
    problem.write_text(json.dumps({"schema": "graphopt.problem/1", "values": values, "ops": ops, "outputs": [1]}))
    words = ("-m", "graphopt", "solve", problem, "--mem-budget", "150", "--json")
    assert json.loads(run(sys.executable, *words, cwd=tmp_path, environment=ours))["schedule"] == [0, 1]


def test_every_entry_point_is_there() -> None:
    points = PROJECT["project"]["entry-points"]["torch_dynamo_backends"].values()
    for point in (*PROJECT["project"]["scripts"].values(), *points):
        module, _, name = point.partition(":")
        text = sources()[f"{module.replace('.', '/')}.py"].read_text(encoding="utf-8")
        assert re.search(rf"^def {name}\(", text, re.MULTILINE)
