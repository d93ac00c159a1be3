"""Laws of the adapter: what it leaves alone, what it moves, and that its files come back."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lods_jax.core.types import Cond, Query
from lods_jax.priors import lora
from lods_jax.priors.adapter_files import load_embedding, load_lora, save_embedding, save_lora
from lods_jax.priors.stable_diffusion import stable_diffusion

B = 3
FITTED = [Query("null", lora=0.5), Query("plain", lora=1.0, pose=True), Query("learned")]


@pytest.fixture(scope="module")
def psi(prior, weights):
    """Everything that can be learned, with factors that are not zero."""
    fresh = prior.init_psi(weights, jax.random.key(0), jnp.zeros((77, 32)), FITTED)
    return jax.tree.map_with_path(lambda path, x: x + 0.1 * np.random.default_rng(len(str(path))).normal(size=x.shape), fresh)


@pytest.fixture(scope="module")
def predict(prior):
    return jax.jit(prior.predict)


@pytest.fixture(scope="module")
def given():
    k = jax.random.split(jax.random.key(1), 3)
    pose = jax.random.normal(k[2], (B, 16))
    return jax.random.normal(k[0], (B, 8, 8, 4)), jnp.array([10, 500, 990]), jax.random.normal(k[1], (B, 77, 32)), pose


def test_it_sits_on_every_attention_projection(weights):
    """One layer each way, attention at one level and in the middle: 4 blocks with 2 attentions of 4 projections."""
    found = lora.sites(weights["unet"])
    assert len(found) == 32
    assert all(name.split(".")[-1] in ("to_q", "to_k", "to_v", "0") for name in found)
    assert len(lora.sites(weights["unet"], targets=("to_q",))) == 8
    with pytest.raises(ValueError, match="no linear layer"):
        lora.sites(weights["unet"], targets=("nothing",))


def test_scale_zero_is_the_frozen_network_bit_for_bit(weights, psi, predict, given):
    """At equal shapes: a row of scale 0 beside rows that are adapted."""
    z, t, tokens, _ = given
    frozen = predict(weights, psi, z, t, Cond(tokens))
    mixed = predict(weights, psi, z, t, Cond(tokens, lora=jnp.array([0.0, 0.5, 0.0])))
    np.testing.assert_array_equal(mixed[0], frozen[0])
    np.testing.assert_array_equal(mixed[2], frozen[2])
    assert float(jnp.abs(mixed[1] - frozen[1]).max()) > 1e-3


def test_a_new_adapter_changes_nothing(prior, weights, predict, given):
    z, t, tokens, pose = given
    fresh = prior.init_psi(weights, jax.random.key(0), tokens[0], FITTED)
    adapted = predict(weights, fresh, z, t, Cond(tokens, jnp.ones(B), pose, jnp.ones(B)))
    np.testing.assert_allclose(adapted, predict(weights, fresh, z, t, Cond(tokens)), rtol=1e-5, atol=2e-6)


def test_the_side_path_equals_merged_kernels(weights, psi, predict, given):
    z, t, tokens, _ = given
    merged = weights | {"unet": lora.merge(weights["unet"], psi["lora"], 0.5)}
    side = predict(weights, psi, z, t, Cond(tokens, lora=jnp.full(B, 0.5)))
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(side, predict(merged, {}, z, t, Cond(tokens)), atol=2e-5)


def test_gradients_reach_the_factors_alone(prior, weights, psi, given):
    z, t, tokens, pose = given

    @jax.jit
    def gradients(weights, psi):
        cond = Cond(tokens, jnp.full(B, 0.5), pose, jnp.ones(B))
        return jax.grad(lambda psi: jnp.sum(prior.predict(weights, psi, z, t, cond) ** 2))(psi)

    found = gradients(weights, psi)
    assert not bool(jnp.any(found["embedding"]))
    sizes = {name: float(jnp.abs(x).max()) for site in found["lora"].values() for name, x in site.items()}
    assert set(sizes) == {"down", "up"}
    assert all(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves((found["lora"], found["pose"])))


def test_the_pose_acts_only_where_it_is_on(weights, psi, predict, given):
    z, t, tokens, pose = given
    without = predict(weights, psi, z, t, Cond(tokens, lora=jnp.ones(B)))
    on = predict(weights, psi, z, t, Cond(tokens, jnp.ones(B), pose, jnp.array([0.0, 1.0, 0.0])))
    np.testing.assert_allclose(on[0], without[0], rtol=1e-5, atol=2e-6)
    assert float(jnp.abs(on[1] - without[1]).max()) > 1e-4
    turned = predict(weights, psi, z, t, Cond(tokens, jnp.ones(B), 2 * pose, jnp.array([0.0, 1.0, 0.0])))
    assert float(jnp.abs(on[1] - turned[1]).max()) > 1e-4


def test_only_what_a_query_uses_is_learned(prior, weights):
    start = lambda *queries: set(prior.init_psi(weights, jax.random.key(0), jnp.zeros((77, 32)), queries))  # noqa: E731
    assert start(Query("learned")) == {"embedding"}
    assert start(Query("null", lora=0.5)) == {"lora"}
    assert start(Query("plain", lora=1.0, pose=True)) == {"lora", "pose"}
    assert start() == set()


def test_rank_and_targets_are_free(sd):
    prior = stable_diffusion(sd, rank=2, targets=("to_v",))
    psi = prior.init_psi(prior.init(jax.random.key(0)), jax.random.key(0), jnp.zeros((77, 32)), [Query("null", lora=1.0)])
    assert len(psi["lora"]) == 8
    assert {x["down"].shape[1] for x in psi["lora"].values()} == {2}
    with pytest.raises(ValueError, match="rank must be at least 1"):
        lora.init(jax.random.key(0), prior.init(jax.random.key(0))["unet"], rank=0)


def test_an_adapter_of_another_network_is_refused(prior, weights, psi, given):
    z, t, tokens, _ = given
    wrong = {"lora": psi["lora"] | {"no.such.layer": next(iter(psi["lora"].values()))}}
    with pytest.raises(ValueError, match=r"no\.such\.layer"):
        jax.eval_shape(prior.predict, weights, wrong, z, t, Cond(tokens, lora=jnp.ones(B)))


def side(scale, dtype, groups=1):
    """A linear layer with a side path, as a function of its input [b n 8], which it may see in groups; and its parameters."""
    layer = nn.Dense(6, dtype=dtype, name="to_q")
    k = jax.random.split(jax.random.key(0), 4)
    x, factors = (
        jax.random.normal(k[0], (3, 5, 8), dtype),
        {"down": jax.random.normal(k[1], (8, 2)), "up": jax.random.normal(k[2], (2, 6))},
    )
    params = jax.tree.map(lambda x: x.astype(dtype), layer.init(k[3], x))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(6, dtype=dtype, name="to_q")(x.reshape(-1, groups * x.shape[1], 8)).reshape(*x.shape[:2], 6)

    def apply(x, scale):
        with nn.intercept_methods(lora.side_path({"to_q": factors}, scale, set())):
            return Net().apply({"params": {"to_q": params["params"]}}, x)

    return apply(x, scale), apply, x, factors


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_side_path_computes_in_the_dtype_of_its_layer(dtype):
    """Its parameters are float32, and so is their gradient; examples at scale 0 are the layer itself, bit for bit."""
    scale = np.array([0.0, 0.5, 0.0], np.float32)
    out, apply, x, factors = side(scale, dtype)
    frozen, full = apply(x, np.zeros(3, np.float32)), apply(x, jnp.asarray(scale))
    assert out.dtype == dtype
    np.testing.assert_array_equal(out[::2], frozen[::2])
    expected = frozen + 0.5 * (x.astype(jnp.float32) @ factors["down"] @ factors["up"])
    tolerance = {jnp.float32: 1e-5, jnp.bfloat16: 0.15}[dtype]  # of values up to 20
    np.testing.assert_allclose(out[1].astype(jnp.float32), expected[1], atol=tolerance)
    np.testing.assert_allclose(out.astype(jnp.float32), full.astype(jnp.float32), atol=tolerance)


def test_examples_at_scale_zero_do_not_pay_in_half_precision():
    """Where scales are known while tracing, the products are of the adapted examples alone."""
    _, apply, x, _ = side(jnp.ones(3), jnp.bfloat16)
    rows = lambda scale, x, apply=apply: [  # noqa: E731
        eqn.invars[0].aval.shape[0]
        for eqn in jax.make_jaxpr(lambda x: apply(x, scale))(x).jaxpr.eqns
        if eqn.primitive.name == "dot_general"
    ]
    known = np.array([0.0, 0.0, 0.5], np.float32)
    assert rows(known, x) == [3, 1, 1]
    assert rows(np.zeros(3, np.float32), x) == [3]
    assert rows(jnp.asarray(known), x) == [3, 3, 3]
    _, exact, x, _ = side(jnp.ones(3), jnp.float32)
    assert rows(known, x, exact) == [3, 3, 3]


def test_a_layer_may_see_several_examples_in_one_row():
    """As the self-attention of several views does: the scale is still that of each example."""
    scale = np.array([0.0, 0.5, 1.0], np.float32)
    np.testing.assert_allclose(side(scale, jnp.float32, groups=3)[0], side(scale, jnp.float32)[0], atol=1e-5)


# --- files ------------------------------------------------------------------------------------------------------------------
def test_a_saved_adapter_carries_its_scale_in_its_weights(weights, psi, tmp_path):
    """A program that ignores the metadata sees the same product, and one that reads it multiplies by 1."""
    save_lora(tmp_path / "a.safetensors", psi["lora"], scale=0.5)
    back, scale = load_lora(tmp_path / "a.safetensors", weights["unet"])
    assert scale == 1
    expected = {name: {"down": x["down"], "up": 0.5 * x["up"]} for name, x in sorted(psi["lora"].items())}
    jax.tree.map(np.testing.assert_array_equal, back, expected)


def test_the_file_is_in_the_layout_of_diffusers(psi, tmp_path):
    save_lora(tmp_path / "a.safetensors", psi["lora"], scale=0.5)
    flat = load_file(tmp_path / "a.safetensors")
    assert flat["unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora.down.weight"].shape == (4, 32)
    assert flat["unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora.up.weight"].shape[1] == 4
    about = metadata(tmp_path / "a.safetensors")
    assert (about["unet.r"], about["unet.lora_alpha"]) == (4, 4)


def metadata(file):
    with safe_open(file, "np") as opened:
        return json.loads(opened.metadata()["lora_adapter_metadata"])


@pytest.fixture(scope="module")
def adapted(folders, torch_arrays):
    """(lora, scale) -> what the U-Net of the adapters' folder says with an adapter; and its weights."""
    prior, a = stable_diffusion(folders / "transformers5"), torch_arrays
    weights = prior.init(jax.random.key(0))
    cond = lambda scale: Cond(a["lora_emb"], lora=scale)  # noqa: E731
    return jax.jit(lambda lora, scale: prior.predict(weights, {"lora": lora}, a["z"], a["t"], cond(scale))), weights["unet"]


@pytest.mark.parametrize(
    ("name", "scale"), [("alpha_pattern/pytorch_lora_weights.safetensors", 1), ("peft/adapter_model.safetensors", 4)]
)
def test_an_adapter_of_peft_acts_as_in_pytorch(folders, torch_arrays, adapted, name, scale):
    """alpha_pattern in the metadata, lora_alpha in adapter_config.json: without it the error is a fifth of the effect or more."""
    predict, unet = adapted
    lora, found = load_lora(folders / name, unet)
    assert found == scale
    expected = torch_arrays[f"{name.split('/')[0]}_eps"]
    np.testing.assert_allclose(predict(lora, jnp.full(3, scale, jnp.float32)), expected, atol=2e-5)


def test_ranks_may_differ_by_layer(weights, psi, tmp_path):
    """What is written says alpha = rank for each layer, so that every reader finds the scale 1."""
    cut = lambda x, rank: {"down": x["down"][:, :rank], "up": x["up"][:rank]}  # noqa: E731
    lora = {name: cut(x, 1 + i % 4) for i, (name, x) in enumerate(sorted(psi["lora"].items()))}
    save_lora(tmp_path / "a.safetensors", lora)
    back, scale = load_lora(tmp_path / "a.safetensors", weights["unet"])
    assert scale == 1
    jax.tree.map(np.testing.assert_array_equal, back, lora)
    about = metadata(tmp_path / "a.safetensors")
    assert {name: about["unet.rank_pattern"].get(name, about["unet.r"]) for name in lora} == {
        name: x["down"].shape[1] for name, x in lora.items()
    }
    assert about["unet.alpha_pattern"] == about["unet.rank_pattern"]


NAME = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.mark.parametrize(
    ("about", "alpha", "expected"),
    [
        ({"lora_alpha": 8}, None, 8 / 4),
        ({"lora_alpha": 8, "use_rslora": True}, None, 8 / 2),
        ({"lora_alpha": 4, "alpha_pattern": {"to_k": 12}}, None, 12 / 4),
        ({"lora_alpha": 4, "alpha_pattern": {"attn1.to_k": 12}}, None, 1),
        ({"lora_alpha": 4, "alpha_pattern": {r"mid_block.*attn2\.to_[kv]": 12}}, None, 12 / 4),
        ({"lora_alpha": 4, "alpha_pattern": {"attn2.to_k": 2, "to_k": 12}}, None, 2 / 4),  # the first that fits
        ({}, np.array([2.0], np.float32), 2 / 4),
        ({}, np.array(2.0, np.float16), 2 / 4),
        ({"lora_alpha": 8}, np.array(2.0, np.float32), 2 / 4),  # a layer's own goes first
        ({}, None, 1),
    ],
)
def test_the_scale_of_a_layer_is_what_peft_makes_of_it(weights, psi, tmp_path, about, alpha, expected):
    flat = {f"unet.{name}.lora_A.weight": np.asarray(x["down"].T) for name, x in psi["lora"].items()}
    flat |= {f"unet.{name}.lora_B.weight": np.asarray(x["up"].T) for name, x in psi["lora"].items()}
    flat |= {} if alpha is None else {f"unet.{NAME}.alpha": alpha}
    flat = {name: np.ascontiguousarray(x) if x.ndim else x for name, x in flat.items()}
    said = json.dumps({f"unet.{key}": value for key, value in about.items()})
    save_file(flat, tmp_path / "a.safetensors", {"lora_adapter_metadata": said})
    back, scale = load_lora(tmp_path / "a.safetensors", weights["unet"])
    np.testing.assert_allclose(scale * back[NAME]["up"], expected * psi["lora"][NAME]["up"], rtol=1e-6)


@pytest.mark.parametrize(
    "about",
    [
        "{",
        "[]",
        '{"unet.lora_alpha": "16"}',
        '{"unet.alpha_pattern": [1]}',
        '{"unet.alpha_pattern": {"(": 2}}',
        '{"unet.alpha_pattern": {"(a+)+x": 2}}',
        '{"unet.lora_alpha": NaN}',
    ],
)
def test_metadata_that_is_malformed_is_one_line(weights, psi, tmp_path, about):
    save_lora(tmp_path / "a.safetensors", psi["lora"])
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", {"lora_adapter_metadata": about})
    with pytest.raises(ValueError, match=r"b\.safetensors") as error:
        load_lora(tmp_path / "b.safetensors", weights["unet"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name, part: f"unet.{name}.lora_{'A' if part == 'down' else 'B'}.weight",
        lambda name, part: f"base_model.model.{name}.lora_{'A' if part == 'down' else 'B'}.default.weight",
        lambda name, part: (
            f"{name.rsplit('.to_', 1)[0]}.processor.to_{name.rsplit('.to_', 1)[1].removesuffix('.0')}_lora.{part}.weight"
        ),
        lambda name, part: f"lora_unet_{name.replace('.', '_')}.lora_{part}.weight",
    ],
    ids=["peft", "peft model", "2023", "kohya"],
)
def test_older_names_are_read(weights, psi, tmp_path, rename):
    flat = {
        rename(name, part): np.ascontiguousarray(np.asarray(x, np.float32).T)
        for name, factors in psi["lora"].items()
        for part, x in factors.items()
    }
    save_file(flat, tmp_path / "old.safetensors")
    back, scale = load_lora(tmp_path / "old.safetensors", weights["unet"])
    assert scale == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), back, dict(sorted(psi["lora"].items())))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda flat: flat | {"unet.conv_in.weight": np.zeros(3, np.float32)}, "no part of an adapter"),
        (lambda flat: {k.replace("mid_block", "middle"): x for k, x in flat.items()}, r"no layer unet\.middle"),
        (lambda flat: dict(list(flat.items())[1:]), "do not fit"),
        (lambda flat: {k: np.full_like(x, np.nan) for k, x in flat.items()}, "NaN or infinite"),
        (lambda flat: {k: x.astype(np.int8) for k, x in flat.items()}, "is of type I8"),
        (lambda flat: {}, "holds no adapter"),
    ],
)
def test_files_that_do_not_fit_are_refused(weights, psi, tmp_path, change, says):
    save_lora(tmp_path / "a.safetensors", psi["lora"])
    save_file(change(load_file(tmp_path / "a.safetensors")), tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=says):
        load_lora(tmp_path / "b.safetensors", weights["unet"])


def test_the_learned_text_is_what_a_pipeline_takes(tmp_path):
    embedding = jnp.arange(6.0).reshape(2, 3)
    save_embedding(tmp_path / "e.safetensors", embedding)
    assert load_file(tmp_path / "e.safetensors")["negative_prompt_embeds"].shape == (1, 2, 3)
    np.testing.assert_array_equal(load_embedding(tmp_path / "e.safetensors"), embedding)
    save_file({"other": np.zeros((1, 2, 3), np.float32)}, tmp_path / "f.safetensors")
    with pytest.raises(ValueError, match="must hold negative_prompt_embeds"):
        load_embedding(tmp_path / "f.safetensors")
