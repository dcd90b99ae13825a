"""Laws of the model: it is transformers' Llama, under any chunking of a prompt and any neighbours."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import Held
from tiny_llama import SHAPES, tiny_model, twin, twin_logits

import llama.model
from llama.api import compat
from llama.errors import ConfigError, ParallelismError
from llama.kernels.operators import rotate
from llama.model import ModelArgs, Transformer
from llama.sizing.args import check_size, valid_sizes

TOLERANCE = 1e-4
# dim, layers, heads, key/value heads, and what params.json says of the feed-forward layers -> ffn
FAMILY = {
    "7B": (4096, 32, 32, None, 256, 1.0, 11008),
    "13B": (5120, 40, 40, None, 256, 1.0, 13824),
    "34B": (8192, 48, 64, 8, 256, 1.0, 22016),
    "70B": (8192, 80, 64, 8, 4096, 1.3, 28672),
    "110M": (768, 12, 12, None, 256, None, 2048),
    "1.1B": (2048, 22, 32, 4, 256, None, 5632),
}


def args_of(name, **more):
    dim, layers, heads, kv_heads, multiple, multiplier, _ = FAMILY[name]
    params = {"dim": dim, "n_layers": layers, "n_heads": heads, "multiple_of": multiple, "norm_eps": 1e-5}
    params |= {} if kv_heads is None else {"n_kv_heads": kv_heads}
    params |= {} if multiplier is None else {"ffn_dim_multiplier": multiplier}
    return ModelArgs.from_params(params | more, max_seq_len=4096, max_batch_size=4)


# ---- params.json ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILY)
def test_shapes_of_the_family(name):
    dim, _, heads, kv_heads, _, _, ffn = FAMILY[name]
    args = args_of(name)
    assert args.ffn_dim == ffn
    assert args.kv_heads == (kv_heads or heads)
    assert args.head_dim == dim // heads
    assert (args.max_seq_len, args.max_batch_size) == (4096, 4)


@pytest.mark.parametrize("name", ["7B", "13B", "34B", "70B"])
def test_heads_of_the_family_have_128_dimensions(name):
    assert args_of(name).head_dim == 128


def test_values_are_taken_as_they_are_given():
    args = args_of("7B", rope_theta=1000000, norm_eps=1e-6, vocab_size=32016)
    assert (args.rope_theta, args.norm_eps, args.vocab_size) == (1000000, 1e-6, 32016)
    assert args_of("7B").vocab_size == -1
    assert args_of("7B").rope_theta == 10000.0


def test_unknown_keys_are_named():
    with pytest.raises(ConfigError, match=r"unknown keys rope_scaling, sliding_window.*knows .*rope_theta"):
        args_of("7B", sliding_window=5, rope_scaling={})


@pytest.mark.parametrize("limit", ["max_seq_len", "max_batch_size"])
def test_limits_are_no_keys_of_params_json(limit):
    with pytest.raises(ConfigError, match=f"unknown keys {limit}"):
        args_of("7B", **{limit: 7})


@pytest.mark.parametrize("key", ["dim", "n_layers", "n_heads"])
def test_missing_keys_are_named(key):
    params = {"dim": 64, "n_layers": 2, "n_heads": 4}
    del params[key]
    with pytest.raises(ConfigError, match=f"lacks {key};"):
        ModelArgs.from_params(params, max_seq_len=8, max_batch_size=1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dim", 0),
        ("dim", -64),
        ("dim", 64.0),
        ("dim", "64"),
        ("dim", True),
        ("dim", None),
        ("dim", 100),  # 32 heads
        ("dim", 32),  # heads of one dimension, which has no pair to rotate
        ("n_layers", 0),
        ("n_heads", 0),
        ("multiple_of", 0),
        ("multiple_of", 1.5),
        ("norm_eps", 0),
        ("norm_eps", float("nan")),
        ("norm_eps", "1e-5"),
        ("rope_theta", -1.0),
        ("rope_theta", float("inf")),
        ("rope_theta", None),
        ("ffn_dim_multiplier", 0),
        ("ffn_dim_multiplier", True),
        ("n_kv_heads", 0),
        ("n_kv_heads", 3),
        ("n_kv_heads", 64),
        ("n_kv_heads", 4.0),
        ("vocab_size", 0),
        ("vocab_size", -2),
        ("vocab_size", 32000.0),
    ],
)
def test_bad_values_are_named(key, value):
    with pytest.raises(ConfigError, match=key.split("_")[0]) as caught:
        args_of("7B", **{key: value})
    assert repr(value) in str(caught.value)
    assert key in str(caught.value)


@pytest.mark.parametrize("limit", ["max_seq_len", "max_batch_size"])
@pytest.mark.parametrize("value", [0, -1, 2.0, None, True])
def test_bad_limits_are_named(limit, value):
    with pytest.raises(ConfigError, match=f"{limit} is {value!r}"):
        ModelArgs(**{limit: value})


def test_a_model_needs_its_vocabulary():
    with pytest.raises(ConfigError, match="vocab_size is -1"):
        Transformer(ModelArgs(dim=64, n_layers=1, n_heads=4))


# ---- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "vocab", "sizes"),
    [
        # Divisors of the heads that also divide dim, ffn and the vocabulary: 11008 = 2^8 43, 13824 = 2^9 27,
        # 22016 = 2^9 43, 28672 = 2^12 7; 32016 = 2^4 3 23 29, 32000 = 2^8 5^3.
        ("7B", 32016, [1, 2, 4, 8, 16]),
        ("7B", 32000, [1, 2, 4, 8, 16, 32]),
        ("13B", 32016, [1, 2, 4, 8]),
        ("34B", 32000, [1, 2, 4, 8, 16, 32, 64]),
        ("70B", 32016, [1, 2, 4, 8, 16]),
        ("70B", 32000, [1, 2, 4, 8, 16, 32, 64]),
        ("1.1B", 32016, [1, 2, 4, 8, 16]),
        ("110M", 32016, [1, 2, 4]),
    ],
)
def test_model_parallel_sizes_that_work(name, vocab, sizes):
    args = args_of(name, vocab_size=vocab)
    assert valid_sizes(args) == sizes
    for size in range(1, 70):
        if size in sizes:
            check_size(args, size)
        else:
            with pytest.raises(ParallelismError) as caught:
                check_size(args, size)
            assert f"size {size} " in str(caught.value)
            assert str(caught.value).endswith("sizes that work: " + ", ".join(map(str, sizes)))


def test_query_heads_may_not_be_cut_through_by_shared_key_heads():
    # 12 query heads over 4 key heads: 6 ranks of 2 queries would each need parts of two key heads.
    args = ModelArgs(dim=96, n_layers=1, n_heads=12, n_kv_heads=4, multiple_of=12, vocab_size=120)
    assert valid_sizes(args) == [1, 2, 4, 12]


# ---- the module ----------------------------------------------------------------------------------


def test_a_star_import_gives_the_references_names_too():
    names = {}
    exec("from llama.model import *", names)
    for name in ("apply_rotary_emb", "precompute_freqs_cis", "repeat_kv"):
        assert names[name] is getattr(llama.model, name) is getattr(compat, name)
    assert names["Transformer"] is Transformer
    with pytest.raises(AttributeError, match=r"'llama\.model' has no attribute 'sample_top_p'"):
        _ = llama.model.sample_top_p


def test_a_bfloat16_model_turns_its_heads_by_float32_tables(monkeypatch):
    seen = []
    monkeypatch.setattr(
        llama.model, "rotate", lambda x, table: (seen.append((x, table)), rotate(x, table))[1]
    )
    model = tiny_model(dtype=torch.bfloat16, max_seq_len=20000)
    held = Held(model, [0], room=16384)
    held.pool.store.zero_()
    held.computed = [16383]
    held.run(torch.tensor([5]), [1])
    assert len(seen) == 4  # queries and keys of two layers
    for x_THD, table in seen:
        assert x_THD.dtype == torch.bfloat16
        head = x_THD.shape[-1]
        angle = 16383 * 1e6 ** (-torch.arange(0, head, 2, dtype=torch.float64) / head)
        pairs = torch.view_as_complex(x_THD.double().unflatten(-1, (-1, 2)))
        wanted = torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)
        got = rotate(x_THD, table)
        assert got.dtype == torch.bfloat16
        assert (got.double() - wanted).abs().max() < 2**-7 * wanted.abs().max()


# ---- the whole model -----------------------------------------------------------------------------


def ids_of(count, seed=0, vocab=400):
    return torch.randint(3, vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def logits_of(model, ids):
    return model.logits(Held(model, [0], room=len(ids)).run(torch.tensor(ids), [len(ids)]))


@pytest.fixture(scope="module", params=list(SHAPES))
def shape(request):
    return request.param


@pytest.fixture(scope="module")
def model(shape):
    return tiny_model(shape)


def close(got, wanted, tolerance=TOLERANCE):
    assert got.dtype == torch.float32
    assert torch.allclose(got, wanted, rtol=tolerance, atol=tolerance * wanted.std().item())


def test_the_twin_is_of_this_shape(shape):
    """The oracle itself: theta 1e6 arrives in transformers, and so do the key/value heads."""
    config = twin(shape).config
    assert config.num_key_value_heads == (SHAPES[shape]["n_kv_heads"] or SHAPES[shape]["n_heads"])
    head = config.hidden_size // config.num_attention_heads
    frequencies = twin(shape).model.rotary_emb.inv_freq
    assert torch.allclose(frequencies, 1e6 ** (-torch.arange(0, head, 2) / head))


@pytest.mark.parametrize("length", [1, 2, 37, 300])
def test_logits_are_those_of_transformers(model, shape, length):
    ids = ids_of(length)
    close(logits_of(model, ids), twin_logits(ids, shape))


def test_bfloat16_is_near_float32_with_float32_logits():
    ids = ids_of(60)
    logits, wanted = logits_of(tiny_model(dtype=torch.bfloat16), ids), twin_logits(ids)
    assert logits.dtype == torch.float32
    assert (logits - wanted).std() < 0.05 * wanted.std()


LENGTH = 24


@pytest.mark.slow
@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.data())
def test_any_chunking_and_any_neighbours(model, shape, data):
    """Sequences in chunks of any size, in steps of any company, in any blocks: each gets the logits of its own run
    alone."""
    lengths = data.draw(st.lists(st.integers(1, LENGTH), min_size=1, max_size=4), label="lengths")
    prompts = [ids_of(length, seed=i) for i, length in enumerate(lengths)]
    size, scatter = data.draw(st.sampled_from([1, 4, 32]), label="block"), data.draw(st.integers(0, 9))
    held = Held(model, [0] * len(prompts), size=size, room=LENGTH, scatter=scatter)
    parts: list[list[torch.Tensor]] = [[] for _ in prompts]
    while open_rows := [i for i, ids in enumerate(prompts) if held.computed[i] < len(ids)]:
        rows = data.draw(st.permutations(open_rows), label="order")
        rows = rows[: data.draw(st.integers(1, len(rows)), label="company")]
        counts = [data.draw(st.integers(1, len(prompts[i]) - held.computed[i]), label="chunk") for i in rows]
        run = [
            token
            for i, count in zip(rows, counts, strict=True)
            for token in prompts[i][held.computed[i] :][:count]
        ]
        hidden = held.run(torch.tensor(run), dict(zip(rows, counts, strict=True)))
        for i, part in zip(rows, hidden.split(counts), strict=True):
            parts[i].append(part)
    for ids, part in zip(prompts, parts, strict=True):
        close(model.logits(torch.cat(part)), twin_logits(ids, shape))


# ---- the reference's call ------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 4))
def test_forward_in_any_steps(model, shape, steps, batch):
    rows = [ids_of(sum(steps), seed=i) for i in range(batch)]
    tokens, start, parts = torch.tensor(rows), 0, []
    for count in steps:
        parts.append(model(tokens[:, start : start + count], start))
        start += count
    logits = torch.cat(parts, dim=1)
    assert logits.shape == (batch, sum(steps), model.vocab_size)
    for row, ids in zip(logits, rows, strict=True):
        close(row, twin_logits(ids, shape))


def test_forward_goes_back_and_starts_anew(model, shape):
    first, other = ids_of(12), ids_of(12, seed=1)
    model(torch.tensor([first]), 0)
    again = model(torch.tensor([other[5:9]]), 5)
    close(again[0], twin_logits(first[:5] + other[5:9], shape)[5:])
    with pytest.raises(ConfigError, match="9 positions"):  # what stood behind is forgotten
        model(torch.tensor([other[:1]]), 10)
    close(model(torch.tensor([other]), 0)[0], twin_logits(other, shape))


def test_forward_refuses_what_is_over_a_limit():
    model = tiny_model(max_seq_len=16, max_batch_size=2)
    with pytest.raises(ConfigError, match=r"3 rows.*max_batch_size is 2"):
        model(torch.ones(3, 1, dtype=torch.long))
    with pytest.raises(ConfigError, match=r"position 17.*max_seq_len 16"):
        model(torch.ones(1, 17, dtype=torch.long))
    model(torch.ones(1, 16, dtype=torch.long))
    with pytest.raises(ConfigError, match=r"position 17.*max_seq_len 16"):
        model(torch.ones(1, 1, dtype=torch.long), 16)


def test_forward_refuses_a_start_that_was_not_computed():
    model = tiny_model()
    with pytest.raises(ConfigError, match="start_pos 1 for 1 rows, but 0 positions of 0 rows"):
        model(torch.ones(1, 1, dtype=torch.long), 1)
    model(torch.ones(1, 4, dtype=torch.long), 0)
    for start in (5, -1):
        with pytest.raises(ConfigError, match=f"start_pos {start} for 1 rows, but 4 positions"):
            model(torch.ones(1, 1, dtype=torch.long), start)
    with pytest.raises(ConfigError, match="start_pos 4 for 2 rows, but 4 positions of 1 rows"):
        model(torch.ones(2, 1, dtype=torch.long), 4)


def test_forward_forgets_when_the_model_is_cast():
    """What it holds is in the other dtype."""
    model, ids = tiny_model(), torch.tensor([ids_of(6)])
    model(ids[:, :4], 0)
    model.double()
    with pytest.raises(ConfigError, match="start_pos 4 for 1 rows, but 0 positions"):
        model(ids[:, 4:], 4)
    whole = model(ids, 0)
    model(ids[:, :4], 0)
    assert torch.allclose(model(ids[:, 4:], 4), whole[:, 4:], atol=1e-4)


def test_models_in_one_process_do_not_share_caches():
    one, other = tiny_model(), tiny_model()
    ids = ids_of(8)
    one(torch.tensor([ids[:5]]), 0)
    other(torch.tensor([ids[::-1]]), 0)
    close(one(torch.tensor([ids[5:]]), 5)[0], twin_logits(ids)[5:])


def test_nothing_asks_for_a_gradient():
    model = tiny_model()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model(torch.ones(1, 2, dtype=torch.long)).requires_grad
