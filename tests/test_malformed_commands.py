"""The contract of every command, drawn from generators: what a person or a file says ends well, or with code 2 and one line.

Nothing here trains or samples: each command line carries something that ends it before, and what comes before is what is tried.
"""

import contextlib
import io
import json
import os
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lods_jax import config as configs
from lods_jax.cli import flags, main
from lods_jax.config import Config, dump
from lods_jax.core.errors import UserError
from lods_jax.runs.prompt_files import read_prompts

TIMES = [pytest.param(1, id="some"), pytest.param(10, id="many", marks=pytest.mark.slow)]  # 1,060 and 10,600 in all


def drawn(times: int, examples: int):
    return settings(max_examples=times * examples, suppress_health_check=list(HealthCheck))


def ends_well(*argv: str) -> int:
    """The exit code of a command, which has told of bad input in one line that commands the terminal nothing."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(argv))
        except SystemExit as end:  # --help
            code = end.code or 0
    said = err.getvalue().splitlines()
    assert code in (0, 2)
    assert all("read under new names" in line for line in said) if code == 0 else len(said) == 1, said
    assert all(line.isprintable() and len(line) < 1500 and (code == 0 or line.startswith("lods: ")) for line in said)
    assert out.getvalue().replace("\n", "").isprintable(), out.getvalue()
    return code


@pytest.fixture(scope="module")
def tmp(tmp_path_factory):
    return tmp_path_factory.mktemp("commands")


# --- what people type ---------------------------------------------------------------------------------------------------------
ODD = (
    "", " ", "-", "--", "0", "-1", "1e3", "0x1f", "nan", "inf", "-inf", "1e999", "9" * 400, "9" * 5000, "true", "null",
    "tabletop", "\x1b[31m", "\u202e", "é" * 200, "x" * 300, "x" * 5000, "a/" * 3000, "/dev/null", "/dev/full", "/proc/none",
    "..", "~", "*", "%s", "{}", "a:b", "sys:exit",
)  # fmt: skip
odd = st.sampled_from(ODD)
words = odd | st.text(max_size=8) | st.integers().map(str) | st.floats().map(repr)
CONFIG_FLAGS = [f"--{name}".replace("_", "-") for name in configs.keys(Config)]
OWN_FLAGS = {
    name: [f"--{field}".replace("_", "-") for field in kind.__dataclass_fields__ if field not in ("settings", "print_config")]
    for name, kind in flags.COMMANDS.items()
}
# What ends a command before it does its work, behind whatever was drawn.
ENDS = {
    "text-to-3d": ["--print-config"],
    "image-to-3d": ["/nowhere.png"],
    "text-to-image": ["--prior", "/nowhere"],
    "edit-image": ["--prior", "/nowhere"],
    "train-prior": ["--out", "/dev/null/prior"],
    "info": ["more"],
    "bench": ["/nowhere.yaml"],
}


def lines(commands: list[str], known: dict[str, list[str]]):
    """Command lines of some commands: flags that there are, beside some that there are not, and values that fit or not."""

    def of(command):
        flag = st.sampled_from(known[command] or ["--x"]) | st.text("-abcdeprs.", max_size=9)
        pair = (
            st.tuples(flag, words).map(list) | st.tuples(flag, words).map(lambda x: [f"{x[0]}={x[1]}"]) | words.map(lambda x: [x])
        )
        return st.lists(pair, max_size=4).map(
            lambda pairs: [command, *[word for pair in pairs for word in pair], *ENDS.get(command, [])]
        )

    return st.sampled_from(commands).flatmap(of)


LIGHT = [name for name in flags.COMMANDS if name not in ("text-to-3d", "image-to-3d")]


@pytest.mark.parametrize("times", TIMES)
def test_any_flags_of_a_command(times, tmp, monkeypatch):
    monkeypatch.chdir(tmp)

    @drawn(times, 300)
    @given(lines(LIGHT, OWN_FLAGS) | st.lists(words, max_size=3).filter(lambda x: not {*x} & {*flags.COMMANDS}))
    def tried(argv):
        ends_well(*argv)

    tried()


@pytest.mark.parametrize("times", TIMES)
def test_any_flags_of_a_run(times, tmp, monkeypatch):
    monkeypatch.chdir(tmp)
    known = {name: [*OWN_FLAGS[name], *CONFIG_FLAGS] for name in ("text-to-3d", "image-to-3d")}

    @drawn(times, 60)
    @given(lines([*known], known))
    def tried(argv):
        ends_well(*argv)

    tried()


# --- what lies in files -------------------------------------------------------------------------------------------------------
json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400),
    lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=4), x, max_size=4),
    max_leaves=8,
)
YAML = (
    "on", "off", "yes", "0400", "1_000", "12:30", "2024-01-01", "~", "!!int ''", "!!python/name:os.system", "*a", "&a b",
    "[1, 2]", "{a: 1}", "'", '"', "|", "- x",
)  # fmt: skip
KEYS = configs.keys(Config)
WHOLE = dump(Config()).encode()


def yaml_of(pairs) -> str:
    """Dotted keys and values as nested YAML, as a careless person would write it."""
    text = ""
    for name, value in pairs:
        *outer, inner = name.split(".")
        text += "".join(f"{'  ' * i}{part}:\n" for i, part in enumerate(outer)) + f"{'  ' * len(outer)}{inner}: {value}\n"
    return text


pairs = st.tuples(st.sampled_from(KEYS) | st.text(string.ascii_letters + "._- ", max_size=9), words | st.sampled_from(YAML))
yamls = st.one_of(
    st.lists(pairs, max_size=5).map(yaml_of),
    st.dictionaries(st.sampled_from([*vars(Config())]) | st.text(max_size=4), json_like, max_size=4).map(json.dumps),
    st.tuples(st.integers(0, len(WHOLE)), st.binary(max_size=6)).map(lambda x: WHOLE[: x[0]] + x[1] + WHOLE[x[0] :]),
    st.binary(max_size=60),
    st.text(max_size=60),
)


def as_bytes(data: str | bytes) -> bytes:
    return data if isinstance(data, bytes) else data.encode(errors="surrogatepass")


@pytest.mark.parametrize("times", TIMES)
def test_any_configuration(times, tmp):
    @drawn(times, 350)
    @given(yamls)
    def tried(data):
        (tmp / "any.yaml").write_bytes(as_bytes(data))
        ends_well("text-to-3d", "--print-config", "--config", str(tmp / "any.yaml"))

    tried()


prompt_texts = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=60),
    json_like.map(json.dumps),
    st.lists(json_like.map(json.dumps), max_size=4).map("\n".join),
    st.lists(st.text(max_size=9), max_size=4).map(lambda x: "prompt,x\n" + "\n".join(x)),
)
prompt_files = st.tuples(st.sampled_from([".txt", ".json", ".jsonl", ".csv", ".tsv", ".JSON", ""]), prompt_texts)


@pytest.mark.parametrize("times", TIMES)
def test_any_file_of_prompts(times, tmp):
    """What is read are texts of people; what is refused, in one line. A tenth goes through the command."""
    seen = []

    @drawn(times, 230)
    @given(prompt_files)
    def tried(drawn_file):
        suffix, data = drawn_file
        file = tmp / f"prompts{suffix}"
        file.write_bytes(as_bytes(data))
        seen.append(file)
        if len(seen) % 10 == 0:
            ends_well("text-to-3d", "--print-config", "--prompts", str(file))
        try:
            prompts = read_prompts(file)
        except UserError as error:
            assert str(file) in str(error)  # noqa: PT017
        else:
            assert prompts
            assert all(prompt == prompt.strip() and 0 < len(prompt) <= 2000 for prompt in prompts)

    tried()


FILES = (
    "config.yaml", "run.json", "metrics.jsonl", "scene.splat", "scene.ply", "video.mp4", "stills/000.png", "picture.png", ".lock",
    "checkpoints", "checkpoints/3/x", "checkpoints/3/note/metadata",
)  # fmt: skip
NAMES = ("step", "score_rms", "fit", "gaussians", "seconds", "state", "error", "predictions_per_view")
rows = st.dictionaries(st.sampled_from(NAMES), json_like, max_size=5).map(json.dumps)
contents = st.one_of(
    rows,
    st.lists(rows, max_size=4).map("\n".join),
    json_like.map(json.dumps),
    st.binary(max_size=40),
    st.sampled_from(["folder", "pipe", "link"]),
)
# A prior that is not there ends what would go on training.
RUNS = (
    "prompt: a thing\nprior: /nowhere\n",
    "prior: /nowhere\nobjective: 'os:system'\n",
    "prior: /nowhere\nscene: nerf\nobjective: sds\n",
)
READING = (
    ["evaluate"],
    ["evaluate", "--json", "rows.json"],
    ["compare", "--out", "page.html"],
    ["export", "--to", "splat"],
    ["resume"],
)


def put(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if content == "folder":
        path.mkdir()
    elif content == "pipe":
        os.mkfifo(path)
    elif content == "link":
        path.symlink_to("/etc/hostname")
    else:
        path.write_bytes(as_bytes(content))


@pytest.mark.parametrize("times", TIMES)
def test_any_run_folder(times, tmp, monkeypatch):
    monkeypatch.chdir(tmp)
    count = iter(range(10**9))

    @drawn(times, 120)
    @given(st.sampled_from(READING), st.sampled_from(RUNS), st.dictionaries(st.sampled_from(FILES), contents, max_size=4))
    def tried(command, config, held):
        folder = tmp / f"run-{next(count)}"
        if command == ["resume"]:  # `{}` is a whole configuration, and would be trained to its end
            held.pop("config.yaml", None)
        for name, content in ({"config.yaml": config} | held).items():
            with contextlib.suppress(OSError):  # one lies in the place of another
                put(folder / name, content)
        ends_well(command[0], str(folder), *command[1:])

    tried()
