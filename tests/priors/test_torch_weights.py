import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from lods_jax.priors import diffusers_folder, flax_networks, tokenizer, torch_weights
from lods_jax.priors.diffusers_folder import read_config

MODULES = {"unet": flax_networks.unet, "vae": flax_networks.vae, "text": flax_networks.text_encoder}
PARTS = list(MODULES)


@pytest.fixture(scope="module")
def shapes(sd):
    """Shapes of the parameter tree of each part."""
    configs = {part: read_config(sd / diffusers_folder.PARTS[part][0] / "config.json") for part in PARTS}
    return {part: flax_networks.shapes(MODULES[part](configs[part])) for part in PARTS}


@pytest.fixture(scope="module")
def states(sd):
    return {part: torch_weights.read_state(sd, part) for part in PARTS}


def same(a: dict, b: dict) -> bool:
    """Whether two flat dicts of arrays are alike bit for bit."""
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("part", PARTS)
def test_to_flax_and_back_is_the_identity(part, states, shapes):
    assert same(torch_weights.from_flax(torch_weights.to_flax(states[part], shapes[part])), states[part])


@pytest.mark.parametrize("linear", [False, True])
def test_linear_layers_and_1x1_convolutions_stand_for_each_other(linear, sd, states):
    """Files of different age differ in the window of these kernels, and so do networks in `use_linear_projection`."""
    config = read_config(sd / "unet" / "config.json") | {"use_linear_projection": linear}
    shapes, windowed = flax_networks.shapes(flax_networks.unet(config)), states["unet"]
    bare = {name: array.reshape(torch_weights.as_matrix(array.shape)) for name, array in windowed.items()}
    assert sum(bare[name].ndim != windowed[name].ndim for name in bare) >= 8
    a, b = (torch_weights.from_flax(torch_weights.to_flax(state, shapes)) for state in (windowed, bare))
    assert same(a, b)
    assert a["mid_block.attentions.0.proj_in.weight"].ndim == (2 if linear else 4)


def test_old_names_of_vae_attention_are_read(states, shapes):
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = {}
    for name, array in states["vae"].items():
        for today, then in old.items():
            name = name.replace(today, then)
        state[name] = array
    assert state.keys() != states["vae"].keys()
    assert same(torch_weights.from_flax(torch_weights.to_flax(state, shapes["vae"])), states["vae"])


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_key_is_named_with_its_shape(part, states, shapes):
    name, array = sorted(states[part].items())[-1]
    state = {k: x for k, x in states[part].items() if k != name}
    with pytest.raises(ValueError, match=name) as error:
        torch_weights.to_flax(state, shapes[part])
    assert str(error.value) == f"{name} is missing: expected shape {array.shape}, found nothing"


def test_an_extra_key_is_named(states, shapes):
    with pytest.raises(ValueError, match=r"^conv_in\.lora of shape \(2, 3\) has no place in this network$"):
        torch_weights.to_flax(states["unet"] | {"conv_in.lora": np.zeros((2, 3))}, shapes["unet"])


def test_a_key_given_under_two_names_is_refused(states, shapes):
    name = next(k for k in states["vae"] if k.endswith(".to_q.weight"))
    twice = states["vae"] | {name.replace("to_q", "query"): states["vae"][name]}
    with pytest.raises(ValueError, match="twice"):
        torch_weights.to_flax(twice, shapes["vae"])


def test_a_wrong_shape_is_named_with_both_shapes(states, shapes):
    state = states["unet"] | {"conv_in.weight": np.zeros((32, 9, 3, 3), np.float32)}
    with pytest.raises(ValueError, match="conv_in") as error:
        torch_weights.to_flax(state, shapes["unet"])
    assert str(error.value) == "conv_in.weight: expected shape (32, 4, 3, 3), found (32, 9, 3, 3)"


def test_shards_and_variants_are_the_same_weights(tmp_path, states):
    state = states["text"]
    names, folder = sorted(state), tmp_path / "text_encoder"
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    folder.mkdir()
    for file, keys in halves.items():
        save_file({k: state[k] for k in keys}, folder / file)
    index = {"weight_map": {k: file for file, keys in halves.items() for k in keys}}
    (folder / "model.safetensors.index.fp16.json").write_text(json.dumps(index))
    assert same(torch_weights.read_state(tmp_path, "text", "fp16"), state)
    save_file(state, folder / "model.ema.safetensors")
    assert same(torch_weights.read_state(tmp_path, "text", "ema"), state)


@pytest.mark.parametrize(
    ("files", "error", "named"),
    [
        ([], FileNotFoundError, "unet is missing: expected diffusion_pytorch_model.safetensors in it"),
        (["unet/config.json"], FileNotFoundError, "diffusion_pytorch_model.safetensors is missing"),
        (["unet/diffusion_pytorch_model.bin"], ValueError, "expected safetensors"),
        (["unet/diffusion_pytorch_model.ckpt"], ValueError, "expected safetensors"),
    ],
)
def test_weights_that_cannot_be_read_are_one_line(tmp_path, files, error, named):
    for file in files:
        torch_weights.place(tmp_path / file).write_text("")
    with pytest.raises(error, match=named) as caught:
        torch_weights.read_state(tmp_path, "unet")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_file_that_is_cut_is_one_line(tmp_path, sd, keep):
    name = "unet/diffusion_pytorch_model.safetensors"
    torch_weights.place(tmp_path / name).write_bytes((sd / name).read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"{name} is not a whole safetensors file") as caught:
        torch_weights.read_state(tmp_path, "unet")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a": "../../elsewhere"}}, {"weight_map": {"a": 1}}])
def test_an_index_of_shards_that_is_none_is_refused(tmp_path, index):
    file = torch_weights.place(tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json")
    file.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="must name files beside it under weight_map"):
        torch_weights.read_state(tmp_path, "unet")


def test_the_weights_of_another_network_are_refused_by_a_key_and_its_shape(tmp_path, sd, shapes):
    file = torch_weights.place(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    file.write_bytes((sd / "vae/diffusion_pytorch_model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"decoder\.conv_in\.bias of shape \(32,\) has no place"):
        torch_weights.to_flax(torch_weights.read_state(tmp_path, "unet"), shapes["unet"])


def test_what_is_not_a_folder_is_told_what_one_looks_like(tmp_path):
    (tmp_path / "model.ckpt").write_text("")
    for wrong in ("nowhere", "model.ckpt"):
        with pytest.raises(FileNotFoundError, match="expected a folder with unet, vae, text_encoder"):
            read_config(tmp_path / wrong / "unet" / "config.json")


@pytest.fixture
def saved(tmp_path, sd, states, shapes):
    """Arguments of `save_folder` that copy the fixture."""
    configs = {part: read_config(sd / diffusers_folder.PARTS[part][0] / "config.json") for part in PARTS}
    weights = {part: torch_weights.to_flax(states[part], shapes[part]) for part in PARTS}
    return tmp_path / "out", configs, weights, tokenizer.files(["a", "mug"])


def test_a_saved_folder_reads_back(saved, states):
    folder, configs, weights, files = saved
    torch_weights.save_folder(folder, configs, weights, files, "v_prediction", np.float32)
    assert all(same(torch_weights.read_state(folder, part), states[part]) for part in PARTS)
    assert read_config(folder / "scheduler/scheduler_config.json")["prediction_type"] == "v_prediction"
    assert (folder / "vocabulary.json").read_text() == files["vocabulary.json"]


def test_a_saved_folder_has_the_layout_of_diffusers(saved, sd):
    """Every file and every entry of the index that diffusers itself wrote for the same networks is there."""
    torch_weights.save_folder(*saved)
    ours, theirs = ({str(f.relative_to(root)) for f in root.rglob("*") if f.is_file()} for root in (saved[0], sd))
    assert theirs <= ours
    index, expected = (read_config(root / "model_index.json") for root in (saved[0], sd))
    assert index == expected | {"scheduler": ["diffusers", "DDIMScheduler"]}


def test_a_failed_save_changes_no_file(saved):
    """The weight 1e5 is no float16 number: the save fails after some files are written, and none of them arrives."""
    folder, configs, weights, files = saved
    torch_weights.save_folder(folder, configs, weights, files)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    broken = weights | {"text": jax.tree.map(lambda x: np.full_like(x, 1e5), weights["text"])}
    with pytest.raises(FloatingPointError):
        torch_weights.save_folder(folder, configs, broken, files, "v_prediction")
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    assert list(folder.parent.iterdir()) == [folder]


def test_other_files_in_the_folder_stay(saved):
    (note := torch_weights.place(saved[0] / "samples" / "note.txt")).write_text("mine")
    torch_weights.save_folder(*saved)
    assert note.read_text() == "mine"


# --- differences ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def pair(states):
    """Weights, and the same after a training: one matrix moved, one vector, and one array that is new."""
    base, rng = states["unet"], np.random.default_rng(0)
    matrix, vector = (next(name for name in base if base[name].ndim == ndim and len(base[name]) > 4) for ndim in (4, 1))
    moved = base[matrix].astype(np.float32)
    moved[1:] += rng.normal(size=moved[1:].shape).astype(np.float32) * 10.0 ** rng.uniform(-6, 0, (len(moved) - 1, 1, 1, 1))
    return base, base | {matrix: moved, vector: base[vector] + 1, "new.weight": np.eye(3, dtype=np.float32)}, (matrix, vector)


def test_a_difference_gives_the_weights_back_within_its_steps(tmp_path, pair):
    base, tuned, (matrix, vector) = pair
    other, file = tmp_path / "a" / "x.safetensors", tmp_path / "b" / "c" / "x.safetensors"
    save_file(base, torch_weights.place(other))
    torch_weights.save_difference(file, tuned, other)
    back = torch_weights.read_weights(file)
    assert back.keys() == tuned.keys()
    assert same({k: v for k, v in back.items() if k != matrix}, {k: v for k, v in tuned.items() if k != matrix})
    rows = lambda x: np.abs(x.astype(np.float64)).reshape(len(x), -1).max(1)  # noqa: E731
    assert (rows(back[matrix] - tuned[matrix]) <= rows(tuned[matrix] - base[matrix]) / 254 * 1.01 + 1e-6).all()
    assert set(torch_weights.read_arrays(file, {"I8", "F32"})) == {matrix, f"{matrix}.scale", vector, "new.weight"}
    (tmp_path / "moved").mkdir()
    for folder in ("a", "b"):  # both together may move
        (tmp_path / folder).rename(tmp_path / "moved" / folder)
    assert same(torch_weights.read_weights(tmp_path / "moved" / "b" / "c" / "x.safetensors"), back)


def test_a_difference_without_its_other_file_or_to_another_network_is_one_line(tmp_path, pair):
    base, tuned, (matrix, _) = pair
    other, file = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(base, other)
    torch_weights.save_difference(file, tuned, other)
    save_file(base | {matrix: base[matrix][:-1]}, other)
    with pytest.raises(ValueError, match=rf"b.safetensors: {matrix} does not fit that of a.safetensors") as error:
        torch_weights.read_weights(file)
    assert "\n" not in str(error.value)
    other.unlink()
    with pytest.raises(ValueError, match=r"a.safetensors is not a whole safetensors file"):
        torch_weights.read_weights(file)
