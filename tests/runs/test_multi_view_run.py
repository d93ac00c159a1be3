"""What people do with a folder of MVDream: look at it, sample it, and make an object with it."""

import numpy as np
import pytest

from lods_jax.cli import main
from lods_jax.core.images import read_rgba
from tests.mvdream import make_folder
from tests.toy import TINY, final, metrics


@pytest.fixture(scope="module")
def mvdream(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("mvdream") / "folder")


@pytest.mark.parametrize("objective", ["sds", pytest.param("lods-lora", marks=pytest.mark.slow)])
def test_a_run_of_text_to_3d_takes_groups_of_four(mvdream, tmp_path, objective):
    words = [
        "--prior",
        str(mvdream),
        "--objective",
        objective,
        "--guidance-scale",
        "50",
        "--objective.options",
        "x0_rescale",
        "0.5",
    ]
    words += ["--batch", "4", "--gaussians.refine.every", "0", "--steps", "4"]
    assert main([*TINY, *words, "--out", str(tmp_path / "run")]) == 0
    state, rows = final(tmp_path / "run", 4), metrics(tmp_path / "run")
    assert int(state.skipped) == 0
    assert all(np.isfinite(row["score_rms"]) and row["score_rms"] > 0 for row in rows)
    if objective == "lods-lora":
        assert any(np.abs(site["up"]).max() > 0 for site in state.psi["lora"].values())


def test_samples_are_the_views_side_by_side(mvdream, tmp_path, capsys):
    """Of 2 samples of 4 views of 16 pixels: rows of two samples, enlarged twelve times."""
    words = ["text-to-image", "a mug", "--anyway", "--prior", str(mvdream), "--steps", "2", "--n", "2"]
    assert main([*words, "--out", str(tmp_path / "whole.png")]) == 0
    whole = read_rgba(tmp_path / "whole.png")
    assert whole.shape[:2] == (16 * 12, 2 * 4 * 16 * 12)
    views = np.split(whole, 8, axis=1)
    assert all(np.abs(a - b).max() > 0.05 for i, a in enumerate(views) for b in views[:i])
    # A batch of 3 examples is less than a group: a group at a time, and the same images.
    assert main([*words, "--batch", "3", "--out", str(tmp_path / "parts.png")]) == 0
    np.testing.assert_allclose(read_rgba(tmp_path / "parts.png"), whole, atol=2 / 255)


def test_images_alone_are_not_distilled_from_it(mvdream, tmp_path, capsys):
    words = ["text-to-image", "a mug", "--anyway", "--prior", str(mvdream), "--objective", "sds"]
    assert main([*words, "--out", str(tmp_path / "x.png")]) == 2
    assert "makes 4 views of an object together: sample it, or distil a scene by text-to-3d" in capsys.readouterr().err


def test_info_tells_what_a_folder_holds(mvdream, capsys):
    assert main(["info", "--prior", str(mvdream)]) == 0
    assert f"{mvdream}: MVDream, 4 views together, text width 32, SHA-256 of the U-Net " in capsys.readouterr().out
    assert main(["info", "--prior", str(mvdream / "nothing")]) == 2
