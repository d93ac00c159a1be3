"""A run names the files that it was made with, refuses others when it goes on, and starts from the learned branch of another."""

import io
import json
import shutil
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lods_jax.cli import main
from lods_jax.config import load
from lods_jax.core.errors import UserError
from lods_jax.priors.hub import file_hash
from lods_jax.priors.registry import register_prior, registered
from lods_jax.priors.user_adapters import unused_words
from lods_jax.runs.run import last_state
from lods_jax.training.build import build
from lods_jax.training.run_inputs import COPY, PRIOR, changed_inputs, initial_psi, keep_psi
from tests.toy import TINY, final

ADAPTERS = Path(__file__).parents[1] / "data" / "adapters"
pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture(scope="module")
def made(toy, tmp_path_factory):
    """A run with a LoRA and a textual inversion, and copies of these files. Its prior is a toy that ignores them."""
    place = tmp_path_factory.mktemp("made")
    files = [Path(shutil.copy(ADAPTERS / f"{name}.safetensors", place)) for name in ("kohya", "learned_embeds")]
    closed = registered("toy")
    register_prior("toy-of-files", lambda: closed._replace(folder=place))
    flags = ["--config", "gaussians-lods-embedding", "--steps", "4", "--prior", "toy-of-files"]
    flags += ["--prior.lora", str(files[0]), "--prior.lora-scale", "0.8", "--prior.embedding", str(files[1])]
    with redirect_stdout(io.StringIO()) as said:
        assert main([*TINY, *flags, "--out", str(place / "run")]) == 0
    (place / "said.txt").write_text(said.getvalue())
    return place / "run", *files


def refused(argv, capsys):
    """The one line that a command is refused with."""
    capsys.readouterr()
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_run_names_what_was_merged(made, capsys):
    folder, lora, embedding = made
    config = load(folder / "config.yaml").prior
    assert (config.lora, config.lora_scale, config.embedding) == ((str(lora),), (0.8,), (str(embedding),))
    assert json.loads((folder / "run.json").read_text())["adapters"] == [
        {"file": str(lora), "sha256": file_hash(lora), "scale": 0.8},
        {"file": str(embedding), "sha256": file_hash(embedding), "token": "<cat-toy>", "vectors": 3},
    ]
    assert main(["info", str(folder)]) == 0
    assert f"{lora}: a LoRA at scale 0.8, SHA-256 {file_hash(lora)[:16]}" in capsys.readouterr().out


def test_a_word_of_ones_own_that_stands_in_no_prompt_is_told(made):
    _, _, embedding = made
    said = embedding.with_name("said.txt").read_text()
    assert f"prior     {embedding} changes nothing: no prompt has its word <cat-toy>\n" in said
    note = [{"file": "e.safetensors", "token": "<cat-toy>"}, {"file": "a LoRA", "scale": 1.0}]
    assert not list(unused_words(note, ["a red mug", "a <CAT-TOY>, blurred", None]))
    assert len(list(unused_words(note, ["a <cat-toy>s", ""]))) == 1  # part of another word


def test_a_run_does_not_go_on_with_another_file_under_the_same_name(made, capsys):
    folder, lora, embedding = made
    before = lora.read_bytes()
    shutil.copy(embedding, lora)
    assert f"{lora} is not what it was at the checkpoint of {folder}" in refused(["resume", str(folder)], capsys)
    lora.write_bytes(before)
    config = load(folder / "config.yaml")
    assert int(last_state(config, build(config, folder), folder, changed=False).state.step) == 4


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--prior.lora", "no.safetensors"], "the prior toy has no networks"),
        (["--prior.lora", "a", "--prior.lora-scale", "1", "--prior.lora-scale", "2"], "each of the 1 file of prior.lora, got 2"),
        (["--init-psi", "nowhere"], "--init-psi nowhere has no learned branch"),
        (["--init-psi", "nowhere", "--objective", "sds"], "learns nothing"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, capsys, flags, says):
    assert says in refused([*TINY, *flags, "--out", str(tmp_path / "run")], capsys)
    assert not (tmp_path / "run").exists()


def test_a_run_starts_from_what_another_learned_and_keeps_a_copy(made, tmp_path):
    """The copy serves when the other folder is gone."""
    source, folder = shutil.copytree(made[0], tmp_path / "source"), tmp_path / "run"
    plain = load(source / "config.yaml")
    config = replace(plain, objective=replace(plain.objective, init_psi=str(source)))
    expected = final(made[0], 4).psi["embedding"]
    assert np.abs(expected - build(plain).psi["embedding"]).max() > 1e-4
    begun = build(config).psi
    np.testing.assert_array_equal(begun["embedding"], expected)
    keep_psi(folder, begun)
    shutil.rmtree(source)
    np.testing.assert_array_equal(build(config, folder).psi["embedding"], expected)
    np.testing.assert_array_equal(load_file(folder / COPY)["embedding"], expected)


def test_a_learned_branch_of_another_kind_or_prior_is_refused(made):
    fresh = {"lora": {"to_q": {"down": np.zeros((2, 3), np.float32)}}}
    with pytest.raises(UserError, match=r"psi\.lora\.to_q\.down holds nothing"):
        initial_psi(str(made[0]), None, fresh, None)
    assert changed_inputs({PRIOR: "1"}, {PRIOR: "2"}) == [PRIOR]
