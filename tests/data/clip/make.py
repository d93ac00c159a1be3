"""Makes this folder: a tiny random CLIP as transformers saves it, and what PyTorch answers on it in float32. No test runs it.

    python tests/data/clip/make.py     # made with torch 2.13, transformers 4.57

arrays.npz: pixels [n 3 h w] in [0, 1] of the size that the encoder wants, normalised as `CLIPImageProcessor` does
-> image_embeds; TEXTS through its tokenizer -> text_embeds; cosine [n k] between the two. Weights are float16 on disk.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2]))
TEXTS = ["a red mug", "a blue chair", "a red car, seen from very far away and then, in the end, from the side"]

if __name__ == "__main__":
    from lods_jax.priors.tokenizer import START, files

    torch.manual_seed(0)
    for name, text in files(["a", "red", "blue", "mug", "chair", "car", ","], length=16).items():
        if name.startswith("tokenizer/"):
            (HERE / name.removeprefix("tokenizer/")).write_text(text, encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(HERE)
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.convert_tokens_to_ids(START),
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16,
        "patch_size": 8,
    }  # fmt: skip
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=20))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:  # biases and norms that are not their defaults
                p += 0.1 * torch.randn_like(p)
            p.copy_(p.half().float())
        model.half().save_pretrained(HERE)
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(HERE)
        model.float().eval()
        pixels = torch.rand(3, 3, 16, 16)
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[None, :, None, None]
        deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])[None, :, None, None]
        image = model.get_image_features(pixel_values=(pixels - mean) / deviation)
        words = tokenizer(TEXTS, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
        text = model.get_text_features(**words)
        unit = lambda x: x / x.norm(dim=-1, keepdim=True)  # noqa: E731
        arrays = {"pixels": pixels, "image_embeds": image, "text_embeds": text, "cosine": unit(image) @ unit(text).T}
        np.savez_compressed(HERE / "arrays.npz", texts=np.array(TEXTS), **{name: x.numpy() for name, x in arrays.items()})
