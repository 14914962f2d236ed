"""Codecs: what is kept comes back, at the size that was promised, and becomes the right target."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from stages.cache.codecs import (
    Codec,
    Field,
    Hidden,
    Int8,
    Moment,
    Plain,
    Sampled,
    from_blobs,
    make_codec,
    pack_ids,
    to_blobs,
    unpack_ids,
)
from stages.losses.divergence import Head, Target, moment_target

BF16_TOLERANCE = 2**-8
"""Relative, of one rounding to bfloat16 (8 bits of precision, so half of 2**-7 at most)."""

HALF_A_LEVEL = 0.5 / 127 + 1e-6
"""Largest rounding error of int8, of the vector's largest number."""

VOCABULARY, WIDTH, TEACHER_WIDTH, TOKENS = 50, 8, 12, 6
DTYPES = [torch.float32, torch.bfloat16]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_head(width: int, *, seed: int, bias: bool) -> Head:
    return Head(random(VOCABULARY, width, seed=seed), random(VOCABULARY, seed=seed + 1) if bias else None)


def numbers(count: int, seed: int = 9) -> Tensor:
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def through_a_blob(codec: Codec, x_teacher: Tensor, student: Head) -> Target:
    (blob,) = to_blobs(codec.encode(x_teacher, numbers(len(x_teacher))), codec.fields, [len(x_teacher)])
    return codec.decode(from_blobs([blob], codec.fields, [len(x_teacher)]), student)


def assert_same(ours: Target, expected: Target, *, moment_tolerance: float = 0.0) -> None:
    """Entropies and mean biases are always kept in float32, so they are equal bit for bit."""
    assert torch.equal(ours.entropy, expected.entropy)
    assert (ours.bias_mean is None) == (expected.bias_mean is None)
    if expected.bias_mean is not None:
        assert torch.equal(ours.bias_mean, expected.bias_mean)
    error = ((ours.moment - expected.moment).abs() / expected.moment.abs()).max().item()
    assert error <= moment_tolerance, f"moments off by {error:.1e} relative"


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_moment_gives_back_the_moment_target(dtype: torch.dtype, bias: bool) -> None:
    """Exactly in float32, to one rounding in bfloat16. Red if fields are exchanged or the bias is dropped."""
    teacher, student = make_head(TEACHER_WIDTH, seed=0, bias=False), make_head(WIDTH, seed=2, bias=bias)
    x_teacher = random(TOKENS, TEACHER_WIDTH, seed=4)
    decoded = through_a_blob(Moment(Plain(dtype), teacher, student), x_teacher, student)
    assert decoded.moment.dtype == torch.float32
    tolerance = BF16_TOLERANCE if dtype == torch.bfloat16 else 0.0
    assert_same(decoded, moment_target(x_teacher, teacher, student), moment_tolerance=tolerance)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_hidden_gives_the_moment_target_of_the_kept_states(dtype: torch.dtype, bias: bool) -> None:
    """Of the states as they were rounded. Red if another head, or the unrounded state, is used."""
    teacher, student = make_head(TEACHER_WIDTH, seed=0, bias=bias), make_head(WIDTH, seed=2, bias=bias)
    x_teacher = random(TOKENS, TEACHER_WIDTH, seed=4)
    decoded = through_a_blob(Hidden(Plain(dtype), teacher), x_teacher, student)
    assert_same(decoded, moment_target(x_teacher.to(dtype).float(), teacher, student))


@pytest.mark.parametrize("bias", [False, True])
def test_hidden_and_moment_say_the_same(bias: bool) -> None:
    """The two codecs of one cache, in float32."""
    teacher, student = make_head(TEACHER_WIDTH, seed=0, bias=bias), make_head(WIDTH, seed=2, bias=bias)
    x_teacher = random(TOKENS, TEACHER_WIDTH, seed=4)
    hidden = through_a_blob(Hidden(Plain(torch.float32), teacher), x_teacher, student)
    assert_same(through_a_blob(Moment(Plain(torch.float32), teacher, student), x_teacher, student), hidden)


def test_hidden_serves_any_student() -> None:
    """One cache, two students of different widths, one with a bias, and the first one's head after a change.

    Red if a student's head is remembered: a head that is sharded, or moved, is another tensor at every step.
    """
    teacher, x_teacher = make_head(TEACHER_WIDTH, seed=0, bias=True), random(TOKENS, TEACHER_WIDTH, seed=4)
    codec = Hidden(Plain(torch.float32), teacher)
    students = [make_head(WIDTH, seed=2, bias=False), make_head(WIDTH + 3, seed=5, bias=True)]
    students.append(Head(students[0].weight + 1))
    for student in students:
        assert_same(through_a_blob(codec, x_teacher, student), moment_target(x_teacher, teacher, student))


@pytest.mark.parametrize("kept", DTYPES)
def test_hidden_decodes_to_float32_with_a_bf16_teacher(kept: torch.dtype) -> None:
    """States meet the teacher's head in its dtype; the target is float32. Red if its softmax is in bf16."""
    teacher, student = (make_head(width, seed=seed, bias=False) for width, seed in ((TEACHER_WIDTH, 0), (WIDTH, 2)))
    teacher = Head(teacher.weight.bfloat16())
    x_teacher = random(TOKENS, TEACHER_WIDTH, seed=4).bfloat16()
    decoded = through_a_blob(Hidden(Plain(kept), teacher), x_teacher, student)
    assert (decoded.moment.dtype, decoded.entropy.dtype) == (torch.float32, torch.float32)
    exact = Head(teacher.weight.float())
    assert_same(decoded, moment_target(x_teacher.float(), exact, student))


def test_moment_decodes_without_the_teacher_and_cannot_encode_without_it() -> None:
    teacher, student = make_head(TEACHER_WIDTH, seed=0, bias=False), make_head(WIDTH, seed=2, bias=False)
    x_teacher = random(TOKENS, TEACHER_WIDTH, seed=4)
    complete, alone = Moment(Plain(torch.float32), teacher, student), Moment(Plain(torch.float32), None, student)
    assert alone.fields == complete.fields
    (blob,) = to_blobs(complete.encode(x_teacher, numbers(TOKENS)), complete.fields, [TOKENS])
    decoded = alone.decode(from_blobs([blob], alone.fields, [TOKENS]), student)
    assert_same(decoded, moment_target(x_teacher, teacher, student))
    with pytest.raises(ValueError, match="moment codec needs the teacher's head here"):
        alone.encode(x_teacher, numbers(TOKENS))


def test_bytes_per_token_are_those_of_the_design() -> None:
    """DESIGN §3: a teacher of width 8,192, a student of width 1,536, 151,936 token ids, float32 scales."""
    teacher, student = Head(torch.empty(1, 8192)), Head(torch.empty(1, 1536)).weight.expand(151_936, -1)
    names = ("hidden", "hidden-int8", "moment", "moment-int8", "sampled-32")
    codecs = [make_codec(name, torch.bfloat16, teacher, Head(student)) for name in names]
    sizes = {codec.name: sum(field.bytes_per_token for field in codec.fields) for codec in codecs}
    assert sizes == {"hidden": 16_384, "hidden-int8": 8_196, "moment": 3_076, "moment-int8": 1_544, "sampled-32": 76}


@pytest.mark.parametrize("name", ["top-128", "moment-int4", "sampled", "hidden-x"])
def test_an_unknown_codec_is_refused_with_those_there_are(name: str) -> None:
    teacher = make_head(TEACHER_WIDTH, seed=0, bias=False)
    with pytest.raises(ValueError, match=f"codec '{name}' is unknown; there are hidden, hidden-int8, moment"):
        make_codec(name, torch.float32, teacher, teacher)


@pytest.mark.parametrize("bias", [False, True])
def test_int8_is_off_by_half_a_level_at_most(bias: bool) -> None:
    """Of the vector's largest number; entropy and mean bias stay exact. Red if scales or rows are exchanged."""
    teacher, student = make_head(TEACHER_WIDTH, seed=0, bias=bias), make_head(WIDTH, seed=2, bias=bias)
    x_teacher = random(TOKENS, TEACHER_WIDTH, seed=4) * torch.logspace(-3, 3, TOKENS)[:, None]
    exact = moment_target(x_teacher, teacher, student)
    decoded = through_a_blob(Moment(Int8(), teacher, student), x_teacher, student)
    assert torch.equal(decoded.entropy, exact.entropy)
    error = ((decoded.moment - exact.moment).abs() / exact.moment.abs().amax(dim=1, keepdim=True)).max().item()
    assert error <= HALF_A_LEVEL, error
    hidden = Hidden(Int8(), teacher)
    (blob,) = to_blobs(hidden.encode(x_teacher, numbers(TOKENS)), hidden.fields, [TOKENS])
    states = hidden.states(from_blobs([blob], hidden.fields, [TOKENS]))
    error = ((states - x_teacher).abs() / x_teacher.abs().amax(dim=1, keepdim=True)).max().item()
    assert error <= HALF_A_LEVEL, error


def test_a_vector_of_zeros_stays_one() -> None:
    packed = Int8().pack(torch.zeros(2, 5))
    assert torch.equal(Int8().unpack(packed), torch.zeros(2, 5))


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.integers(1, 18), st.integers(1, 40), st.data())
def test_packed_ids_come_back(bits: int, count: int, data: st.DataObject) -> None:
    rows = data.draw(
        st.lists(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count), min_size=1, max_size=4)
    )
    packed = pack_ids(torch.tensor(rows), bits)
    assert packed.shape == (len(rows), -(-count * bits // 8))
    assert unpack_ids(packed, bits, count).tolist() == rows


@pytest.mark.parametrize("bias", [False, True])
def test_sampled_is_the_moment_on_average_and_keeps_the_exact_entropy(bias: bool) -> None:
    """Over 4,000 random numbers the mean is within 5 standard errors; one sample alone is far outside.

    Red if a token is favoured, as by top-k with a lumped tail, or by rounding ids towards one side.
    """
    teacher, student = make_head(TEACHER_WIDTH, seed=0, bias=bias), make_head(WIDTH, seed=2, bias=bias)
    x = random(1, TEACHER_WIDTH, seed=4)
    many = 4000
    codec = Sampled(3, VOCABULARY, teacher)
    fields = codec.encode(x.expand(many, -1), numbers(many))
    decoded, exact = codec.decode(fields, student), moment_target(x, teacher, student)
    torch.testing.assert_close(decoded.entropy, exact.entropy.expand(many))
    standard_error = decoded.moment.std(dim=0) / many**0.5
    off = ((decoded.moment.mean(dim=0) - exact.moment[0]).abs() / standard_error).max().item()
    assert off < 5, f"{off:.1f} standard errors"
    assert ((decoded.moment[0] - exact.moment[0]).abs() / standard_error).max() > 20
    if bias:
        assert abs(decoded.bias_mean.mean() - exact.bias_mean[0]) < 5 * decoded.bias_mean.std() / many**0.5


def test_evenly_spread_ids_vary_less_than_independent_draws() -> None:
    """Their mean row has less than half the variance, which is why they are spread."""
    teacher, student = make_head(TEACHER_WIDTH, seed=0, bias=False), make_head(WIDTH, seed=2, bias=False)
    teacher = Head(teacher.weight / 3)
    x, many, count = random(1, TEACHER_WIDTH, seed=4), 2000, 16
    codec = Sampled(count, VOCABULARY, teacher)
    spread = codec.decode(codec.encode(x.expand(many, -1), numbers(many)), student).moment
    q = (x @ teacher.weight.T).softmax(dim=1)[0]
    ids = torch.multinomial(q, many * count, replacement=True, generator=torch.Generator().manual_seed(0))
    drawn = student.weight[ids.view(many, count)].mean(dim=1)
    ratio = (spread.var(dim=0).sum() / drawn.var(dim=0).sum()).item()
    assert ratio < 0.5, ratio


def test_one_random_number_gives_one_sample() -> None:
    """Whoever makes a row anew makes the same bytes; another number makes others."""
    teacher = make_head(TEACHER_WIDTH, seed=0, bias=False)
    codec, x = Sampled(5, VOCABULARY, teacher), random(TOKENS, TEACHER_WIDTH, seed=4)
    one, same, other = (codec.encode(x, numbers(TOKENS, seed))[0] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_byte_planes_compress_where_plain_bytes_do_not() -> None:
    """bf16 states under zstd: at most 0.72 of raw in planes, over 0.75 without. Red if planes are not made."""
    states = random(400, 512, seed=1).bfloat16()
    (planes,) = to_blobs([states], [Field(512, torch.bfloat16)], [400])
    plain = states.view(torch.uint8).numpy().tobytes()
    zstd = pa.Codec("zstd", compression_level=1)
    in_planes, in_order = (zstd.compress(raw).size / len(raw) for raw in (planes, plain))
    assert in_planes < 0.72, in_planes
    assert in_order > 0.75, in_order


@hypothesis_settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(1, 5), st.sampled_from([*DTYPES, torch.float16])), min_size=1, max_size=3),
)
def test_blobs_hold_each_samples_tokens(counts: list[int], widths: list[tuple[int, torch.dtype]]) -> None:
    """Red if tokens go to a neighbour, fields to each other, or a dtype to another."""
    fields = [Field(width, dtype) for width, dtype in widths]
    total = sum(counts)
    tensors = [random(total, field.width, seed=index).to(field.dtype) for index, field in enumerate(fields)]
    blobs = to_blobs(tensors, fields, counts)
    assert [len(blob) for blob in blobs] == [count * sum(f.bytes_per_token for f in fields) for count in counts]
    start = 0
    for blob, count in zip(blobs, counts, strict=True):
        for ours, whole, field in zip(from_blobs([blob], fields, [count]), tensors, fields, strict=True):
            assert ours.dtype == field.dtype
            assert torch.equal(ours, whole[start : start + count])
        start += count


def test_extreme_numbers_survive() -> None:
    """Bytes are kept, not values: infinities, signed zero, subnormals. Red if they pass through text or float16."""
    values = torch.tensor([[float("inf"), float("-inf"), -0.0, 1e-40, 3.4e38]])
    (field,) = (Field(5, torch.float32),)
    (back,) = from_blobs([to_blobs([values], [field], [1])[0]], [field], [1])
    assert torch.equal(back.view(torch.int32), values.view(torch.int32))


def test_transposed_tensors_are_written_row_by_row() -> None:
    """A view whose memory runs the other way. Red if raw memory is copied without looking at strides."""
    tensor = torch.arange(12.0).reshape(3, 4).T
    (field,) = (Field(3, torch.float32),)
    (back,) = from_blobs([to_blobs([tensor], [field], [4])[0]], [field], [4])
    assert torch.equal(back, tensor)


def test_decoded_tensors_own_their_memory() -> None:
    """Red if a tensor lies on the blob's bytes: writing to it would change a row in memory."""
    field = Field(2, torch.float32)
    blob = to_blobs([torch.ones(1, 2)], [field], [1])[0]
    from_blobs([blob], [field], [1])[0].zero_()
    assert torch.equal(from_blobs([blob], [field], [1])[0], torch.ones(1, 2))


@pytest.mark.parametrize("change", [-1, 1, 12])
def test_a_blob_of_another_length_is_refused(change: int) -> None:
    """Two tokens of 12 bytes; one too few, one too many, and a whole token too many."""
    fields = (Field(2, torch.float32), Field(2, torch.bfloat16))
    with pytest.raises(ValueError, match=rf"a blob of 2 tokens has {24 + change} bytes, expected 24"):
        from_blobs([bytes(24 + change)], fields, [2])
