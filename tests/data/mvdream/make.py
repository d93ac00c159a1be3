"""Makes this folder: a tiny random U-Net of MVDream, and what PyTorch answers on it in float32. Needs torch; no test runs it.

    python tests/data/mvdream/make.py FOLDER     # with mv_unet.py of github.com/ashawkey/mvdream_diffusers in FOLDER

Made at commit 8b318ef with torch 2.13.0, diffusers 0.39.0, kiui 0.2.7. xformers is replaced by PyTorch's own attention, which
computes the same. Weights are float16 on disk, and what PyTorch computes with.

arrays.npz, NCHW: camera of 8 azimuths at an elevation of 15 degrees, from MVDream's azimuth 0 on.
  eps_4                      8 views in two groups of 4, at latents, t, camera, tokens
  eps_1                      the same as single images, without cameras
  loss, g_embedding, g_lora  of the mean of (eps - noise)^2 over two groups of 4, with one embedding for all views, and with an
                             adapter at scale 0.5 on all layers of attention: lora/NAME/down [r in], lora/NAME/up [out r]
"""

import sys
import types
from pathlib import Path

import diffusers.models.modeling_utils  # noqa: F401 (before xformers has a stand-in: it looks which packages there are)
import numpy as np
import torch

HERE = Path(__file__).parent
xformers = types.ModuleType("xformers")
xformers.ops = types.ModuleType("xformers.ops")
xformers.ops.memory_efficient_attention = lambda q, k, v, attn_bias, op: torch.nn.functional.scaled_dot_product_attention(q, k, v)
sys.modules |= {"xformers": xformers, "xformers.ops": xformers.ops}
sys.path.insert(0, sys.argv[1])
from mv_unet import MultiViewUNetModel, get_camera  # noqa: E402

torch.manual_seed(0)
CONFIG = {
    "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32, "attention_resolutions": [1],
    "num_res_blocks": 1, "channel_mult": [1, 2], "num_head_channels": 16, "transformer_depth": 1, "context_dim": 32,
    "camera_dim": 16,
}  # fmt: skip
TARGETS, RANK, SCALE = ("to_q", "to_k", "to_v", "to_out.0"), 2, 0.5
unet = MultiViewUNetModel(**CONFIG)
unet.register_to_config(**CONFIG)
with torch.no_grad():
    for p in unet.parameters():  # also those that start as zeros
        p.copy_((p + 0.1 * torch.randn_like(p) / (1 if p.ndim == 1 else p[0].numel() ** 0.5 / 10)).half().float())
unet.half().save_pretrained(HERE / "unet")
unet.float().eval()

camera = get_camera(8, elevation=15)
latents, noise = torch.randn(8, 4, 8, 8), torch.randn(8, 4, 8, 8)
t, tokens = torch.tensor([17] * 4 + [801] * 4), torch.randn(8, 5, 32)
ask = lambda tokens: unet(latents, t, tokens, camera=camera, num_frames=4)  # noqa: E731
arrays = {"camera": camera, "latents": latents, "noise": noise, "t": t, "tokens": tokens}
with torch.no_grad():
    arrays |= {"eps_4": ask(tokens), "eps_1": unet(latents, t, tokens)}

embedding = torch.randn(5, 32, requires_grad=True)
((ask(embedding.expand(8, 5, 32)) - noise) ** 2).mean().backward()
arrays |= {"embedding": embedding, "g_embedding": embedding.grad}

layers = {name: m for name, m in unet.named_modules() if name.endswith(TARGETS) and isinstance(m, torch.nn.Linear)}
lora = {}
for name, m in layers.items():
    down = (torch.randn(RANK, m.in_features) / RANK).requires_grad_()
    up = (0.1 * torch.randn(m.out_features, RANK)).requires_grad_()
    lora |= {f"lora/{name}/down": down, f"lora/{name}/up": up}
    m.register_forward_hook(lambda m, args, out, down=down, up=up: out + SCALE * args[0] @ down.T @ up.T)
loss = ((ask(tokens) - noise) ** 2).mean()
loss.backward()
arrays |= {"loss": loss} | lora | {f"g_{name}": x.grad for name, x in lora.items()}
np.savez_compressed(HERE / "arrays.npz", **{name: x.detach().numpy() for name, x in arrays.items()})
