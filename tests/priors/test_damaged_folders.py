"""Files of a prior folder with anything in them: each is read, or refused in one line. The changes are drawn, not listed."""

import json
import random
import shutil
import struct
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save

from lods_jax.core.errors import UserError
from lods_jax.priors import flax_networks, tokenizer, torch_weights
from lods_jax.priors.adapter_files import load_embedding, load_lora
from lods_jax.priors.diffusers_folder import PARTS, read_vocabulary, weight_files
from lods_jax.priors.networks import network, shapes_of
from lods_jax.priors.scheduler_config import read_scheduler

REFUSED = (UserError, ValueError, FileNotFoundError)
COUNTS = [150, pytest.param(3000, marks=pytest.mark.slow)]  # drawn changes to each kind of file
ODD = [
    None, True, False, 0, 1, -1, 3, 32, 2**31, 2**63, 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "a", "32", "\0",
    "é" * 99, [], [1], [[1]], [None, "a"], {}, {"a": 1}, {"a": {"b": []}},
]  # fmt: skip


def changed(rng: random.Random, tree):
    """A copy of a tree of JSON in which one value is another, or is gone, or has another key."""
    tree = json.loads(json.dumps(tree))
    place = tree
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return tree
        key = rng.choice(keys)
        if isinstance(place[key], dict | list) and rng.random() < 0.7:
            place = place[key]
            continue
        do = rng.choice(["set", "set", "set", "drop", "rename"])
        if do == "set":
            place[key] = rng.choice(ODD)
        elif do == "drop" or isinstance(place, list):
            del place[key]
        else:
            place[rng.choice(["a", "", f"{key}2"])] = place.pop(key)
        return tree


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes in which a part is flipped, cut, doubled or put in."""
    at, some = rng.randrange(len(data) + 1), rng.randbytes(rng.randrange(1, 9))
    kind = rng.choice(["flip", "cut", "insert", "double"])
    if kind == "cut":
        return data[:at]
    return data[:at] + (data[at // 2 : at] * 2 if kind == "double" else some) + data[at + (len(some) if kind == "flip" else 0) :]


def attempt(read) -> bool:
    """Whether something is read; what is refused is refused in one line."""
    try:
        read()
    except REFUSED as error:
        said = str(error)
    else:
        return True
    assert len(said.splitlines()) == 1, said
    assert len(said) < 1000, said
    return False


@pytest.fixture
def folder(folders, tmp_path) -> Path:
    return shutil.copytree(folders / "transformers5", tmp_path / "sd")


def drawn(count: int, change, of):
    """Changes drawn one after the other, each from its own seed, which is the one to repeat a failure by."""
    return (change(random.Random(seed), of) for seed in range(count))


MAKE = {"unet": flax_networks.unet, "vae": flax_networks.vae, "text": flax_networks.text_encoder}


@pytest.mark.parametrize("part", MAKE)
@pytest.mark.parametrize("count", [15, pytest.param(100, marks=pytest.mark.slow)])  # what is accepted is traced
def test_a_changed_config_describes_a_network_or_is_one_line(folder, part, count):
    file = folder / PARTS[part][0] / "config.json"
    for config in drawn(count, changed, json.loads(file.read_text())):
        file.write_text(json.dumps(config))
        attempt(lambda: shapes_of(folder, part, network(folder, part, MAKE[part])))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["scheduler/scheduler_config.json", "vocabulary.json"])
def test_a_changed_scheduler_or_vocabulary_is_read_or_one_line(folder, name, count):
    (folder / "vocabulary.json").write_text('{"words": ["a", "mug"], "prompts": ["a mug", "mug"]}')
    read = {"scheduler/scheduler_config.json": read_scheduler, "vocabulary.json": read_vocabulary}[name]
    text = (folder / name).read_bytes()
    for config in drawn(count, changed, json.loads(text)):
        (folder / name).write_text(json.dumps(config))
        attempt(lambda: read(folder))
    for data in drawn(count, damaged, text):
        (folder / name).write_bytes(data)
        attempt(lambda: read(folder))


@cache
def network_of_one_layer():
    return {"conv_in": {"kernel": jax.ShapeDtypeStruct((3, 3, 4, 8), np.float32), "bias": jax.ShapeDtypeStruct((8,), np.float32)}}


@pytest.mark.parametrize("count", COUNTS)
def test_a_damaged_weight_file_is_read_or_one_line(folder, count):
    state = {"conv_in.weight": np.ones((8, 4, 3, 3), np.float16), "conv_in.bias": np.ones(8, np.float32)}
    file, data = folder / "unet/diffusion_pytorch_model.safetensors", save(state, {"format": "pt"})
    head = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    for bad in drawn(count, damaged, data):
        file.write_bytes(bad)
        attempt(lambda: torch_weights.to_flax(torch_weights.read_state(folder, "unet"), network_of_one_layer()))
    for header in drawn(count, changed, head):
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + data[-8 * 4 - 2 * 8 * 36 :])
        attempt(lambda: torch_weights.to_flax(torch_weights.read_state(folder, "unet"), network_of_one_layer()))


@pytest.mark.parametrize("count", COUNTS)
def test_a_changed_index_of_shards_names_files_or_is_one_line(folder, count):
    (folder / "unet/diffusion_pytorch_model.safetensors").rename(folder / "unet/a.safetensors")
    index = {"metadata": {"total_size": 8}, "weight_map": {"conv_in.weight": "a.safetensors", "conv_in.bias": "a.safetensors"}}
    file = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    for other in drawn(count, changed, index):
        file.write_text(json.dumps(other))
        attempt(lambda: weight_files(folder, "unet"))


@pytest.mark.parametrize("count", COUNTS)
def test_a_changed_adapter_is_read_or_one_line(tmp_path, count):
    layer = {"down": np.ones((2, 4), np.float32), "up": np.ones((4, 2), np.float32), "alpha": np.ones(1, np.float32)}
    flat = {"unet.a.lora_A.weight": layer["down"], "unet.a.lora_B.weight": layer["up"], "unet.a.alpha": layer["alpha"]}
    about = {"unet.lora_alpha": 2, "unet.alpha_pattern": {"a": 3, "b.*c": 4}, "unet.use_rslora": False}
    shapes, file = {"a": {"kernel": np.zeros((4, 4))}}, tmp_path / "a.safetensors"
    for other in drawn(count, changed, about):
        file.write_bytes(save(flat, {"lora_adapter_metadata": json.dumps(other)}))
        attempt(lambda: load_lora(file, shapes))
    for other in drawn(count, changed, {key: list(x.shape) for key, x in flat.items()}):
        sane = isinstance(other, dict) and all(
            isinstance(shape, list) and all(type(n) is int and 0 <= n < 100 for n in shape) for shape in other.values()
        )
        if sane:
            file.write_bytes(save({key: np.ones(shape, np.float32) for key, shape in other.items()}))
            attempt(lambda: load_lora(file, shapes))
    whole = save(flat, {"lora_adapter_metadata": json.dumps(about)})
    for bad in drawn(count, damaged, whole):
        file.write_bytes(bad)
        attempt(lambda: load_lora(file, shapes))
        attempt(lambda: load_embedding(file))


@pytest.mark.parametrize("count", [25, pytest.param(400, marks=pytest.mark.slow)])  # transformers takes its time
@pytest.mark.parametrize(
    "name", ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"]
)
def test_a_changed_tokenizer_gives_ids_of_the_table_or_is_one_line(sd, folders, tmp_path, name, count):
    root = folders / "transformers5" if name == "tokenizer.json" else sd
    file = shutil.copytree(root / "tokenizer", tmp_path / "tokenizer") / name
    text = file.read_bytes()

    def read():
        ids = tokenizer.tokenize(tokenizer.load_tokenizer(tmp_path), ["a red mug, front view", ""], 77, 532)
        assert ids.shape == (2, 77)
        assert ids.min() >= 0
        assert ids.max() < 532

    assert attempt(read)
    if name.endswith(".json"):
        for other in drawn(count, changed, json.loads(text)):
            file.write_text(json.dumps(other))
            attempt(read)
    for data in drawn(count, damaged, text):
        file.write_bytes(data)
        attempt(read)
