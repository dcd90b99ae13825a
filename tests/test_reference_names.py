"""Names that code written for the reference imports, and what they compute."""

import inspect

import torch
from tiny_tokenizers import tiny_tokenizer

import llama.generation
import llama.model
from llama import Llama
from llama.model import apply_rotary_emb, precompute_freqs_cis, repeat_kv, rotary_table, rotate


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
