"""Makes this folder: adapters in the layouts that people have, and what PyTorch answers with them. Needs torch; no test runs it.

    python tests/data/adapters/make.py     # made with torch 2.13.0, diffusers 0.39.0, transformers 4.57.6, peft 0.21.2

All are for the Stable Diffusion of tests/data/lods_parity/sd, in float32, with random values:
  kohya.safetensors           names and alpha of kohya's scripts: attention, feed-forward, convolutions, text encoder
  diffusers.safetensors       as a pipeline's save_lora_weights writes it: U-Net and text encoder, with alphas in the metadata
  learned_embeds.safetensors  a textual inversion of three vectors, as diffusers saves it: its token is the key
  Wooden.safetensors          one of two vectors, as A1111's web UI saves it: its token is the name of the file

arrays.npz, NCHW, b = 2: z, t, emb -> {base, kohya, diffusers, both}_eps; TEXTS -> {base, kohya, diffusers, both}_emb.
kohya is at scale 0.8, diffusers at 0.5. INVERTED -> inverted_ids, inverted_emb.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

HERE = Path(__file__).parent
BASE = HERE.parent / "lods_parity" / "sd"
TEXTS = ["a red mug, front view", ""]
INVERTED = ["a <cat-toy> on a mug", "wooden <cat-toy>, side view", "a red mug"]
SCALES = {"kohya": 0.8, "diffusers": 0.5}
# Layers of each kind. A rank of 2, and alpha 1 or 3: a scale of 1/2 or 3/2.
UNET = (
    "down_blocks.0.attentions.0.proj_in",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2",
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.0.resnets.0.time_emb_proj",
    "down_blocks.0.downsamplers.0.conv",
    "down_blocks.1.resnets.0.conv_shortcut",
)
TEXT = ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
RANK = 2


def pipeline():
    return StableDiffusionPipeline.from_pretrained(BASE, safety_checker=None, requires_safety_checker=False)


def kohya(pipe):
    """The arrays of a file of kohya's scripts."""
    layers = {f"lora_unet_{name.replace('.', '_')}": pipe.unet.get_submodule(name) for name in UNET}
    names = [f"text_model.encoder.layers.0.{name}" for name in TEXT]
    layers |= {f"lora_te_{name.replace('.', '_')}": pipe.text_encoder.get_submodule(name) for name in names}
    flat = {}
    for i, (name, layer) in enumerate(layers.items()):
        n_out, n_in, *window = layer.weight.shape
        flat[f"{name}.lora_down.weight"] = 0.3 * torch.randn(RANK, n_in, *window)
        flat[f"{name}.lora_up.weight"] = 0.3 * torch.randn(n_out, RANK, *(1 for _ in window))
        # Of attention, diffusers reads the commonest alpha alone; scripts write one for all layers, or one for each kind.
        flat[f"{name}.alpha"] = torch.tensor(1.0 if i % 2 and "attn" not in name else 3.0)
    return flat


def save_diffusers(pipe, file):
    """An adapter that peft made, as a pipeline saves it."""
    of_unet = LoraConfig(r=RANK, lora_alpha=4, target_modules=["to_v", "to_out.0", "conv2", "proj_out"])
    of_text = LoraConfig(r=RANK, lora_alpha=1, target_modules=["k_proj", "v_proj"])
    layers, about = {}, {}  # with the names of peft for the U-Net, and the older ones of diffusers for the text encoder
    for prefix, module, config in (("unet", pipe.unet, of_unet), ("text_encoder", pipe.text_encoder, of_text)):
        module.add_adapter(config)
        for name, p in module.named_parameters():
            if "lora_" in name:
                p.data = 0.3 * torch.randn_like(p)
        layers[prefix] = get_peft_model_state_dict(module)
        about[prefix] = module.peft_config["default"].to_dict() | {"base_model_name_or_path": None}  # a path of this machine
    with tempfile.TemporaryDirectory() as folder:
        StableDiffusionPipeline.save_lora_weights(
            folder,
            unet_lora_layers=layers["unet"],
            text_encoder_lora_layers=convert_state_dict_to_diffusers(layers["text_encoder"]),
            unet_lora_adapter_metadata=about["unet"],
            text_encoder_lora_adapter_metadata=about["text_encoder"],
        )
        (Path(folder) / "pytorch_lora_weights.safetensors").rename(file)


def answers(pipe, given):
    """What the U-Net and the text encoder of a pipeline say."""
    ids = pipe.tokenizer(TEXTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    return {"eps": pipe.unet(given["z"], given["t"], given["emb"]).sample, "emb": pipe.text_encoder(ids)[0]}


torch.manual_seed(0)
with torch.no_grad():
    save_file(kohya(pipeline()), HERE / "kohya.safetensors")
    save_diffusers(pipeline(), HERE / "diffusers.safetensors")
    width = pipeline().text_encoder.config.hidden_size
    save_file({"<cat-toy>": torch.randn(3, width)}, HERE / "learned_embeds.safetensors")
    save_file({"emb_params": torch.randn(2, width)}, HERE / "Wooden.safetensors")
    given = {"z": torch.randn(2, 4, 8, 8), "t": torch.tensor([17, 801]), "emb": torch.randn(2, 77, width)}
    arrays = dict(given)
    for name, used in {"base": [], "kohya": ["kohya"], "diffusers": ["diffusers"], "both": ["kohya", "diffusers"]}.items():
        pipe = pipeline()
        for one in used:
            pipe.load_lora_weights(HERE, weight_name=f"{one}.safetensors", adapter_name=one)
        if used:
            pipe.set_adapters(used, [SCALES[one] for one in used])
        arrays |= {f"{name}_{what}": x for what, x in answers(pipe, given).items()}
    pipe = pipeline()
    pipe.load_textual_inversion(HERE, weight_name="learned_embeds.safetensors")
    pipe.load_textual_inversion(HERE, weight_name="Wooden.safetensors", token="wooden")
    texts = pipe.maybe_convert_prompt(INVERTED, pipe.tokenizer)
    ids = pipe.tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    arrays |= {"inverted_ids": ids, "inverted_emb": pipe.text_encoder(ids)[0]}
    np.savez_compressed(HERE / "arrays.npz", **{name: x.numpy() for name, x in arrays.items()})
