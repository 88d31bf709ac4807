"""The console scripts: Ctrl-C at their start, and ``nbclient`` where Jupyter's is, too.

An installation is a directory of copies on the path of another interpreter; an
installer that copies one package over another is ``shutil``.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer

import nbnet
from nbnet import entry
from nbnet.entry import _THEIRS

SOURCES = Path(nbnet.__file__).parents[1]
DEPENDENCIES = Path(typer.__file__).parents[1]
PACKAGES = ("nbnet", "nbclient", "loadgen")

# What Jupyter's package consists of. None of it may be run: it says so if it is.
THEIRS = ["__init__.py", "_version.py", "cli.py", "client.py", "exceptions.py"]
THEIRS += ["jsonutil.py", "output_widget.py", "py.typed", "util.py"]
LOUD = "raise SystemExit('the other package was run')\n"


def install_ours(site: Path) -> None:
    # With what is compiled, as installers leave it; the times of the sources are kept.
    for package in PACKAGES:
        # Other processes write compiled files there meanwhile.
        compiled = shutil.ignore_patterns("__pycache__")
        shutil.copytree(SOURCES / package, site / package, dirs_exist_ok=True, ignore=compiled)


def install_theirs(site: Path) -> None:
    directory = site / "nbclient"
    directory.mkdir(parents=True, exist_ok=True)
    for name in THEIRS:
        (directory / name).write_text(LOUD)


def uninstall_theirs(site: Path) -> None:
    for name in THEIRS:
        (site / "nbclient" / name).unlink(missing_ok=True)


def run(path: list[Path], *program: str) -> subprocess.CompletedProcess[str]:
    """Run a program with these directories and the dependencies on its path.

    ``-S`` keeps the sources away, which an editable installation puts there.
    """
    return subprocess.run(
        [sys.executable, "-S", *program],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=path[0],
        env=environment(*path, DEPENDENCIES),
    )


def environment(*path: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}


SCRIPT = ("-c", "import sys; from nbnet.entry import nbclient; sys.exit(nbclient())")


def nbclient(*path: Path) -> subprocess.CompletedProcess[str]:
    """What the console script does."""
    return run(list(path), *SCRIPT, "--version")


def complains(done: subprocess.CompletedProcess[str], what: str) -> None:
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr.startswith("nbclient: ")
    assert done.stderr.count("\n") == 1
    assert what in done.stderr
    assert "an environment of its own (pipx, or python -m venv)" in done.stderr


# As python -m does, one after the other, since most of each is its start.
VERSIONS_AND_HELPS = """
import runpy, sys
for command in ("nbnet", "loadgen"):
    for option in ("--version", "--help"):
        sys.argv = [command, option]
        try:
            runpy.run_module(command, run_name="__main__")
        except SystemExit as ended:
            print("exit code", ended.code or 0)
"""


def others_work(*path: Path) -> None:
    done = run(list(path), "-c", VERSIONS_AND_HELPS)
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.split("exit code 0\n")
    assert [said[0], said[2]] == [f"{name} {nbnet.__version__}\n" for name in ("nbnet", "loadgen")]
    assert "Usage: nbnet " in said[1]
    assert "Usage: loadgen " in said[3]
    assert said[4:] == [""]


COMMANDS = [entry.nbnet, entry.nbclient, entry.loadgen]


@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupt_before_a_command_has_begun_is_no_traceback(
    command: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupted)
    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == 130


@pytest.mark.parametrize("command", COMMANDS)
def test_each_script_runs_its_command(
    command: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = command.__name__
    monkeypatch.setattr("sys.argv", [name, "--version"])
    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{name} {nbnet.__version__}\n"


def test_an_installation_in_order(tmp_path: Path) -> None:
    install_ours(tmp_path)
    done = nbclient(tmp_path)
    assert (done.stdout, done.returncode, done.stderr) == (f"nbclient {nbnet.__version__}\n", 0, "")
    for program in (SCRIPT, ("-m", "nbclient")):
        done = run([tmp_path], *program, "send")
        assert (done.stdout, done.returncode) == ("", 2)
        assert done.stderr.startswith("nbclient: nothing to send")


def test_ours_over_theirs(tmp_path: Path) -> None:
    install_theirs(tmp_path)
    install_ours(tmp_path)
    what = f"were installed over each other in {tmp_path / 'nbclient'}"
    complains(nbclient(tmp_path), what)
    complains(run([tmp_path], "-m", "nbclient", "--version"), what)
    others_work(tmp_path)


def test_theirs_over_ours(tmp_path: Path) -> None:
    install_ours(tmp_path)
    install_theirs(tmp_path)
    complains(nbclient(tmp_path), f"were installed over each other in {tmp_path / 'nbclient'}")
    others_work(tmp_path)


@pytest.mark.parametrize("name", sorted(_THEIRS))
def test_any_of_their_modules_tells(tmp_path: Path, name: str) -> None:
    install_ours(tmp_path)
    (tmp_path / "nbclient" / name).write_text(LOUD)
    complains(nbclient(tmp_path), "were installed over each other")


def test_theirs_before_ours(tmp_path: Path) -> None:
    """As of an editable installation, which comes last on the path."""
    install_theirs(tmp_path / "theirs")
    install_ours(tmp_path / "ours")
    path = (tmp_path / "theirs", tmp_path / "ours")
    complains(nbclient(*path), f"comes before nbnet's: {tmp_path / 'theirs' / 'nbclient'}")
    others_work(*path)


def test_theirs_behind_ours_does_no_harm(tmp_path: Path) -> None:
    install_theirs(tmp_path / "theirs")
    install_ours(tmp_path / "ours")
    assert nbclient(tmp_path / "ours", tmp_path / "theirs").returncode == 0


def test_a_module_of_that_name_before_ours(tmp_path: Path) -> None:
    install_ours(tmp_path / "ours")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "nbclient.py").write_text(LOUD)
    done = nbclient(tmp_path / "mine", tmp_path / "ours")
    complains(done, f"comes before nbnet's: {tmp_path / 'mine' / 'nbclient.py'}")


@pytest.mark.parametrize("order", ["ours over theirs", "theirs over ours"])
def test_theirs_uninstalled(tmp_path: Path, order: str) -> None:
    """It takes along what both had."""
    steps = [install_theirs, install_ours]
    for install in steps if order.startswith("ours") else reversed(steps):
        install(tmp_path)
    uninstall_theirs(tmp_path)
    assert (tmp_path / "nbclient" / "sync.py").exists()
    complains(nbclient(tmp_path), f"is not whole in {tmp_path / 'nbclient'}")
    others_work(tmp_path)


@pytest.mark.parametrize("name", ["__init__.py", "cli.py", "errors.py", "sync.py"])
def test_a_file_of_ours_is_missing(tmp_path: Path, name: str) -> None:
    install_ours(tmp_path)
    (tmp_path / "nbclient" / name).unlink()
    complains(nbclient(tmp_path), "is not whole in")


def test_ours_is_missing_altogether(tmp_path: Path) -> None:
    install_ours(tmp_path)
    shutil.rmtree(tmp_path / "nbclient")
    complains(nbclient(tmp_path), f"is not whole in {tmp_path / 'nbclient'}")
    others_work(tmp_path)


def test_a_dependency_that_is_missing_is_no_clash(tmp_path: Path) -> None:
    install_ours(tmp_path)
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError('no typer', name='typer')\n")
    done = nbclient(tmp_path)
    assert done.returncode == 1
    assert "no typer" in done.stderr
    assert "is not whole" not in done.stderr


def test_a_link_to_ours_is_ours(tmp_path: Path) -> None:
    install_ours(tmp_path / "ours")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "nbclient").symlink_to(tmp_path / "ours" / "nbclient")
    done = nbclient(tmp_path / "linked", tmp_path / "ours")
    assert (done.returncode, done.stderr) == (0, "")


def test_an_archive_is_in_order(tmp_path: Path) -> None:
    install_ours(tmp_path / "ours")
    archive = shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path / "ours")
    code = f"import sys; sys.path.insert(0, {archive!r}); {SCRIPT[1]}"
    done = run([tmp_path], "-c", code, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("nbclient ")


def test_the_complaint_survives_a_closed_stderr(tmp_path: Path) -> None:
    install_theirs(tmp_path)
    install_ours(tmp_path)
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" "$@" 2>&-', sys.executable, *SCRIPT],
        timeout=30,
        cwd=tmp_path,
        env=environment(tmp_path),
    )
    assert done.returncode == 1


def test_the_good_path_asks_no_metadata(tmp_path: Path) -> None:
    install_ours(tmp_path)
    code = (
        "import sys; from nbnet.entry import clash; assert clash() is None;"
        "print(*{'importlib.metadata', 'pathlib', 'nbclient'} & set(sys.modules))"
    )
    done = run([tmp_path], "-c", code)
    assert (done.stdout, done.stderr) == ("\n", "")


def test_ours_has_none_of_the_names_that_tell_theirs() -> None:
    assert not _THEIRS & {path.name for path in (SOURCES / "nbclient").iterdir()}


def test_in_this_very_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_theirs(tmp_path)
    assert entry.clash() is None
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nbclient", raising=False)
    with pytest.raises(SystemExit) as ended:
        entry.nbclient()
    assert ended.value.code == 1
    assert f"comes before nbnet's: {tmp_path / 'nbclient'}" in capsys.readouterr().err


def test_the_console_script_is_this_one() -> None:
    (script,) = entry_points(group="console_scripts", name="nbclient")
    assert script.load() is entry.nbclient


class Command:
    """In place of ``nbclient.cli``."""

    called = False

    def main(self) -> None:
        self.called = True


def importing(monkeypatch: pytest.MonkeyPatch, found: Command | ImportError) -> None:
    """Have the import of the command end so."""

    def import_module(name: str) -> Command:
        assert name == "nbclient.cli"
        if isinstance(found, ImportError):
            raise found
        return found

    monkeypatch.setattr(importlib, "import_module", import_module)


def test_the_command_is_run_where_all_is_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    command = Command()
    importing(monkeypatch, command)
    entry.nbclient()
    assert command.called


@pytest.mark.parametrize("stderr", ["open", "closed"])
def test_a_package_with_a_module_missing_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stderr: str
) -> None:
    importing(monkeypatch, ImportError("no module", name="nbclient.settings"))
    if stderr == "closed":
        monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit) as ended:
        entry.nbclient()
    assert ended.value.code == 1
    assert ("is not whole in" in capsys.readouterr().err) == (stderr == "open")


def test_a_module_of_others_that_is_missing_is_their_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    importing(monkeypatch, ImportError("no module", name="typer"))
    with pytest.raises(ImportError, match="no module"):
        entry.nbclient()


def test_what_is_seen_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "listdir", lambda _: ["cli.py", "client.py"])
    assert "were installed over each other" in str(entry.clash())

    def inside_an_archive(_: str) -> list[str]:
        raise NotADirectoryError

    monkeypatch.setattr(os, "listdir", inside_an_archive)
    assert entry.clash() is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "is not whole in" in str(entry.clash())
    assert not entry._same("/nowhere/one", "/nowhere/other")
