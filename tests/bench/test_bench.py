"""The benchmarks at small sizes: both sides compute the same, and steps learn."""

import pytest
import torch

from stages import capture, precompute, prepare
from stages.cache.codecs import make_codec
from stages.cache.reader import CacheReader
from stages.contract.files import STATES_FOLDER, TARGETS_FOLDER
from stages.contract.job import execute
from stages.losses.divergence import moment_target
from tests.bench import (
    accuracy,
    bare_loops,
    cache_codecs,
    cache_reading,
    cache_stages,
    codec_speed,
    heads,
    large_vocabulary,
    said,
    steps,
    verbalization,
)

SAME = 1e-5
"""Relative difference of two float32 computations of one number."""
SAME_FROM_BFLOAT16 = 1e-3
"""The same where one side read bfloat16 moments from a cache."""
SAME_IN_BFLOAT16 = 2e-3
"""The same where rows are sums of bfloat16 numbers."""


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


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    cache_stages.prepare(cache_stages.QUICK, str(folder))
    return folder


@pytest.mark.parametrize(
    ("stage", "run", "shards"),
    [("capture", capture.run, STATES_FOLDER), ("precompute", precompute.run, TARGETS_FOLDER)],
)
def test_both_loops_make_what_the_stage_makes(prepared, stage, run, shards):
    sizes = cache_stages.QUICK
    execute(cache_stages.make_job(stage, sizes, prepared, workers=0), run)
    cache = CacheReader(prepared / stage / shards)
    kept = [
        field
        for sample_id in cache.ids[sizes.shard_samples :]
        for layer in cache.fields([sample_id], torch.tensor(cache.read(sample_id).key.response_ids))
        for field in layer
    ]
    in_cache = sum(bare_loops.size_of(field).item() for field in kept)
    for side in cache_stages.loop_sides(stage, sizes, prepared).values():
        assert side.build(**side.arguments).run()["sizes"] == pytest.approx(in_cache, rel=SAME_IN_BFLOAT16)


def lines_at(*times):
    return [{"step": 4 * number, "time": time} for number, time in enumerate(times, 1)]


def test_a_steady_rate_is_that_of_the_second_half():
    assert cache_stages.steady_rate(lines_at(10, 11, 13, 14), workers=1) == pytest.approx(8 / 3)
    assert cache_stages.steady_rate(lines_at(10, 11, 13), workers=2) == pytest.approx(4 / 2)


@pytest.mark.parametrize("late", [0.0, 0.5, 1.0, 3.0])
def test_a_worker_that_begins_late_makes_two_no_faster_than_two(late):
    """Each takes a second for a shard of four samples, whenever it began."""
    times = sorted([*range(1, 20), *(late + second for second in range(1, 20))])[:12]
    assert cache_stages.steady_rate(lines_at(*times), workers=2) == pytest.approx(8, rel=0.1)


def test_choosing_a_path_is_measured_apart():
    assert heads.build_choice(heads.QUICK).run()["expected"] > 0


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    for role in large_vocabulary.ROLES:
        large_vocabulary.train(large_vocabulary.QUICK, role, str(folder))
    return said.of_large_vocabulary(large_vocabulary.QUICK, folder, samples=8, response_tokens=4)


def test_a_codec_is_judged_against_dense_distributions(large):
    judge = cache_codecs.Judge(large, batches=4, batch_samples=4)
    p, q = (
        (x.double() @ head.weight.double().T).log_softmax(dim=-1)
        for x, head in ((large.teacher, large.teacher_head), (large.student, large.student_head))
    )
    dense = (p.exp() * (p - q[:, None])).sum(dim=-1).mean(dim=2)
    assert torch.tensor(judge.notes()["KL"]) == pytest.approx(dense.float(), rel=1e-3)
    exact = cache_codecs.kept_by(make_codec("moment", torch.float32, large.teacher_head, large.student_head), large)
    found = judge.of(exact)
    assert found["agreement"] == 1
    assert max(found["KL error"], found["gradient error"]) < SAME
    assert judge.of(cache_codecs.top_target(large))["gradient error"] > SAME


def test_a_top_target_of_all_ids_is_the_exact_one(large, monkeypatch):
    monkeypatch.setattr(cache_codecs, "TOP", len(large.teacher_head.weight))
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    exact = moment_target(large.teacher.flatten(0, 1), large.teacher_head, large.student_head)
    assert cache_codecs.top_target(large).moment.flatten(0, 1) == pytest.approx(exact.moment, abs=SAME)


def test_every_codec_has_its_lines(large, tmp_path):
    sizes = cache_codecs.QUICK
    lines = [found.to_json(quick=True) for found in cache_codecs.find_bytes(large, sizes, tmp_path)]
    assert {line["name"] for line in lines} >= {"bytes-hidden-96", "bytes-moment-96", "bytes-sampled-32-96"}
    lines = [found.to_json(quick=True) for found in cache_codecs.find_fidelity("pair", large, 4, 4)]
    assert [line["name"] for line in lines] == [f"fidelity-{codec}-pair" for codec in cache_codecs.CODECS]


def test_the_demo_models_speak(tmp_path):
    sizes = said.QUICK_DEMO
    prepare.write_task(sizes.prepare, tmp_path)
    for role in ("teacher", "backbone"):
        prepare.train_model(role, sizes.prepare, tmp_path)
    demo = said.of_demo(sizes, tmp_path, prepared=tmp_path)
    assert demo.teacher.shape[:2] == (3, sum(demo.counts))
    assert demo.student.shape[:2] == (2, sum(demo.counts))


@pytest.mark.parametrize("codec", cache_codecs.CODECS)
def test_both_readers_give_the_same_batches(codec, tmp_path):
    sizes = cache_reading.QUICK
    cache_reading.write_both(codec, sizes, str(tmp_path))
    ours, flat = (
        build(codec, sizes, str(tmp_path)) for build in (cache_reading.build_reader, cache_reading.build_flat_reader)
    )
    for _ in range(sizes.repeats):
        assert ours.run() == flat.run()


def test_each_codec_is_timed_both_ways():
    names = {found.name for found in codec_speed.compare(quick=True)}
    assert names == {f"{way}-{codec}" for way in ("encode", "decode") for codec in cache_codecs.CODECS}


def test_accuracies_are_averaged_over_seeds():
    line = accuracy.to_json("moment", {0: 0.75, 1: 0.71, 2: 0.73})
    assert (line["mean"], line["spread"]) == (pytest.approx(0.73), pytest.approx(0.02))
    assert accuracy.make_table({"moment": [0.75], "sampled": [0.5]}, [0]).row_count == 2
