"""What a dry run tells, and what it refuses."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.numpy import load_file

from lods_jax.cli import main
from lods_jax.config import Config, ObjectiveConfig, PriorConfig
from lods_jax.core.errors import UserError
from lods_jax.priors.attention import Layer
from lods_jax.training import cost, planning
from lods_jax.training.ahead_of_time import Ahead
from lods_jax.training.build import objective_of, predictions_per_view

SD = Path(__file__).parents[1] / "data" / "lods_parity" / "sd"
SMALL = ["text-to-3d", "a red mug", "--config", "gaussians-lods-embedding", "--prior", str(SD), "--resolution", "16"]
SMALL += ["--batch", "2", "--parallel", "jit", "--prior.attention", "fused", "--dry-run"]
SMALL += ["--prior.memory", "auto", "--device-memory", "8GiB"]
NAME, CLIP = ["--prior", "stable-diffusion-2-1-base"], SD.parents[1] / "clip"
GIB = cost.GIB
COST = cost.Cost({"unet": 5}, 1, "cpu", 3 * GIB, 2 * GIB, memory=4 * GIB, operations=1e12, collectives={}, attention={})


def test_a_dry_run_tells_sizes_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cost, "chip_for_gpu", lambda: None)
    found, costs = [], []
    monkeypatch.setattr(cost, "cost_of", lambda *args, cost_of=cost.cost_of: costs.append(cost_of(*args)) or costs[-1])
    monkeypatch.setattr(cost, "describe", lambda x, describe=cost.describe: found.append(x) or describe(x))
    assert main(SMALL) == 0
    said, weights = capsys.readouterr().out, 0
    for part in ("unet", "vae"):
        on_disk = load_file(SD / part / "diffusion_pytorch_model.safetensors").values()
        assert f"{part:<14}{sum(x.size for x in on_disk):>14,} parameters" in said
        weights += sum(x.nbytes for x in on_disk)  # float32 on disk, as in memory
    assert "TFLOP per step and device" in said
    assert "1 x described GPU" in said
    # 16 px are latents of 8 x 8; the U-Net has attention at two sizes, of itself and of 77 tokens, and so has the encoder.
    assert costs[0].attention["plain"]
    assert "attention" not in said  # the kernels are those of this CPU
    assert "text" not in said  # the text encoder has done its work before the first step, and goes
    assert float(said.split(" per device: ")[1].split()[0]) == pytest.approx(weights / GIB, abs=0.011)
    assert 0 < found[0].arguments - weights < 2**20  # a few hundred kilobytes of scene, optimizers and texts
    # Of a GPU JAX takes three quarters.
    assert "approximate   compiled for a CPU" in said
    assert found[0].memory == 6 * GIB
    assert f"memory plan   all views at once: {found[0].peak / GIB:.2f} of 6.00 GiB\n" in said
    assert not any(tmp_path.iterdir())


def test_a_chip_in_place_of_a_gpu_has_a_margin(monkeypatch, capsys):
    """Temporaries are multiplied, and nothing else."""

    def find_plan(config, components, memory, devices, margin):
        raise UserError(f"{memory / GIB:g} GiB, {devices}, times {margin:g}")

    monkeypatch.setattr(cost, "chip_for_gpu", lambda: ["a chip"])
    monkeypatch.setattr(planning, "find_plan", find_plan)
    assert main(SMALL) == 2
    said = capsys.readouterr()
    assert f"6 GiB, ['a chip'], times {cost.GPU_MARGIN:g}" in said.err
    assert "compiled for a TPU chip in place of the GPU" in said.out
    sizes = SimpleNamespace(temp_size_in_bytes=100, output_size_in_bytes=7, alias_size_in_bytes=2)
    compiled = SimpleNamespace(memory_analysis=lambda: sizes)
    ahead = Ahead(None, None, [], None, compiled, arguments=1000, kernels={})
    assert (ahead.peak, ahead._replace(margin=1.6).peak) == (1105, 1165)


def test_a_step_that_does_not_fit_is_refused_with_what_would_make_it_smaller():
    first = "smaller with --prior.memory auto, --prior.view-chunk, --prior.remat, --prior.remat-resnets, --prior.dtype"
    with pytest.raises(UserError, match=rf"needs 5.0 GiB of the 4.0 that a cpu device has; {first}"):
        cost.check_fits(Config(), COST)
    with pytest.raises(UserError, match=r"needs 5.0 GiB of the 4.0 that JAX takes of the described GPU; smaller"):
        cost.check_fits(Config(), COST, described=True)
    leanest = {"memory": "auto", "view_chunk": 1, "remat": True, "remat_resnets": True, "vae_slicing": True}
    small = Config(prior=PriorConfig(dtype="bfloat16", **leanest), batch=1, resolution=64)
    with pytest.raises(UserError, match="no flag makes it smaller"):
        cost.check_fits(small, COST)
    cost.check_fits(Config(), COST._replace(memory=6 * GIB))
    cost.check_fits(Config(), COST._replace(memory=None))


def test_advice_names_what_helps_the_prior_at_hand():
    """Renders go to the size of the prior, and views that are denoised together cannot be parted."""
    large = Config(prior=PriorConfig(name="stable-diffusion-xl-base-1.0", image_size=1024, dtype="bfloat16", memory="auto"))
    assert cost.advice(large, planned=True) == "smaller with --prior.image-size"
    assert "image-size" not in cost.advice(Config(batch=8))
    for batch, helps in ((4, False), (8, True)):
        said = cost.advice(Config(batch=batch), group=4)
        assert ("--prior.view-chunk" in said, "--batch" in said) == (helps, helps)
    assert "--batch" not in cost.advice(Config(batch=8, particles=2), group=4)


def test_the_kernels_of_attention_are_told():
    said = cost.describe(
        COST._replace(attention={"flash": [Layer(4096, 4096, 64), Layer(1024, 1024, 64)], "plain": [Layer(64, 77, 8)]})
    )
    assert (
        "attention     flash for 4096 x 4096 of width 64, 1024 x 1024 of width 64\nattention     plain for 64 x 77 of width 8"
        in said
    )


def test_collectives_that_overlap_with_computation_are_counted_once():
    lines = [
        "  %all-gather.1 = f32[8]{0} all-gather(%p), channel_id=1, dimensions={0}",
        "  %all-gather.2 = f32[8]{0} all-gather(%q), channel_id=1, dimensions={0}",
        "  %ar = (f32[8]{0}) all-reduce-start(%p), channel_id=2",
    ]
    assert set(cost.COLLECTIVE.findall("\n".join(lines))) == {("all-gather", "1"), ("all-reduce", "2")}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--topology", "v5e:2x4"], "--topology needs --dry-run"),
        (["--device-memory", "24GiB"], "--device-memory needs --dry-run"),
        (["--dry-run", "--device-memory", "24"], "--device-memory must read like 24GiB, got 24"),
        (["--dry-run", "--device-memory", "0GiB"], "--device-memory must read like 24GiB, got 0GiB"),
        (["--dry-run", "--device-memory", "24GiB", "--topology", "v5e:2x4"], "the chips of --topology have memory of their own"),
        (["--shard", "1/2"], "--shard needs --prompts"),
        (["--dry-run", "--topology", "nonsense"], "topology must read like v5e:2x4, got nonsense"),
        (["--prompts", "tabletop"], "give a prompt or --prompts, not both"),
        (["--prompts", "nothing.txt"], "no file of prompts nothing.txt"),
        (["--dry-run", "--prior", "someone/model"], "no prior at someone/model"),
        (["--dry-run", *NAME, "--objective.reward", str(CLIP)], "a dry run of a reward needs the folder of the prior"),
        (["--prior.dtype", "float16", "--objective", "vsd"], "vsd learns, and float16 would round its gradients away"),
    ],
)
def test_flags_that_make_no_sense_are_one_line(flags, says, capsys):
    assert main(["text-to-3d", "a red mug", *flags]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_batch_that_devices_do_not_divide_is_refused():
    from lods_jax.training.build import build

    config = replace(Config(prompt="a red mug"), batch=3)
    with pytest.raises(UserError, match="batch must be a multiple of the 2 devices, got 3"):
        cost.estimate(config, build(config), devices=[None, None])


def test_what_perp_neg_asks_is_counted():
    """Null and two negatives beside the prompt of LODS, whose own null goes through the LoRA, and the fit; each noise anew."""
    config = Config(prompt="a mug", objective=ObjectiveConfig("lods-lora"))
    count = lambda c: predictions_per_view(c, objective_of(c))  # noqa: E731
    assert (count(config), count(replace(config, perp_neg=True))) == (3, 6)
    rewarded = replace(config, perp_neg=True, objective=ObjectiveConfig("sds", reward="classifier", noises=4))
    assert count(rewarded) == 4 * 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "parameters", "most"),
    [
        ([], "4,628,932", 0.2),
        (["--config", "sd21-gaussians-lods-lora", "--prior", "stable-diffusion-2-1-base", "--no-perp-neg"], "865,910,724", 4.0),
    ],
    ids=["tabletop", "stable-diffusion"],
)
def test_the_step_compiles_for_a_tpu_slice_that_is_not_there(flags, parameters, most, tmp_path):
    """In a process of its own: the second takes 7 GiB."""
    pytest.importorskip("libtpu")
    command = [sys.executable, "-m", "lods_jax", "text-to-3d", "a red mug", *flags, "--batch", "8", "--dry-run"]
    env = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    command += ["--topology", "v5e:2x4"]
    ended = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert ended.returncode == 0, ended.stderr
    assert f"{'unet':<14}{parameters:>14} parameters" in ended.stdout
    assert "8 x TPU v5 lite" in ended.stdout
    assert "all-reduce" in ended.stdout
    assert float(ended.stdout.split(" GiB per device")[0].split()[-1]) < most
