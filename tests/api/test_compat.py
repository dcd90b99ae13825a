"""Names that code written for the reference imports, and what they compute."""

import inspect
import re
from pathlib import Path

import torch
from pools import new_step
from tiny_llama import tiny_model
from tiny_tokenizers import tiny_tokenizer

import llama.generation
import llama.model
from llama import Llama
from llama.distributed.parallel import Parallel
from llama.model import (
    FeedForward,
    TransformerBlock,
    apply_rotary_emb,
    precompute_freqs_cis,
    repeat_kv,
    rotary_table,
    rotate,
)


def test_names_are_where_the_reference_has_them():
    for name in ("ModelArgs", "RMSNorm", "Attention", "FeedForward", "TransformerBlock", "Transformer"):
        assert hasattr(llama.model, name)
    for name in (
        "Llama",
        "Dialog",
        "Message",
        "CompletionPrediction",
        "InfillingPrediction",
        "ChatPrediction",
    ):
        assert hasattr(llama.generation, name)


def test_parameters_come_in_the_references_order():
    def order(call):
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD,)
        return [
            p.name
            for p in inspect.signature(call).parameters.values()
            if p.kind in kinds and p.name != "self"
        ]

    sampling = ["temperature", "top_p", "max_gen_len", "logprobs"]
    assert order(Llama.build) == [
        "ckpt_dir",
        "tokenizer_path",
        "max_seq_len",
        "max_batch_size",
        "model_parallel_size",
    ]
    assert order(Llama.generate) == [
        "prompt_tokens",
        "max_gen_len",
        "temperature",
        "top_p",
        "logprobs",
        "echo",
        "stop_token",
    ]
    assert order(Llama.text_completion) == ["prompts", *sampling, "echo"]
    assert order(Llama.text_infilling) == ["prefixes", "suffixes", *sampling, "suffix_first"]
    assert order(Llama.chat_completion) == ["dialogs", *sampling]


def test_docs_say_what_differs():
    """Each name that code written for the reference may use is the same, or in the table of what differs."""
    page = (Path(__file__).parents[2] / "docs" / "reference-code.md").read_text(encoding="utf-8")
    same, table = page.split("\n## What else you may notice\n")[0].split("| there | here |")
    model = tiny_model()
    block = model.layers[0]
    homes = (llama.model, llama.generation, Llama, model, block, block.attention)
    for name in re.findall(r"`(?:Llama\.|model)?(\w+)", same):
        assert name == "tokens" or any(hasattr(home, name) for home in (*homes, llama)), name
    there, here = zip(*(row.strip("| ").split(" | ") for row in table.strip().splitlines()[1:]), strict=True)
    gone = set(re.findall(r"`(\w+)`", " ".join(there))) - {"weight"}
    assert gone == {
        *("freqs_cis", "cache_k", "cache_v", "n_local_heads", "n_local_kv_heads", "n_rep", "layer_id"),
        "reshape_for_broadcast",
    }
    assert not [name for name in gone if any(hasattr(home, name) for home in homes)]
    for text in (" ".join(there), " ".join(here)):
        for kind, names in re.findall(r"`([A-Z]\w+)\((\w+, [\w, ]+)\)`", text):
            parameters = list(inspect.signature(getattr(llama.model, kind)).parameters)
            assert (parameters == names.split(", ")) == (text != " ".join(there)), kind
    assert list(inspect.signature(block.attention.forward).parameters) == ["x_TC", "rotary", "step"]


def test_code_of_the_docs_for_what_differs():
    model = tiny_model()
    args = model.params
    block = TransformerBlock(1, args, Parallel())
    for name, weight in model.layers[1].state_dict().items():
        block.get_submodule(name.rpartition(".")[0]).assign(weight)
    assert block.attention.layer == 1
    assert block.feed_forward.w1.shape == FeedForward(args.dim, args.ffn_dim, Parallel()).w1.shape
    model.layers[1] = block
    ids = torch.tensor([[5, 6, 7]])
    hidden = model.hidden(ids.repeat(1, 2).flatten(), new_step(model, [3, 3]))
    torch.testing.assert_close(model.logits(hidden)[3:], tiny_model()(ids, 0)[0])


def test_rotary_functions_are_what_the_model_does():
    table = precompute_freqs_cis(16, 40, 1e6)
    x = torch.randn(2, 7, 3, 16)
    turned, _ = apply_rotary_emb(x, x, table[5:12])
    positions = torch.arange(5, 12)
    for row in range(2):
        torch.testing.assert_close(turned[row], rotate(x[row].clone(), rotary_table(positions, 16, 1e6)))


def test_repeated_heads_stand_side_by_side():
    x = torch.arange(2).view(1, 1, 2, 1)
    assert repeat_kv(x, 3).flatten().tolist() == [0, 0, 0, 1, 1, 1]


def test_sample_top_p_stays_in_the_nucleus():
    probs = torch.tensor([[0.1, 0.5, 0.3, 0.1]]).expand(300, 4)
    drawn = llama.generation.sample_top_p(probs, 0.6)
    assert drawn.shape == (300, 1)
    assert set(drawn.flatten().tolist()) == {1, 2}


def test_prompt_functions():
    tokenizer = tiny_tokenizer("infilling")
    ids = llama.generation.infilling_prompt_tokens(tokenizer, "a", "b")
    assert ids[:2] == [tokenizer.bos_id, tokenizer.prefix_id]
    assert ids[-1] == tokenizer.middle_id
    dialog = [{"role": "user", "content": "hi"}]
    expected = tokenizer.encode("[INST] hi [/INST]", bos=True, eos=False)
    assert llama.generation.dialog_prompt_tokens(tokenizer, dialog) == expected


def test_a_state_dict_goes_out_and_in():
    made = tiny_model()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    assert before["layers.0.attention.wq.weight"].shape == (made.params.dim, made.params.dim)
    made.load_state_dict(before)
    for name, value in made.state_dict().items():
        assert torch.equal(value, before[name])
