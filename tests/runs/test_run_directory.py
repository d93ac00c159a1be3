"""What is read of a run's folder, whatever lies in it; and that one process writes it, into a place that was empty."""

import errno
import fcntl
import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lods_jax.config import Config
from lods_jax.core.errors import UserError
from lods_jax.core.images import write_png
from lods_jax.runs import run
from lods_jax.runs.page import plots, write_page
from lods_jax.runs.run_directory import LOCK, check_files, locked, point_latest_at, read_metrics, read_run
from lods_jax.training.build import Components


@pytest.fixture
def folder(tmp_path):
    """The least that is a run."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("prompt: a red mug\n")
    return tmp_path / "run"


def with_rows(folder, *lines):
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    return read_run(folder)


# --- metrics.jsonl ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("line", "row"),
    [
        ('{"step": 20, "score_rms": 0.5, "gaussians": 7}', {"step": 20, "score_rms": 0.5, "gaussians": 7}),
        ('{"step": 20, "gaussians": null, "score_rms": true}', {"step": 20}),
        ('{"step": 20, "seconds": "x", "fit": [1], "score_rms": NaN}', {"step": 20}),
        ('{"step": 20, "score_rms": 1e308, "fit": -Infinity, "fit_gain": 1e999}', {"step": 20}),
        (f'{{"step": 20, "score_rms": {400 * "9"}}}', {"step": 20}),
        (f'{{"step": {400 * "9"}}}', None),
        (f'{{"step": {5000 * "9"}}}', None),
        ('{"step": "x"}', None),
        ('{"step": true}', None),
        ('{"step": -1}', None),
        ('{"step": 2.5}', None),
        ('{"score_rms": 1}', None),
        ("[1]", None),
        (100_000 * "[", None),
        ('{"step": 20, "fo', None),
    ],
)
def test_a_row_is_the_finite_numbers_of_a_step(folder, line, row):
    good = {"step": 1, "score_rms": 0.25}
    assert with_rows(folder, json.dumps(good), line).metrics == [good] + ([row] if row else [])


figures = st.one_of(st.floats(), st.integers(-(10**45), 10**45), st.none(), st.text(max_size=2))


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["step", "score_rms", "fit", "gaussians", "seconds"]), figures, max_size=5), max_size=6
    )
)
def test_whatever_was_logged_can_be_shown(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    (folder / "config.yaml").write_text("prompt: a red mug\n")
    found = with_rows(folder, *(json.dumps({"step": i} | row) for i, row in enumerate(rows)))
    assert "nan" not in plots([found])
    write_page([found], folder / "index.html")


# --- what is no file -----------------------------------------------------------------------------------------------------
FILES = ("metrics.jsonl", "run.json", "scene.splat", "video.mp4", "stills/000.png", "previews/000010.png", "picture.png")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_folders_and_pipes_in_place_of_files_are_absent(folder, name, make):
    """A pipe that is opened is waited for, for ever."""
    (folder / name).parent.mkdir(exist_ok=True)
    make(folder / name)
    found = read_run(folder)
    assert (found.note, found.metrics) == ({}, [])
    [line] = write_page([found], folder / "index.html")
    assert "no run.json, metrics.jsonl, scene.splat" in line


@pytest.mark.parametrize("name", FILES[2:])
def test_a_page_holds_nothing_that_a_link_leads_to(folder, name):
    (folder.parent / "private").write_bytes(b"private" * 99)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(folder.parent / "private")
    write_page([read_run(folder)], folder / "index.html")
    (folder / name).unlink()
    page = (folder / "index.html").read_text()
    write_page([read_run(folder)], folder / "index.html")
    assert (folder / "index.html").read_text() == page


def test_a_page_holds_nothing_of_a_folder_that_a_link_leads_to(folder):
    """Nor are its images taken for the stills: they are said to be missing."""
    write_png(folder.parent / "private" / "000.png", np.zeros((4, 4, 3)))
    for name in ("stills", "previews"):
        (folder / name).symlink_to(folder.parent / "private", target_is_directory=True)
    [line] = write_page([read_run(folder)], folder / "index.html")
    assert "stills" in line
    assert "<img" not in (folder / "index.html").read_text()


def test_a_config_that_is_a_pipe_is_no_run(tmp_path):
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(UserError, match="holds no run"):
        read_run(tmp_path)


# --- the lock -----------------------------------------------------------------------------------------------------------------
def test_a_lock_that_is_a_link_is_refused_and_its_target_stays(tmp_path):
    (tmp_path / "private").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "private")
    with pytest.raises(OSError, match="symbolic links"), locked(tmp_path / "run"):
        pass
    assert (tmp_path / "private").read_text() == "mine"


def test_a_lock_that_is_a_pipe_is_named(tmp_path):
    os.mkfifo(tmp_path / LOCK)
    with pytest.raises(UserError, match=r"\.lock is no file: remove it"), locked(tmp_path):
        pass


def refuses(number):
    """A function that raises as the system does."""

    def function(*_, **__):
        raise OSError(number, os.strerror(number))

    return function


def test_a_disk_without_locks_or_links_holds_a_run_and_says_what_it_lacks(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "outputs" / "run"
    monkeypatch.setattr(fcntl, "flock", refuses(errno.ENOLCK))
    monkeypatch.setattr(Path, "symlink_to", refuses(errno.EOPNOTSUPP))
    with locked(folder):
        point_latest_at(folder)
    first, second = capsys.readouterr().err.splitlines()
    assert f"{folder} cannot be locked (No locks available)" in first
    assert f"no link {tmp_path / 'outputs' / 'latest'}: Operation not supported" in second


@pytest.mark.parametrize("name", ["scene.ply", "run.json", "index.html"])
def test_a_folder_in_the_place_of_a_file_is_told_before_the_work(tmp_path, name):
    check_files(tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(IsADirectoryError, match=name):
        check_files(tmp_path)


def test_a_file_in_the_place_of_the_checkpoints_is_told_before_the_work(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(NotADirectoryError, match="checkpoints"):
        check_files(tmp_path)


def test_a_folder_that_fills_while_a_run_is_built_is_left_alone(tmp_path, monkeypatch):
    """Empty when it was first looked at, and not once the lock is held."""
    folder = tmp_path / "run"

    def filled(config, once):
        folder.mkdir()
        (folder / "mine.txt").write_text("mine")
        return Components(**dict.fromkeys(Components._fields) | {"setup": SimpleNamespace(notes=list)})

    monkeypatch.setattr(run, "build", filled)
    monkeypatch.setattr(run, "mode_of", lambda components: "jit")
    with pytest.raises(UserError, match="is there already"):
        run.start(Config(prompt="a red mug"), folder)
    assert {path.name for path in folder.iterdir()} == {"mine.txt", LOCK}


def test_of_two_that_begin_at_once_one_has_the_folder(tmp_path):
    held, ends = [], threading.Event()

    def begin():
        try:
            with locked(tmp_path / "run", empty=True):
                held.append(1)
                ends.wait(20)
        except UserError as error:
            held.append(str(error))
            ends.set()

    threads = [threading.Thread(target=begin) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 in held
    assert any("is being written by process" in str(x) for x in held)


def test_who_holds_a_folder_is_said_though_it_has_only_just_locked_it(tmp_path):
    """The other one looks before the first has written its name."""
    with open(tmp_path / LOCK, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        name = threading.Timer(0.2, lambda: print("process 7 on a host", file=file, flush=True))
        name.start()
        with pytest.raises(UserError, match="is being written by process 7 on a host:"), locked(tmp_path):
            pass
        name.join()


def test_rows_of_no_file_are_none(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []
