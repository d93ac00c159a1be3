"""Files that are whole or not there at all."""

import os
import re
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lods_jax.cli import main
from lods_jax.core.files import check_place, open_regular, point, replacing
from lods_jax.core.paths import cache_folder


def write(path, text):
    with replacing(path) as partial:
        partial.write_text(text)


def test_a_finished_block_puts_the_new_file_in_place(tmp_path):
    path = tmp_path / "new" / "figures.json"
    with replacing(path) as partial:
        partial.write_text("1")
        assert partial.parent == path.parent
        assert partial.suffix == path.suffix
        assert not path.exists()
    assert path.read_text() == "1"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_block_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text("old")

    def write_half():
        with replacing(path) as partial:
            partial.write_text("ha")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# --- links, devices, pipes ----------------------------------------------------------------------------------------------------
def test_a_link_stays_one_and_its_target_is_replaced(tmp_path):
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to("target.json")
    write(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_link_to_what_is_not_there_yet_makes_it(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "new" / "target")
    write(tmp_path / "link", "new")
    assert (tmp_path / "new" / "target").read_text() == "new"


def test_a_pipe_gets_the_bytes_and_stays_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write(tmp_path / "pipe", "new")
    assert os.read(reader, 99) == b"new"
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    os.close(reader)


def test_a_pipe_that_nobody_reads_is_an_error_and_no_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such device"):
        write(tmp_path / "pipe", "new")


def test_a_device_is_written_into_and_stays_one():
    write(os.devnull, "new")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_standard_output_that_is_a_file_gets_the_bytes_behind_its_own(tmp_path):
    """Its file, put in the place of the one that the shell opened, would be lost."""
    code = (
        "from lods_jax.core.files import replacing\nprint('a', flush=True)\nwith replacing('/dev/stdout') as f: f.write_text('b')"
    )
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "a\nb"


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="this system has no RAM disk there")
def test_a_file_on_a_ram_disk_is_replaced_like_any_other():
    """It lies below /dev, and is no device."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for text in ("a long one", "short"):
            write(Path(folder, "x"), text)
        assert Path(folder, "x").read_text() == "short"


def test_two_that_write_one_file_at_once_do_not_meet(tmp_path):
    """Processes of two containers may have one number."""
    with replacing(tmp_path / "x") as slow:
        slow.write_text("half")
        write(tmp_path / "x", "other")
        slow.write_text("whole")
    assert (tmp_path / "x").read_text() == "whole"


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to(path)], ids=["folder", "circle"])
def test_a_folder_and_a_link_to_itself_are_errors_and_stay(tmp_path, make):
    make(tmp_path / "x")
    with pytest.raises(OSError, match="x"):
        write(tmp_path / "x", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_longest_name_that_the_system_takes_can_be_replaced(tmp_path):
    for name in ("x" * 255, "x." + 253 * "y"):
        write(tmp_path / name, "new")
        assert (tmp_path / name).read_text() == "new"


# --- before the work ------------------------------------------------------------------------------------------------------------
def test_a_place_that_can_be_written_is_none_to_complain_of_and_nothing_is_made(tmp_path):
    before = tmp_path.stat().st_mtime_ns
    for path in (tmp_path / "a.png", tmp_path / "new" / "newer" / "a.png", os.devnull):
        check_place(path)
    check_place(tmp_path, folder=True)
    check_place(tmp_path / "new" / "run", folder=True)
    assert tmp_path.stat().st_mtime_ns == before


@pytest.mark.parametrize("folder", [False, True])
def test_a_place_that_cannot_be_written_is_named_before_the_work(tmp_path, folder):
    (tmp_path / "file").write_text("")
    impossible = [
        tmp_path / "file" / "x",
        tmp_path / ("x" * 256),
        tmp_path / ("x" * 256) / "y",
        tmp_path / "/".join(["y"] * 4000),
    ]
    impossible += [Path("/proc/none/x"), tmp_path / "file" if folder else tmp_path]
    for path in impossible:
        with pytest.raises(OSError, match=re.escape(str(path)[:50])) as caught:
            check_place(path, folder)
        assert caught.value.filename == str(path)


def test_a_user_without_a_home_has_a_place_for_what_can_be_made_again(monkeypatch, tmp_path):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    check_place(cache_folder.__wrapped__() / "renders", folder=True)


def test_a_link_turns_and_a_folder_of_its_name_stays(tmp_path):
    for at in ("a", "b"):
        point(tmp_path / "latest", Path(at))
        assert os.readlink(tmp_path / "latest") == at
    (tmp_path / "mine").mkdir()
    point(tmp_path / "mine", Path("a"))
    assert not (tmp_path / "mine").is_symlink()


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="the file that fails to be read is one of Linux")
@pytest.mark.parametrize("flag", ["--config", "--prompts"])
def test_a_file_that_fails_while_it_is_read_is_named(flag, capsys):
    """Its first page is not there: the system says `Input/output error` and no name, as for a failing disk."""
    with open_regular("/proc/self/mem") as file, pytest.raises(OSError, match=r"\[Errno 5\]"):
        file.read(8)
    assert main(["text-to-3d", "--print-config", flag, "/proc/self/mem"]) == 2
    assert capsys.readouterr().err == "lods: cannot read /proc/self/mem: Input/output error\n"
