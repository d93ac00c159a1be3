"""Files from elsewhere: whatever is in them, a reader gives a value or one line, and takes no memory that it was talked into."""

import io
import json
import tracemalloc
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save

from lods_jax.config import Config, check, dump, load
from lods_jax.core.errors import UserError
from lods_jax.priors.adapter_files import load_embedding, load_lora
from lods_jax.priors.captioned_images import read_image
from lods_jax.priors.diffusers_folder import read_config
from lods_jax.runs.prompt_files import read_prompts
from lods_jax.runs.run_directory import read_json, read_metrics, read_run
from lods_jax.scenes.ply import read_ply, read_points, write_ply

EXAMPLES = 40  # of each reader; eleven readers make 440
MAX_BYTES = 64 << 20  # bytes that a reader may have at once
AXES = b"property float x\nproperty float y\nproperty float z\n"
HEADER = b"ply\nformat binary_little_endian 1.0\nelement vertex %d\n" + AXES + b"end_header\n"


def laughs() -> bytes:
    """A YAML file of 9^9 entries, each a reference."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    return "\n".join([*lines, "steps: *i"]).encode()


@cache
def valid(tmp: Path) -> dict[str, bytes]:
    n = 4
    splats = {"means": np.zeros((n, 3)), "quats": np.ones((n, 4)), "log_scales": np.zeros((n, 3))}
    splats |= {"opacity_logits": np.zeros(n), "sh": np.zeros((n, 1, 3))}
    write_ply(tmp / "valid.ply", {name: x.astype(np.float32) for name, x in splats.items()})
    png = io.BytesIO()
    Image.new("RGBA", (9, 7), "red").save(png, "PNG")
    lora = {"unet.a.lora_A.weight": np.ones((2, 4), np.float32), "unet.a.lora_B.weight": np.ones((4, 2), np.float32)}
    points = HEADER.replace(b"binary_little_endian", b"ascii") % 2 + b"0 0 1\n1 0 0\n"
    return {
        "ply": (tmp / "valid.ply").read_bytes(),
        "points": points,
        "png": png.getvalue(),
        "yaml": dump(Config(prompt="a red mug")).encode(),
        "embedding": save({"negative_prompt_embeds": np.ones((1, 3, 4), np.float32)}),
        "lora": save(lora, {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 2})}),
        "json": json.dumps({"unet": {"in_channels": 4}, "a": [1, 2]}).encode(),
        "prompts": b"a red mug\n# no\na blue chair\n",
        "library": json.dumps({"x": ["a red mug", {"y": ["a blue chair"]}]}).encode(),
        "lines": b'{"prompt": "a red mug"}\n["a blue chair"]\n',
        "table": b'prompt,seed\n"a red mug",1\n',
        "metrics": b'{"step": 1, "fit": 0.5}\n{"step": 2, "fit": 0.25}\n',
    }


def a_run(file: Path):
    (file.parent / "config.yaml").write_text("prompt: a red mug\n")
    for name in ("run.json", "metrics.jsonl"):
        (file.parent / name).write_bytes(file.read_bytes())
    run = read_run(file.parent)
    return run.step, run.end, read_json(file), read_metrics(file)


READERS = {
    "ply": (".ply", read_ply),
    "points": (".ply", read_points),
    "png": (".png", lambda file: read_image(file, 16)),
    "yaml": (".yaml", lambda file: check(load(file))),
    "embedding": (".safetensors", load_embedding),
    "lora": (".safetensors", lambda file: load_lora(file, {"a": {"kernel": np.zeros((4, 4))}})),
    "json": (".json", read_config),
    "prompts": (".txt", read_prompts),
    "library": (".json", read_prompts),
    "lines": (".jsonl", read_prompts),
    "table": (".csv", read_prompts),
    "metrics": (".jsonl", a_run),
}


@pytest.fixture(scope="module")
def tmp(tmp_path_factory):
    return tmp_path_factory.mktemp("malformed")


def attempt(file: Path, reader) -> None:
    """A value, or an error of one line, within bounds of memory."""
    tracemalloc.start()
    said = "a value"
    try:
        reader(file)
    except (UserError, ValueError, FileNotFoundError) as error:
        said = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert len(said.splitlines()) == 1
    assert peak < MAX_BYTES


damage = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert", "repeat"]), st.floats(0, 1), st.binary(min_size=1, max_size=8)),
    min_size=1, max_size=4,
)  # fmt: skip


def damaged(data: bytes, changes) -> bytes:
    for kind, where, some in changes:
        at = int(where * len(data))
        if kind == "flip":
            data = data[:at] + some + data[at + len(some) :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + some + data[at:]
        else:
            data = data[:at] + data[at // 2 : at] * 3 + data[at:]
    return data


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_give_a_value_or_one_line(tmp, name):
    suffix, reader = READERS[name]
    reader_of_whole = valid(tmp)[name]
    (tmp / f"whole{suffix}").write_bytes(reader_of_whole)
    reader(tmp / f"whole{suffix}")  # the file is whole before it is damaged

    @settings(max_examples=EXAMPLES)
    @given(damage)
    def tried(changes):
        file = tmp / f"damaged{suffix}"
        file.write_bytes(damaged(reader_of_whole, changes))
        attempt(file, reader)

    tried()


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda x: st.lists(x, max_size=4) | st.dictionaries(st.sampled_from([*vars(Config()), "x"]), x, max_size=4),
    max_leaves=12,
)


def test_any_yaml_is_a_configuration_or_one_line(tmp):
    @settings(max_examples=EXAMPLES)
    @given(json_like)
    def tried(value):
        (tmp / "any.yaml").write_text(json.dumps(value), encoding="utf-8")  # JSON is YAML
        attempt(tmp / "any.yaml", lambda file: check(load(file)))

    tried()


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 60,000 x 60,000 pixels."""
    file = io.BytesIO()
    Image.new("1", (8, 8)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("ply", HEADER % 10**15), ("points", HEADER % 10**15), ("png", bomb()), ("yaml", laughs()), ("yaml", b"[" * 900),
        ("json", b"[" * 100_000),
        ("library", b"[" * 100_000), ("metrics", b"[" * 100_000), ("embedding", (2**62).to_bytes(8, "little")),
        ("prompts", b"\xff\xfe"),
        *((name, b"") for name in READERS),
    ],
)  # fmt: skip
def test_what_is_made_to_hurt_is_one_line_too(tmp, name, data):
    suffix, reader = READERS[name]
    (tmp / f"bad{suffix}").write_bytes(data)
    attempt(tmp / f"bad{suffix}", reader)
