"""Makes this folder: configs and shapes of a tiny SDXL, and what PyTorch answers on it in float32. Needs torch; no test runs it.

    python tests/data/sdxl/make.py     # made with torch 2.13.0, diffusers 0.39.0, transformers 4.57.6, peft 0.21.2

`tests/sdxl.py` draws the weights, and the inputs below, by their names. arrays.npz, NCHW, b = 2:
  prompt_embeds, pooled_prompt_embeds      of TEXTS, as the pipeline's encode_prompt gives them
  negative_prompt_embeds, negative_pooled_prompt_embeds   of "", encoded
  eps                                      the U-Net at latents, t, tokens, pooled, with the time ids of 16 x 16 pixels
  loss, g_embedding, g_pooled, g_lora/NAME/{down, up}     of the mean of (eps - noise)^2, with one embedding and one pooled vector
                                           for both, and a LoRA at scale 0.5 on all layers of attention
  {kohya, diffusers}_{eps, embeds, pooled} with the LoRA of that file merged, at scale 0.8
  inverted_embeds, inverted_pooled         of INVERTED, with the textual inversion toy.safetensors
Adapters: kohya.safetensors with the names of the original code, diffusers.safetensors as a pipeline saves it: U-Net and both
text encoders in each.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))
from tests.sdxl import draw, make_folder  # noqa: E402

TEXTS = ["a red mug, front view", "a dog"]
INVERTED = ["a toy on a mug", "a dog"]
TARGETS, RANK, SCALE, MERGED = ("to_q", "to_k", "to_v", "to_out.0"), 2, 0.5, 0.8
TIME_IDS = torch.tensor([[16.0, 16.0, 0.0, 0.0, 16.0, 16.0]] * 2)
UNET = {
    "sample_size": 8, "block_out_channels": [32, 64], "layers_per_block": 1, "cross_attention_dim": 40,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [2, 4], "transformer_layers_per_block": [1, 2], "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 24,
}  # fmt: skip
TEXT = {"vocab_size": 532, "max_position_embeddings": 77, "bos_token_id": 530, "pad_token_id": 531}
TEXT_1 = TEXT | {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "eos_token_id": 531,
}
# 2 for the end token is what SDXL's own file says: transformers then takes the largest id.
TEXT_2 = TEXT | {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "eos_token_id": 2}
TEXT_2 |= {"hidden_act": "gelu", "projection_dim": 24}


def save_parts():
    """Configs, and the shapes of all parameters."""
    parts = {
        "unet": UNet2DConditionModel(**UNET),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT_1)),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**TEXT_2)),
    }
    for name, module in parts.items():
        with tempfile.TemporaryDirectory() as folder:
            module.save_pretrained(folder)
            (HERE / name).mkdir(exist_ok=True)
            (HERE / name / "config.json").write_text((Path(folder) / "config.json").read_text())
    shapes = {name: {key: list(x.shape) for key, x in module.state_dict().items()} for name, module in parts.items()}
    (HERE / "shapes.json").write_text(json.dumps(shapes, separators=(",", ":")) + "\n")
    index = {"_class_name": "StableDiffusionXLPipeline", "_diffusers_version": "0.39.0", "force_zeros_for_empty_prompt": True}
    index |= {"scheduler": ["diffusers", "PNDMScheduler"], "unet": ["diffusers", "UNet2DConditionModel"]}
    index |= {"vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"]}
    index |= {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}
    index |= {name: ["transformers", "CLIPTokenizer"] for name in ("tokenizer", "tokenizer_2")}
    (HERE / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def drawn(name, *shape):
    return torch.from_numpy(draw(name, shape)) * (np.prod(shape[1:]) ** 0.5 if len(shape) > 1 else 10)


def ask(unet, given, tokens, pooled):
    added = {"text_embeds": pooled, "time_ids": TIME_IDS}
    return unet(given["latents"], given["t"], tokens, added_cond_kwargs=added).sample


def embeds(pipe, texts):
    tokens, _, pooled, _ = pipe.encode_prompt(texts, do_classifier_free_guidance=False)
    return tokens, pooled


def original(name):
    """The name of a layer in SDXL's own code, for this U-Net of two levels with one layer each."""
    places = {
        "down_blocks.1.attentions.0": "input_blocks.3.1", "mid_block.attentions.0": "middle_block.1",
        "up_blocks.0.attentions.0": "output_blocks.0.1", "up_blocks.0.attentions.1": "output_blocks.1.1",
        "down_blocks.1.resnets.0.conv1": "input_blocks.3.0.in_layers.2",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
        "up_blocks.0.resnets.1.conv_shortcut": "output_blocks.1.0.skip_connection",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv", "add_embedding.linear_1": "label_emb.0.0",
    }  # fmt: skip
    return next(own + name.removeprefix(place) for place, own in places.items() if name.startswith(place))


KOHYA = (
    "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "down_blocks.1.attentions.0.proj_in", "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "up_blocks.0.attentions.0.transformer_blocks.1.attn2.to_k", "up_blocks.0.attentions.1.transformer_blocks.0.ff.net.2",
    "down_blocks.1.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv", "up_blocks.0.resnets.1.conv_shortcut",
    "up_blocks.0.upsamplers.0.conv", "add_embedding.linear_1",
)  # fmt: skip


def save_kohya(pipe, file):
    """A file of kohya's scripts; what it should do is computed by adding its products to the weights."""
    flat, merged = {}, []
    layers = [(f"lora_unet_{original(name).replace('.', '_')}", pipe.unet.get_submodule(name)) for name in KOHYA]
    for i, encoder in enumerate((pipe.text_encoder, pipe.text_encoder_2)):
        for name in ("text_model.encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.1.mlp.fc1"):
            layers.append((f"lora_te{i + 1}_{name.replace('.', '_')}", encoder.get_submodule(name)))
    for name, layer in layers:
        n_out, n_in, *window = layer.weight.shape
        down, up = 0.3 * torch.randn(RANK, n_in, *window), 0.3 * torch.randn(n_out, RANK, *(1 for _ in window))
        product = MERGED / RANK * (up.reshape(n_out, RANK) @ down.reshape(RANK, -1))
        flat |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}
        merged.append((layer.weight, product.reshape(layer.weight.shape)))
    save_file(flat, file)
    with torch.no_grad():
        for weight, added in merged:
            weight += added


def save_diffusers(pipe, file):
    """An adapter that peft made, as a pipeline saves it."""
    layers = {}
    wanted = {"unet": ["attn2.to_v", "proj_out"], "text_encoder": ["k_proj"], "text_encoder_2": ["v_proj", "fc2"]}
    for part, targets in wanted.items():
        module = getattr(pipe, part)
        module.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
        for name, p in module.named_parameters():
            if "lora_" in name:
                p.data = 0.3 * torch.randn_like(p)
        layers[f"{part}_lora_layers"] = get_peft_model_state_dict(module)
    with tempfile.TemporaryDirectory() as folder:
        StableDiffusionXLPipeline.save_lora_weights(folder, **layers)
        (Path(folder) / "pytorch_lora_weights.safetensors").rename(file)


def answers(pipe, given, name):
    with torch.no_grad():
        tokens, pooled = embeds(pipe, TEXTS)
        return {f"{name}_eps": ask(pipe.unet, given, given["tokens"], given["pooled"])} | {
            f"{name}_embeds": tokens, f"{name}_pooled": pooled
        }  # fmt: skip


torch.manual_seed(0)
save_parts()
with tempfile.TemporaryDirectory() as root:
    folder = make_folder(Path(root) / "sdxl")
    pipeline = lambda: StableDiffusionXLPipeline.from_pretrained(folder)  # noqa: E731
    pipe = pipeline()
    given = {"latents": drawn("latents", 2, 4, 8, 8), "noise": drawn("noise", 2, 4, 8, 8), "t": torch.tensor([17, 801])}
    given |= {"tokens": drawn("tokens", 2, 77, 40), "pooled": drawn("pooled", 2, 24)}
    arrays = {}
    with torch.no_grad():
        zeros = pipe.encode_prompt(TEXTS, do_classifier_free_guidance=True)
        assert not torch.cat([zeros[1].flatten(), zeros[3].flatten()]).any()
        tokens, null, pooled, null_pooled = pipe.encode_prompt(TEXTS, negative_prompt=["", ""], do_classifier_free_guidance=True)
        arrays |= {"prompt_embeds": tokens, "pooled_prompt_embeds": pooled}
        arrays |= {"negative_prompt_embeds": null[:1], "negative_pooled_prompt_embeds": null_pooled[:1]}
        arrays["eps"] = ask(pipe.unet, given, given["tokens"], given["pooled"])
    embedding, own = given["tokens"][0].clone().requires_grad_(), given["pooled"][0].clone().requires_grad_()
    lora = {}
    for name, m in pipe.unet.named_modules():
        if name.endswith(TARGETS) and isinstance(m, torch.nn.Linear):
            down = (drawn(f"{name}/down", RANK, m.in_features) / RANK).requires_grad_()
            up = (0.1 * drawn(f"{name}/up", m.out_features, RANK)).requires_grad_()
            lora |= {f"{name}/down": down, f"{name}/up": up}
            m.register_forward_hook(lambda m, args, out, down=down, up=up: out + SCALE * args[0] @ down.T @ up.T)
    loss = ((ask(pipe.unet, given, embedding.expand(2, 77, 40), own.expand(2, 24)) - given["noise"]) ** 2).mean()
    loss.backward()
    arrays |= {"loss": loss, "g_embedding": embedding.grad, "g_pooled": own.grad}
    arrays |= {f"g_lora/{name}": x.grad for name, x in lora.items()}

    save_kohya(pipe := pipeline(), HERE / "kohya.safetensors")
    arrays |= answers(pipe, given, "kohya")
    save_diffusers(pipeline(), HERE / "diffusers.safetensors")
    pipe = pipeline()
    pipe.load_lora_weights(HERE, weight_name="diffusers.safetensors", adapter_name="one")
    pipe.set_adapters("one", MERGED)
    arrays |= answers(pipe, given, "diffusers")

    toy = {"clip_l": torch.randn(2, 16), "clip_g": torch.randn(2, 24)}
    save_file(toy, HERE / "toy.safetensors")
    pipe = pipeline()
    for key, tokenizer, encoder in (
        ("clip_l", pipe.tokenizer, pipe.text_encoder),
        ("clip_g", pipe.tokenizer_2, pipe.text_encoder_2),
    ):
        pipe.load_textual_inversion(toy[key], token="toy", text_encoder=encoder, tokenizer=tokenizer)
    pipe.text_encoder_2.text_model.eos_token_id = 531  # the largest id is no longer the end token
    with torch.no_grad():
        tokens, pooled = embeds(pipe, INVERTED)
    arrays |= {"inverted_embeds": tokens, "inverted_pooled": pooled}
    np.savez_compressed(HERE / "arrays.npz", **{name: x.detach().numpy() for name, x in arrays.items()})
