"""The local Hugging Face cache, without a network."""

from huggingface_hub.utils import filter_repo_objects

from lods_jax.priors.hub import PATTERNS, local


def cached(cache, name, commit="0123abc"):
    """The layout of huggingface_hub: refs/main names a commit, snapshots/COMMIT holds the files."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / "model_index.json").write_text("{}")
    return folder / "snapshots" / commit


def test_a_cached_repository_is_its_snapshot(tmp_path):
    snapshot = cached(tmp_path, "someone/a-model")
    assert local("someone/a-model", cache=tmp_path) == snapshot


def test_what_is_not_cached_comes_back_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert str(local("someone/another", cache=tmp_path)) == "someone/another"


def test_a_folder_is_a_folder_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone" / "a-model").mkdir(parents=True)
    cached(tmp_path / "cache", "someone/a-model")
    assert str(local("someone/a-model", cache=tmp_path / "cache")) == "someone/a-model"


def test_of_a_repository_only_what_is_read_is_fetched():
    """SDXL's, which has its weights a second time in one file, and in formats of other programs."""
    read = ["model_index.json", "scheduler/scheduler_config.json", "tokenizer_2/merges.txt", "unet/config.json"]
    read += ["text_encoder_2/model.fp16.safetensors", "unet/diffusion_pytorch_model.safetensors"]
    others = ["sd_xl_base_1.0.safetensors", "README.md", "vae_1_0/diffusion_pytorch_model.safetensors", "unet/model.onnx"]
    assert list(filter_repo_objects([*read, *others], allow_patterns=PATTERNS)) == read
