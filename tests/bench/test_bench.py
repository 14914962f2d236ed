"""The benchmarks at small sizes: both sides compute the same, and steps learn."""

import pytest
import torch

from tests.bench import heads, steps, verbalization

SAME = 1e-5
"""Relative difference of two float32 computations of one number."""
SAME_FROM_BFLOAT16 = 1e-3
"""The same where one side read bfloat16 moments from a cache."""


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_cached_matching_computes_what_the_dense_loop_computes():
    ours = heads.build_cached_matching(heads.QUICK).run()
    dense = heads.build_dense_loop(heads.QUICK).run()
    assert ours == pytest.approx(dense, rel=SAME)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_floor_runs_on_the_inputs_of_ours(dtype):
    assert heads.build_matching(heads.QUICK, dtype).run()["gradient"] > 0
    heads.build_bare_products(heads.QUICK, dtype).run()


def test_step_from_the_cache_is_the_step_with_the_teacher_in_memory(tmp_path):
    steps.write_cache(steps.QUICK, str(tmp_path))
    cached, online = steps.build_from_cache(steps.QUICK, str(tmp_path)), steps.build_with_teacher(steps.QUICK)
    for _ in range(2):
        assert cached.run() == pytest.approx(online.run(), rel=SAME_FROM_BFLOAT16)
    assert "teacher" in online.finish()["seconds_by_part"]
    assert "teacher" not in cached.finish()["seconds_by_part"]


def test_finetuning_learns():
    built = steps.build_sft(steps.QUICK)
    first, *_, last = [built.run()["cross_entropy"] for _ in range(5)]
    assert last < first


def test_verbalization_learns_from_captured_states(tmp_path):
    verbalization.prepare(verbalization.QUICK, str(tmp_path))
    built = verbalization.build_verbalization(verbalization.QUICK, str(tmp_path), "float32")
    before = built.finish()["cross_entropy"]
    built.run()
    assert built.finish()["cross_entropy"] < before
