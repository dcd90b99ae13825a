"""CTranslate2 as a peer (`pip install -e ".[bench]"`). On a CPU it computes in float32, or with 8-bit weights.

It is given the weights as its own converter does it, by way of transformers. The vocabulary is a dummy, because
prompts are ids. Prompts of different lengths are fed to it token by token, from the shortest one's end on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import torch
from transformers_peer import make_transformers

from llama.model import Transformer


class CTranslate2:
    """Continues prompts of ids greedily, in float32 whatever the dtype of the model it was made from.

    Args:
        compute_type: float32, or int8: weights in 8 bits with a scale for each output, activations for each row.
    """

    def __init__(self, model: Transformer, *, threads: int, compute_type: str = "float32") -> None:
        import ctranslate2
        from ctranslate2.converters.transformers import LlamaLoader

        peer = make_transformers(model, torch.float32).model
        with torch.no_grad():
            spec = LlamaLoader().get_model_spec(peer)
        spec.register_vocabulary([str(i) for i in range(model.params.vocab_size)])
        spec.config.unk_token, spec.config.bos_token, spec.config.eos_token = "0", "1", "2"
        spec.config.layer_norm_epsilon = model.params.norm_eps
        spec.validate()
        spec.optimize()
        with tempfile.TemporaryDirectory() as folder:
            spec.save(folder)
            del spec, peer
            self._generator = ctranslate2.Generator(
                folder, device="cpu", compute_type=compute_type, inter_threads=1, intra_threads=threads
            )
        self.name = f"ctranslate2, {compute_type}"

    def run(self, prompts: Sequence[Sequence[int]], new: int) -> list[list[int]]:
        results = self._generator.generate_batch(
            [[str(token) for token in prompt] for prompt in prompts],
            max_length=new,
            min_length=new,
            include_prompt_in_result=False,
        )
        return [list(result.sequences_ids[0]) for result in results]
