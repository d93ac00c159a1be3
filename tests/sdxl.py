"""A whole folder with a tiny random SDXL, whose weights are drawn by their names: `tests/data/sdxl` holds names and shapes alone.

VAE, tokenizers and schedule are those of `tests/data/lods_parity`. Its make.py draws the same weights for PyTorch.
"""

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

DATA = Path(__file__).resolve().parent / "data"
STEMS = {"unet": "diffusion_pytorch_model", "text_encoder": "model", "text_encoder_2": "model"}


def draw(name, shape):
    """Random values that a name stands for, of about unit gain. RandomState's numbers are the same in every NumPy."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        return values / np.float32(np.prod(shape[1:]) ** 0.5)
    return 0.1 * values + np.float32("norm" in name and name.endswith("weight"))


def make_folder(folder, **index):
    """Writes the folder; `index` are further entries of its model_index.json."""
    shutil.copytree(DATA / "lods_parity" / "sd", folder, ignore=shutil.ignore_patterns("unet", "text_encoder", "*.json"))
    for file in ("vae/config.json", "scheduler/scheduler_config.json"):
        shutil.copy(DATA / "lods_parity" / "sd" / file, folder / file)
    for file in ("vocab.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(DATA / "lods_parity" / "sd" / "tokenizer" / file, folder / "tokenizer" / file)
    shutil.copytree(folder / "tokenizer", folder / "tokenizer_2")
    change(folder / "tokenizer_2/tokenizer_config.json", pad_token="!")
    change(folder / "tokenizer_2/special_tokens_map.json", pad_token="!")
    change(folder / "vae/config.json", scaling_factor=0.13025)
    shutil.copy(DATA / "sdxl" / "model_index.json", folder / "model_index.json")
    change(folder / "model_index.json", **index)
    for part, shapes in json.loads((DATA / "sdxl" / "shapes.json").read_text()).items():
        shutil.copytree(DATA / "sdxl" / part, folder / part)
        state = {name: draw(f"{part}.{name}", shape) for name, shape in shapes.items()}
        save_file(state, folder / part / f"{STEMS[part]}.safetensors", {"format": "pt"})
    return folder


def change(file, **changes):
    """Changes entries of a JSON object in a file; None takes one away."""
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
