"""Files that are written as a whole or not at all, and checks of places before the work begins."""

import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

from lods_jax.core.errors import UserError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a path to write to, and moves the file to `path` when the block ends without an error.

    Makes the folder. A reader, or a kill at any moment, finds the old file or the new one, never half of one. The suffix is kept,
    for writers that choose a format by it. A link stays a link, and its target is replaced. A device or a pipe is not replaced:
    it gets the bytes at the end.

    Args:
        path: of the file.

    Yields:
        A path beside `path`, on the same disk.

    Raises:
        OSError: the place cannot be written to, or is a folder.
    """
    if is_stream(path):
        with tempfile.TemporaryDirectory() as folder:
            partial = Path(folder, f"stream{short_suffix(path)}")
            yield partial
            pour(partial.read_bytes(), path)
        return
    path = target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name may be as long as the system allows, so that of the partial file is a hash.
    name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]
    partial = path.with_name(f".{token_hex(4)}.{name}{short_suffix(path)}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def is_stream(path: str | Path) -> bool:
    """Whether a path leads to a device or a pipe, or to what this process has open, such as /dev/stdout.

    Args:
        path: need not exist.

    Returns:
        True for a stream.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    if stat.S_ISDIR(mode):
        return False
    # /dev/stdout may be a regular file that the shell has open: put in its place, another file would get the bytes. A file of
    # the RAM disk /dev/shm is one like any other.
    is_open = os.path.abspath(path).startswith(("/dev/std", "/dev/fd/", "/proc/"))
    return is_open or not stat.S_ISREG(mode)


def is_regular(path: Path) -> bool:
    """Whether a file of a run folder may be read: a regular file, and no link, folder or pipe.

    Args:
        path: need not exist.

    Returns:
        True for a regular file.
    """
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def target(path: str | Path) -> Path:
    """The file that a path leads to, through links; it need not exist.

    Args:
        path: of the file.

    Returns:
        Its real path.

    Raises:
        OSError: the links form a circle.
        IsADirectoryError: the path leads to a folder.
    """
    found = Path(os.path.realpath(path))
    if found.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if found.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return found


def pour(data: bytes, path: str | Path) -> None:
    """Writes bytes into a device or a pipe. A pipe that nobody reads is an error, and is not waited for.

    Args:
        data: to write.
        path: of the device or pipe.

    Raises:
        OSError: nobody reads the pipe, or the device refuses the bytes.
    """
    with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK), "wb") as stream:
        os.set_blocking(stream.fileno(), True)
        stream.write(data)


def short_suffix(path: str | Path) -> str:
    """The suffix of the path's name, or "" if it is longer than 16 bytes."""
    suffix = Path(path).suffix
    return suffix if len(os.fsencode(suffix)) <= 16 else ""


def check_place(path: str | Path, folder: bool = False) -> None:
    """Checks that a place can be written to, before the work whose result it is for. Leaves no trace.

    It writes one block to a nameless file in the nearest folder that exists, so that a full or read-only disk shows.

    Args:
        path: of a file or a folder that is to be written.
        folder: whether it is a folder.

    Raises:
        OSError: the place cannot be written to; the error names the path.
    """
    if not folder and is_stream(path):
        return
    place = Path(os.path.realpath(path)) if folder else target(path)
    new = []  # the names that are to be made
    if not folder:
        new, place = [place.name], place.parent
    while not place.exists():
        new, place = [*new, place.name], place.parent
    try:
        for name in new:
            if len(os.fsencode(name)) > os.pathconf(place, "PC_NAME_MAX"):
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def check_suffix(path: Path, suffixes: tuple[str, ...]) -> None:
    """Checks that the suffix of a file's name does not promise another format. No suffix promises nothing.

    Args:
        path: of a file or a device.
        suffixes: allowed, in lower case with the dot.

    Raises:
        UserError: the name ends in another suffix.
    """
    if path.suffix and path.suffix.lower() not in suffixes and not is_stream(path):
        raise UserError(f"{path} cannot be written: the name must end in {' or '.join(suffixes)}, or have no suffix")


def point(link: Path, at: Path) -> None:
    """Makes a link or turns an existing one, in one move. Anything there that is no link stays as it is.

    Args:
        link: the link.
        at: the folder it leads to.
    """
    if link.exists() and not link.is_symlink():
        return
    partial = link.with_name(f".{token_hex(4)}.{link.name}")
    try:
        partial.symlink_to(at, target_is_directory=True)
        partial.replace(link)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def open_regular(path: str | Path) -> Iterator[BinaryIO]:
    """Opens a regular file to read its bytes. A pipe would keep the reader waiting, and a device may never end.

    Args:
        path: of the file.

    Yields:
        The open file.

    Raises:
        ValueError: it is no file, or cannot be opened or read (a failing disk names no file of its own accord); one line.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError(f"{path} is no file")
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
