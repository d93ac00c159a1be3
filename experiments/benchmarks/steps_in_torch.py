"""The steps of `against_diffusers.py` in PyTorch, written by hand over the networks of diffusers."""

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.nn import functional as F

from experiments.benchmarks.against_diffusers import LORA, RANK, SCALE


class WithLora(torch.nn.Module):
    """A linear layer with a low-rank side path for the rows from `first` on; the frozen weights learn nothing."""

    first = 0  # shared by all layers: None for no adapter

    def __init__(self, base: torch.nn.Linear):
        super().__init__()
        self.base, (n_out, n_in), device = base, base.weight.shape, base.weight.device
        self.down = torch.nn.Parameter(torch.randn(RANK, n_in, device=device) / RANK)
        self.up = torch.nn.Parameter(torch.zeros(n_out, RANK, device=device))

    def forward(self, x):
        out, first = self.base(x), WithLora.first
        if first is None:
            return out
        added = LORA * F.linear(F.linear(x[first:], self.down.to(x.dtype)), self.up.to(x.dtype))
        return out + added if first == 0 else torch.cat([out[:first], out[first:] + added])


def adapt(unet: UNet2DConditionModel) -> list[torch.nn.Parameter]:
    """Gives every projection of attention a LoRA; returns what is trained."""
    for name, module in list(unet.named_modules()):
        if name.endswith(("attn1", "attn2")):
            module.to_q, module.to_k, module.to_v = (WithLora(getattr(module, part)) for part in ("to_q", "to_k", "to_v"))
            module.to_out[0] = WithLora(module.to_out[0])
    return [p for name, p in unet.named_parameters() if name.endswith((".down", ".up"))]


def make_steps(
    unet_config: dict, vae_config: dict, latent: int, edge: int, b: int, dtype: torch.dtype, on: str, channels_last: bool
) -> dict[str, Callable]:
    """{name: a call that does one step}, for b views."""
    layout = {"memory_format": torch.channels_last} if channels_last else {}
    with torch.device(on):
        unet, vae = UNet2DConditionModel.from_config(unet_config), AutoencoderKL.from_config(vae_config)
        unet, vae = (net.to(dtype=dtype, **layout).eval().requires_grad_(False) for net in (unet, vae))
        trained = adapt(unet)
        tokens = torch.randn(2 * b, 77, unet.config.cross_attention_dim, dtype=dtype)
        images = torch.nn.Parameter(torch.full((b, 3, edge, edge), 0.5).to(**layout))
        alpha_bar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
        z_given, t_given = torch.randn(2 * b, 4, latent, latent, dtype=dtype).to(**layout), torch.arange(2 * b) * 50 % 1000
    adam_images, adam_lora = (torch.optim.Adam(given, 1e-2, fused=on == "cuda") for given in ([images], trained))

    def predict(z, t, tokens, first):
        WithLora.first = first
        return unet(z.to(dtype), t, tokens).sample.float()

    def noised(z, low, high):
        t, noise = torch.randint(low, high, (b,), device=on), torch.randn_like(z)
        a = alpha_bar[t].view(-1, 1, 1, 1)
        return t, noise, a.sqrt() * z + (1 - a).sqrt() * noise, 1 - a

    def forward():
        with torch.no_grad():
            return predict(z_given, t_given, tokens, None)

    def step(name):
        posterior = vae.encode((2 * images - 1).to(dtype)).latent_dist
        mean, std = posterior.mean.float(), posterior.std.float()
        z = vae.config.scaling_factor * (mean + std * torch.randn_like(std))
        with torch.no_grad():
            t, noise, z_t, weight = noised(z, 20, 981)
            learned = name == "lods-lora"
            y, a = predict(torch.cat([z_t, z_t]), torch.cat([t, t]), tokens, b if learned else None).chunk(2)
            s = SCALE[name]
            residual = y - (1 - 1 / s) * a - noise / s
        z.backward(weight * residual / b)
        adam_images.step()
        adam_images.zero_grad()
        if learned:
            t, noise, z_t, _ = noised(z.detach(), 0, 1000)
            F.mse_loss(predict(z_t, t, tokens[b:], 0), noise).backward()
            adam_lora.step()
            adam_lora.zero_grad()

    return {"forward": forward, **{name: (lambda name=name: step(name)) for name in SCALE}}
