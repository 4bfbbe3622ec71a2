"""Machine code is compiled once, kept where nobody else can write, and loaded only where it is whole."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from graphopt.base import compiler
from graphopt.base.cache_directory import cache_directory, private_directory, temporary_directory
from graphopt.base.compiler import Recipe, find_compiler, load_library
from graphopt.base.errors import CompileError, UsageError

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
needs_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs another user's file")
ANOTHER_USER = 12345

#: A process that loads the library of argv[1], and prints what it gives and every warning.
CODE = """
import sys, warnings
from pathlib import Path
from graphopt.base.compiler import Recipe, load_library
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        given = load_library(Recipe("answer", (Path(sys.argv[1]),), ("-O0",))).answer()
print(given, *(w.message for w in caught))
"""


@pytest.fixture(autouse=True)
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The cache of these tests; what was said once before is said again."""
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(tmp_path / "cache"))
    temporary_directory.cache_clear()
    yield tmp_path / "cache"
    temporary_directory.cache_clear()


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    source = tmp_path / "answer.cpp"
    source.write_text('extern "C" int answer() { return 42; }')
    return Recipe("answer", (source,), ("-O0",))


def load(recipe: Recipe) -> int:
    """What the library gives, with no word said."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return int(load_library(recipe).answer())


def start(recipe: Recipe, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CODE, str(recipe.sources[0])]
    environment = os.environ | variables
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def never_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_compiled", lambda *_: pytest.fail("compiled again"))


@needs_compiler
def test_it_is_compiled_once(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, cached: Path) -> None:
    assert load(recipe) == 42
    (made,) = cached.iterdir()
    assert made.name.startswith("answer-") and made.suffix == ".so"
    assert stat.S_IMODE(cached.stat().st_mode) == 0o700
    never_compile(monkeypatch)
    assert load(recipe) == 42


@needs_compiler
def test_another_text_or_flag_is_another_library(recipe: Recipe, cached: Path) -> None:
    load(recipe)
    load(Recipe("answer", recipe.sources, ("-O1",)))
    load(Recipe("answer", recipe.sources, ("-O0",), made_for="another"))
    recipe.sources[0].write_text('extern "C" int answer() { return 43; }')
    assert load(recipe) == 43
    assert len(list(cached.iterdir())) == 4


@needs_compiler
@pytest.mark.parametrize("damage", ["cut short", "empty", "changed", "a folder", "writable by others"])
def test_a_damaged_library_is_made_again(recipe: Recipe, cached: Path, damage: str) -> None:
    load(recipe)
    (made,) = cached.iterdir()
    content = made.read_bytes()
    if damage == "a folder":
        made.rename(made.with_stem(f"{made.stem}0"))
        made.with_stem(f"{made.stem}1").mkdir()
    elif damage == "writable by others":
        made.chmod(0o666)
    else:
        made.unlink()  # in place it would end this process, which has it loaded
        left = {"cut short": content[: len(content) // 2], "empty": b"", "changed": content[:-16] + bytes(range(16))}
        made.write_bytes(left[damage])
    assert start(recipe).communicate(timeout=60)[0] == "42\n"
    assert made.read_bytes() == content and not made.stat().st_mode & 0o022


@needs_compiler
def test_two_processes_at_once_compile_once(recipe: Recipe, cached: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.write_text(f'#!/bin/sh\necho x >> {tmp_path}/calls\nsleep 0.5\nexec {find_compiler()} "$@"\n')
    slow.chmod(0o755)
    running = [start(recipe, CXX=str(slow)) for _ in range(3)]
    assert [process.communicate(timeout=60)[0] for process in running] == ["42\n"] * 3
    assert (tmp_path / "calls").read_text().count("x") == 2  # one source and the linker
    assert len(list(cached.iterdir())) == 1


@needs_compiler
def test_a_compile_that_is_killed_leaves_nothing_in_the_way(recipe: Recipe, cached: Path, tmp_path: Path) -> None:
    stuck = tmp_path / "stuck"
    stuck.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexec sleep 30\n")
    stuck.chmod(0o755)
    process = start(recipe, CXX=str(stuck), TMPDIR=str(tmp_path))
    while not (tmp_path / "started").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(cached.iterdir()) == []
    assert start(recipe).communicate(timeout=60)[0] == "42\n"


@needs_compiler
def test_what_the_compiler_says_is_passed_on(recipe: Recipe, cached: Path) -> None:
    recipe.sources[0].write_text("this is no C++")
    with pytest.raises(CompileError, match=r"(?s)exit status 1.*answer.cpp"):
        load_library(recipe)
    assert list(cached.iterdir()) == []


@pytest.mark.parametrize("named", ["no-such-compiler", "false", "/dev/null"])
def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, cached: Path, named: str) -> None:
    monkeypatch.setenv("CXX", named)
    with pytest.raises(CompileError, match=named.rpartition("/")[2]):
        load_library(recipe)
    assert not cached.exists() or list(cached.iterdir()) == []


@needs_compiler
def test_a_compiler_that_makes_no_library(recipe: Recipe, tmp_path: Path) -> None:
    fake = tmp_path / "fake"
    fake.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho nonsense > "$2"\n')
    fake.chmod(0o755)
    with pytest.raises(CompileError, match=r"invalid ELF header|not a mach-o|too short"):
        load_library(recipe, str(fake))


@needs_compiler
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702])
def test_in_a_folder_that_others_can_write_to_a_private_one_is_made(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, cached: Path, mode: int
) -> None:
    cached.mkdir()
    cached.chmod(mode)
    assert load(recipe) == 42
    (inside,) = cached.iterdir()
    assert inside.name == f"only-{os.geteuid()}" and stat.S_IMODE(inside.stat().st_mode) == 0o700
    assert len(list(inside.iterdir())) == 1
    never_compile(monkeypatch)
    assert load(recipe) == 42


@needs_compiler
@needs_root
def test_a_folder_that_another_user_owns_is_not_loaded_from(recipe: Recipe, cached: Path) -> None:
    load(recipe)
    (planted,) = cached.iterdir()
    os.chown(cached, ANOTHER_USER, ANOTHER_USER)
    assert load(recipe) == 42
    assert {path.name for path in cached.iterdir()} == {planted.name, f"only-{os.geteuid()}"}


@needs_compiler
@needs_root
@pytest.mark.parametrize("planted", ["folder", "symlink", "file"])
def test_where_the_private_folder_is_another_users_a_temporary_one_is_used(
    recipe: Recipe, cached: Path, tmp_path: Path, planted: str
) -> None:
    cached.mkdir()
    cached.chmod(0o777)
    inside = cached / f"only-{os.geteuid()}"
    if planted == "file":
        inside.write_text("in the way")
    else:
        folder = inside if planted == "folder" else tmp_path / "theirs"
        folder.mkdir()
        os.chown(folder, ANOTHER_USER, ANOTHER_USER)
        if planted == "symlink":
            inside.symlink_to(folder)
    printed = start(recipe).communicate(timeout=60)[0]
    assert printed.startswith("42 ") and "others can write to it" in printed and printed.count("kept") == 1
    assert inside.is_file() or list(inside.iterdir()) == []


@needs_compiler
@needs_root
def test_a_symlink_as_cache_counts_as_what_it_leads_to(recipe: Recipe, cached: Path, tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    mine.mkdir(mode=0o700)
    theirs.mkdir(mode=0o755)
    os.chown(theirs, ANOTHER_USER, ANOTHER_USER)
    cached.symlink_to(mine)
    load(recipe)
    assert [path.suffix for path in mine.iterdir()] == [".so"]
    cached.unlink()
    cached.symlink_to(theirs)
    load(recipe)
    assert [path.name for path in theirs.iterdir()] == [f"only-{os.geteuid()}"]


@needs_compiler
@needs_root
def test_a_library_that_another_user_owns_is_not_loaded(recipe: Recipe, cached: Path) -> None:
    load(recipe)
    (made,) = cached.iterdir()
    os.chown(made, ANOTHER_USER, ANOTHER_USER)
    assert load(recipe) == 42
    assert made.stat().st_uid == os.geteuid()


@pytest.mark.skipif(sys.platform != "linux", reason="paths through /proc")
def test_a_folder_that_is_moved_in_after_the_look_is_not_used(cached: Path, tmp_path: Path) -> None:
    with private_directory() as folder:
        cached.rename(tmp_path / "aside")
        cached.mkdir()
        (cached / "planted").touch()
        assert list(folder.iterdir()) == []


@needs_compiler
@needs_root
def test_a_cache_that_is_only_read(recipe: Recipe, cached: Path, tmp_path: Path) -> None:
    """Loads from it without a word; what is not in it is compiled for the process, which is said."""
    tmp_path.chmod(0o755)
    cached.mkdir(mode=0o755)
    code = CODE.replace("with", f"import os\nos.seteuid({ANOTHER_USER})\nwith", 1)  # imports as who owns them
    command = [sys.executable, "-c", code, str(recipe.sources[0])]
    everybodys = tmp_path / "tmp"
    everybodys.mkdir()
    everybodys.chmod(0o1777)
    for parent in tmp_path.parents:
        parent.chmod(parent.stat().st_mode | 0o011)

    def another_users() -> str:
        environment = os.environ | {"TMPDIR": str(everybodys)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done.stdout + done.stderr

    first = another_users()
    assert first.startswith("42 ") and "cannot be written to" in first and first.count("kept") == 1
    assert list(cached.iterdir()) == []
    load(recipe)
    (made,) = cached.iterdir()
    made.chmod(0o644)
    assert another_users() == "42\n"


@needs_compiler
def test_a_cache_that_cannot_be_made(recipe: Recipe, cached: Path) -> None:
    cached.write_text("a file in the way")
    printed = start(recipe).communicate(timeout=60)[0]
    assert printed.startswith("42 ") and "cannot be made" in printed and printed.count("kept") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the XDG variables")
@pytest.mark.parametrize("value", ["", ".", "relative/cache", None])
def test_an_empty_or_relative_variable_counts_as_unset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", "")
    if value is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache_directory() == tmp_path / "home" / ".cache" / "graphopt"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "graphopt"


def test_a_relative_cache_of_our_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", "cache")
    with pytest.raises(UsageError, match="GRAPHOPT_CACHE_DIR must be an absolute path, not 'cache'"):
        cache_directory()


@needs_compiler
@pytest.mark.parametrize("home", ["none", "", "relative"])
def test_without_a_home_a_temporary_folder_is_used_and_goes_with_the_process(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, tmp_path: Path, home: str
) -> None:
    monkeypatch.delenv("GRAPHOPT_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    if home != "none":
        monkeypatch.setenv("HOME", home)
    (tmp_path / "tmp").mkdir()
    nobody = "import pwd\npwd.getpwuid = lambda _: {}['nobody']\n" if home == "none" else ""
    command = [sys.executable, "-c", nobody + CODE, str(recipe.sources[0])]
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True).stdout
    if home == "":  # Python takes an empty one for the root folder
        assert printed.startswith("42")
        return
    assert printed.startswith("42 there is no home directory") and printed.count("kept") == 1
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not (tmp_path / "relative").exists()


@needs_compiler
def test_a_library_lying_in_the_current_folder_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, cached: Path, tmp_path: Path
) -> None:
    """What XDG_CACHE_HOME="" did."""
    load(recipe)
    (made,) = cached.iterdir()
    (tmp_path / "current" / "graphopt").mkdir(parents=True)
    shutil.copy(made, tmp_path / "current" / "graphopt")
    monkeypatch.chdir(tmp_path / "current")
    monkeypatch.delenv("GRAPHOPT_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert load(recipe) == 42
    assert len(list((tmp_path / "home" / ".cache" / "graphopt").iterdir())) == 1
