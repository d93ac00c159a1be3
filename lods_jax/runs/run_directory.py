"""The files of a run's folder: written so that a kill leaves them whole, read so that half a run is still worth something.

config.yaml    repeats the run                    scene.ply, scene.splat   the scene, from the last preview on
run.json       what it ran on, and how it ended   previews/, stills/       images
metrics.jsonl  one line per log_every steps       video.mp4, index.html    at the end
checkpoints/   all that training changes          mesh.glb                 of a NeRF, at the end
init_psi.safetensors: the learned branch of another run, if this one started from it
source/: the object of another run, if this one edits it
picture.png, picture-depth.tif, picture-normal.png and prompt_embeds.safetensors: of a run from an image, what it goes on with
"""

import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from lods_jax.config import Config, load
from lods_jax.config.aliases import current_metrics
from lods_jax.core.errors import UserError, remark
from lods_jax.core.files import check_place, is_regular, point, replacing

LOCK = ".lock"
MAX_STEP = 10**7  # as of the configuration
MAX_FIGURE = 3.5e38  # of float32, as all figures are: what is larger is none of ours, and no plot can hold it


class Run(NamedTuple):
    """The folder of a run, as far as it came.

    Attributes:
        path: of the folder.
        config: of config.yaml.
        note: of run.json; empty if there is none.
        metrics: rows of metrics.jsonl, oldest first.
    """

    path: Path
    config: Config
    note: dict[str, Any]
    metrics: list[dict[str, Any]]

    @property
    def step(self) -> int:
        """The last step that was logged."""
        return self.metrics[-1]["step"] if self.metrics else 0

    @property
    def end(self) -> str:
        """How the run ended: "finished", "failed: REASON", or how far it came."""
        state = self.note.get("state", "never started")
        if state == "failed":
            return f"failed: {self.note.get('error', 'no reason is known')}"
        # A run that was killed could not say so: to a reader it looks like one that is under way.
        return state if state == "finished" else f"{state}, step {self.step} of {self.config.steps}"

    def missing(self, *names: str) -> str:
        """One line on the files that are not there.

        Args:
            *names: of files and folders of the run.

        Returns:
            The line; "" if all are there.
        """
        there = lambda path: is_regular(path) if path.suffix else path.is_dir() and not path.is_symlink()  # noqa: E731
        absent = [name for name in names if not there(self.path / name)]
        return f"{self.path}: no {', '.join(absent)} ({self.end})" if absent else ""


def read_run(path: Path) -> Run:
    """Reads the folder of a run, however far it came.

    Args:
        path: of the folder.

    Returns:
        The run.

    Raises:
        UserError: the folder holds no run.
    """
    file = path / "config.yaml"
    if not file.is_file():
        raise UserError(f"{path} holds no run: {file} is missing")
    return Run(path, load(file), read_json(path / "run.json"), read_metrics(path / "metrics.jsonl"))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of the file at a path; empty if there is no such file or it is damaged."""
    try:
        data = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file. Damaged lines, such as half a last line after a kill, are left out.

    Args:
        path: of the file; need not exist.

    Returns:
        The objects, oldest first.
    """
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:  # a pipe would be waited for
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_renamed(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file at a path, metrics under their current names."""
    return current_metrics(read_lines(path), str(path))


def read_metrics(path: Path) -> list[dict[str, int | float]]:
    """The rows of metrics.jsonl that have a step, with their finite numbers only: all of them can be compared and plotted.

    Args:
        path: of the file; need not exist.

    Returns:
        Rows, oldest first.
    """
    rows = [{name: x for name, x in row.items() if is_figure(x)} for row in read_renamed(path)]
    return [row for row in rows if isinstance(step := row.get("step"), int) and 0 <= step <= MAX_STEP]


def is_figure(x: Any) -> bool:
    """Whether x is a finite number of a log."""
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) <= MAX_FIGURE  # NaN is not


def write_json(path: Path, data: Any) -> None:
    """Writes a JSON file as a whole.

    Args:
        path: of the file.
        data: JSON value.
    """
    with replacing(path) as file:
        file.write_text(json.dumps(data, indent=1) + "\n")


def append(path: Path, line: dict[str, Any]) -> None:
    """Adds a line to a JSON Lines file and hands it to the system at once: a kill does not lose it.

    Args:
        path: of the file.
        line: JSON object.
    """
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def truncate_log(path: Path, keep: Callable[[dict[str, Any]], bool] = lambda row: True) -> list[dict[str, Any]]:
    """Reduces a JSON Lines file to some of its objects. Half a last line goes, since the next would join it.

    Args:
        path: of the file.
        keep: object -> whether it stays.

    Returns:
        The objects that stay.
    """
    kept = [row for row in read_renamed(path) if keep(row)]
    with replacing(path) as file:
        file.write_text("".join(f"{json.dumps(row)}\n" for row in kept))
    return kept


def truncate_metrics(path: Path, last: int) -> None:
    """Reduces metrics.jsonl to the rows up to a step; a resumed run logs the rest again.

    Args:
        path: of the file.
        last: the step.
    """
    rows = [row for row in read_metrics(path) if row["step"] <= last]
    with replacing(path) as file:
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def check_empty(folder: Path) -> None:
    """Checks that a folder holds nothing but a lock: a new run never writes into another one.

    Args:
        folder: need not exist.

    Raises:
        UserError: it holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir())):
        raise UserError(f"{folder} is there already: pass another --out, or go on with a run by `lods resume {folder}`")


@contextmanager
def locked(folder: Path, empty: bool = False) -> Iterator[None]:
    """Makes a folder and holds it for this process. The system frees the lock when the process ends, however it ends.

    Args:
        folder: of a run.
        empty: whether it must hold nothing, also once no other process can write into it.

    Raises:
        UserError: another process holds it, or it is not empty.
        OSError: it cannot be made, or its lock is a link or a folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    opened = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise UserError(f"{folder / LOCK} is no file: remove it")
    with open(opened, "r+", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is being written by {holder(file)}: stop it, or wait for its end") from None
        except OSError as error:  # of a file system that has no locks
            remark(f"lods: {folder} cannot be locked ({error.strerror}): let no second process write into it")
        if empty:
            check_empty(folder)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def holder(file: TextIO, patience: float = 5.0) -> str:
    """Who holds a lock: what its file says. A process writes that just after it has locked the file, so it is waited for.

    Args:
        file: the lock, open for reading.
        patience: seconds to wait.

    Returns:
        Its number and host; "another process" if it does not say.
    """
    end = time.monotonic() + patience
    while not (name := file.read(200).strip()) and time.monotonic() < end:
        time.sleep(0.02)
        file.seek(0)
    return name or "another process"


def check_files(folder: Path) -> None:
    """Refuses a folder in the place of a file that a run writes, before the work that would be lost for it."""
    for name in ("run.json", "metrics.jsonl", "scene.ply", "scene.splat", "stills.png", "video.mp4", "index.html"):
        check_place(folder / name)
    for name in ("checkpoints", "previews", "stills"):
        check_place(folder / name, folder=True)


def point_latest_at(folder: Path) -> None:
    """Turns the link outputs/latest to the folder of a run, if it lies below a folder named `outputs`.

    Where that cannot be, as on a disk without links, a line says so, and the run goes on.
    """
    outputs = next((parent for parent in folder.absolute().parents if parent.name == "outputs"), None)
    if outputs:
        try:
            point(outputs / "latest", at=folder.absolute().relative_to(outputs))
        except OSError as error:
            remark(f"lods: no link {outputs / 'latest'}: {error.strerror}")


@contextmanager
def event_log(folder: Path, first: int, on: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields a function that writes rows of metrics.jsonl as TensorBoard event files too; it does nothing unless `on`.

    Rows beyond step `first` that were logged before are purged. The files are complete when the block ends.

    Args:
        folder: of the event files.
        first: the step that the run starts from.
        on: whether to write.

    Yields:
        row -> None.
    """
    if not on:
        yield lambda line: None
        return
    from tensorboardX import SummaryWriter  # the extra `log`; config.check has seen that it is there

    with SummaryWriter(str(folder), purge_step=first + 1, flush_secs=5) as writer:

        def log(line: dict[str, Any]) -> None:
            for name, value in line.items():
                if name != "step":
                    writer.add_scalar(name, value, line["step"])

        yield log
