"""The architecture of published models, without their weights: for sizes, costs and compilation where no folder is at hand."""

from pathlib import Path
from typing import Any

from lods_jax.priors.diffusers_folder import ALL_PARTS, MVDREAM
from lods_jax.priors.scheduler_config import config_of
from lods_jax.priors.torch_weights import as_json, place

_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "out_channels": 3,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
_UNET = {
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 2,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
_TEXT_1 = {
    "hidden_act": "quick_gelu", "hidden_size": 768, "intermediate_size": 3072, "max_position_embeddings": 77,
    "num_attention_heads": 12, "num_hidden_layers": 12, "projection_dim": 768, "vocab_size": 49408,
}  # fmt: skip
_TEXT_2 = {
    "hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096, "max_position_embeddings": 77,
    "num_attention_heads": 16, "num_hidden_layers": 23, "projection_dim": 512, "vocab_size": 49408,
}  # fmt: skip
# {name: {part: config}}, as their repositories have them, less what does not touch the networks.
CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "stable-diffusion-2-1-base": {
        "unet": _UNET | {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True},
        "vae": _VAE,
        "text": _TEXT_2,
    },
    "stable-diffusion-v1-5": {
        "unet": _UNET | {"attention_head_dim": 8, "cross_attention_dim": 768},
        "vae": _VAE,
        "text": _TEXT_1,
    },
    "stable-diffusion-xl-base-1.0": {
        "unet": {
            "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "attention_head_dim": [5, 10, 20],
            "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048,
            "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2, "in_channels": 4, "layers_per_block": 2,
            "out_channels": 4, "projection_class_embeddings_input_dim": 2816, "sample_size": 128,
            "transformer_layers_per_block": [1, 2, 10], "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
            "use_linear_projection": True,
        },
        "vae": _VAE | {"scaling_factor": 0.13025},
        "text": _TEXT_1,
        "text_2": _TEXT_2 | {
            "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32,
            "projection_dim": 1280,
        },
    },
    "mvdream-sd2.1-diffusers": {
        "unet": {
            "_class_name": MVDREAM, "attention_resolutions": [4, 2, 1], "camera_dim": 16, "channel_mult": [1, 2, 4, 4],
            "context_dim": 1024, "image_size": 32, "in_channels": 4, "model_channels": 320, "num_head_channels": 64,
            "num_res_blocks": 2, "out_channels": 4, "transformer_depth": 1,
        },
        "vae": _VAE,
        "text": _TEXT_2,
    },
}  # fmt: skip


def write_configs(folder: Path, name: str) -> Path:
    """Writes a folder in diffusers layout without weights and tokenizer: enough to build the networks and know their shapes.

    Args:
        folder: to write to.
        name: a key of `CONFIGS`.

    Returns:
        The folder.

    Raises:
        ValueError: there is no such architecture.
    """
    if name not in CONFIGS:
        raise ValueError(f"there is no architecture {name!r}, only {', '.join(CONFIGS)}")
    for part, config in CONFIGS[name].items():
        place(folder / ALL_PARTS[part][0] / "config.json").write_text(as_json(config))
    place(folder / "scheduler" / "scheduler_config.json").write_text(as_json(config_of("epsilon")))
    return folder
