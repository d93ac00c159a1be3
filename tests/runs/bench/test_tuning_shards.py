"""Tuning by several processes: each makes its piece of a round, and all end with the trials of one process. No run is made."""

import json
import math

import pytest

from lods_jax.config import dump
from lods_jax.core.errors import UserError
from lods_jax.runs.batch import record
from lods_jax.runs.bench import bench
from lods_jax.runs.bench.execute import ROWS
from lods_jax.runs.bench.plan import jobs_of, shares
from lods_jax.runs.bench.suite import read_suite
from lods_jax.runs.run_directory import append

SUITE = """
preset: gaussians-lods-embedding
prompts: [a red car, a blue car, a green car]
seeds: [1, 2]
methods:
  SDS: {objective: sds, grid: {objective.guidance_scale: [3, 10, 30]}}
  LODS: {objective: {name: lods-embedding, guidance_scale: 1000}, grid: {optimizer.psi_lr: [1.0e-3, 3.0e-3, 1.0e-2]}}
tuning: {prompts: [a red mug, a green robot], figure: color_error, most: 7}
"""
FAILS = "tuning/guidance_scale=10/sds/a-red-mug-0"


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """A suite whose runs are rows at once: guidance scale 100 and a learning rate of 0.003 are best, and one run fails."""

    def execute(jobs, out, rows, shard, measure, shared, done):
        for job in jobs:
            if str(job.folder) not in done and str(job.folder) != FAILS:
                c = job.config
                x = math.log(c.objective.guidance_scale / 100) if job.method == "SDS" else math.log(c.optimizer.psi_lr / 3e-3)
                folder = rows / shard.replace("/", "-of-")
                folder.mkdir(parents=True, exist_ok=True)
                append(folder / ROWS, {"run": str(job.folder), "color_error": abs(x), "config": dump(c)})
            elif str(job.folder) == FAILS:
                record(job.config, out / job.folder, RuntimeError("out of memory"))
        return {}, []

    monkeypatch.setattr(bench, "execute", execute)
    (tmp_path / "suite.yaml").write_text(SUITE)
    return read_suite(str(tmp_path / "suite.yaml"))


@pytest.mark.slow
def test_shards_of_a_round_make_the_trials_of_one_process(suite, tmp_path):
    alone, shared, rounds = tmp_path / "alone", tmp_path / "shared", 0
    bench.tune_all(suite, alone, "1/1", runs=True)
    while not (shared / "tuned.json").is_file():
        rounds += 1
        for shard in ("1/3", "2/3", "3/3"):
            try:
                bench.tune_all(suite, shared, shard, runs=True)
            except bench.RoundUnfinished:
                continue
    assert (shared / "tuned.json").read_text() == (alone / "tuned.json").read_text()
    tuned = json.loads((alone / "tuned.json").read_text())
    assert tuned["SDS"]["edges"] == []
    assert (
        len(tuned["SDS"]["trials"]) == len(tuned["LODS"]["trials"]) == 3 + 2
    )  # 90 and 270, and two beside the best of the other
    assert 1 < rounds <= 5


def test_a_shard_of_the_table_does_not_begin_before_tuning_has_ended(suite, tmp_path):
    with pytest.raises(UserError, match="--tune first"):
        bench.tune_all(suite, tmp_path / "out", "1/2", runs=False)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_shards_are_every_run_once_and_each_has_whole_seeds_first_and_few_methods(suite, n):
    jobs = jobs_of(suite)
    pieces = [shares(jobs, f"{i}/{n}") for i in range(1, n + 1)]
    assert sorted(str(job.folder) for held in pieces for job in held) == sorted(str(job.folder) for job in jobs)
    for held in pieces:
        seeds = [job.config.seed for job in held]
        assert seeds == sorted(seeds)
        assert len(held) in (2 * (6 // n), 2 * math.ceil(6 / n))
    if n % 2 == 0:
        assert all(len({job.method for job in held}) == 1 for held in pieces)
