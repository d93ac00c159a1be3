"""Makes this folder: a tiny random Zero-1-to-3, and what PyTorch answers on it in float32. Needs torch; no test runs it.

    python tests/data/zero123/make.py     # made with torch 2.14.1, diffusers 0.39.0, transformers 4.57

arrays.npz, NCHW, b = 2: pixels in [0, 1] of the size that the encoder wants -> embedding; image01 -> mode (unscaled latents);
embedding, pose -> token; latents, mode, t, token -> eps. Weights are float16 on disk, and what PyTorch computes with.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

HERE = Path(__file__).parent
torch.manual_seed(0)
vae = AutoencoderKL(
    block_out_channels=(16, 32),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    latent_channels=4,
    norm_num_groups=8,
    sample_size=16,
)
unet = UNet2DConditionModel(
    in_channels=8,
    sample_size=8,
    block_out_channels=(32, 32),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    cross_attention_dim=32,
    attention_head_dim=4,
)
vision = CLIPVisionConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    image_size=16,
    patch_size=8,
    projection_dim=28,
)
image_encoder, projection = CLIPVisionModelWithProjection(vision), torch.nn.Linear(32, 32)
with torch.no_grad():
    for module in (vae, unet, image_encoder, projection):
        for p in module.parameters():
            if p.ndim == 1:  # biases and norms that are not their defaults
                p += 0.1 * torch.randn_like(p)
            p.copy_(p.half().float())
    parts = (("vae", vae), ("unet", unet), ("image_encoder", image_encoder))
    for folder, module in parts:
        module.half().save_pretrained(HERE / folder)
        module.float().eval()
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(HERE / "scheduler")
    (HERE / "cc_projection").mkdir(exist_ok=True)
    (HERE / "cc_projection" / "config.json").write_text('{"_class_name": "CCProjection", "in_channel": 32, "out_channel": 32}\n')
    state = {f"projection.{name}": p.half().contiguous() for name, p in projection.state_dict().items()}
    save_file(state, HERE / "cc_projection" / "diffusion_pytorch_model.safetensors")
    pixels, image01 = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[None, :, None, None]
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])[None, :, None, None]
    embedding = image_encoder((pixels - mean) / deviation).image_embeds
    mode = vae.encode(2 * image01 - 1).latent_dist.mode()
    pose, latents, t = torch.randn(2, 4), torch.randn(2, 4, 8, 8), torch.tensor([17, 801])
    token = projection(torch.cat([embedding, pose], -1))[:, None]
    eps = unet(torch.cat([latents, mode], 1), t, token).sample
    arrays = {"pixels": pixels, "embedding": embedding, "image01": image01, "mode": mode, "pose": pose, "token": token}
    arrays |= {"latents": latents, "t": t, "eps": eps}
    np.savez_compressed(HERE / "arrays.npz", **{name: x.numpy() for name, x in arrays.items()})
