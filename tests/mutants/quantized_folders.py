"""GPTQ, AWQ and bitsandbytes folders: where each code, zero and scale lies, and what is refused."""

from __future__ import annotations

from mutant import Mutant

_SOUND, _DAMAGED = (
    "tests/checkpoint/layouts/test_quantized_folders.py",
    "tests/checkpoint/layouts/test_damaged_quantized.py",
)
_RANKS = f"{_SOUND}::test_every_rank_reads_its_slices_bit_for_bit"
_BLOCKS = f"{_SOUND}::test_the_blocks_of_any_window_hold_the_form_that_was_told"

MUTANTS = [
    Mutant(
        name="GPTQ's first format stores zeros as they are",
        file="llama/checkpoint/layouts/gptq.py",
        old="            words += _ONES[self._scheme.bits]",
        new="            words += 0",
        tests=(_RANKS,),
    ),
    Mutant(
        name="padding of act-order holds code 0",
        file="llama/checkpoint/layouts/gptq.py",
        old="            codes[:, padding] = zeros[:, padding // form.group]",
        new="            codes[:, padding] = 0",
        tests=(_BLOCKS,),
    ),
    Mutant(
        name="a slice in act-order begins at its first whole block",
        file="llama/checkpoint/layouts/gptq.py",
        old="order + (columns[0] - read[0])",
        new="order",
        tests=(_RANKS,),
    ),
    Mutant(
        name="a group of act-order may have any number of inputs",
        file="llama/checkpoint/layouts/gptq.py",
        old="        if most > self._group:",
        new="        if False:",
        tests=(f"{_DAMAGED}::test_tensors_that_do_not_fit",),
    ),
    Mutant(
        name="symmetric zeros may be off by one",
        file="llama/checkpoint/layouts/gptq.py",
        old="        if scheme.symmetric and bool((found == wrong).all()):",
        new="        if False:",
        tests=(f"{_DAMAGED}::test_symmetric_zeros_that_are_off_by_one",),
    ),
    Mutant(
        name="AWQ's outputs lie in their natural order",
        file="llama/checkpoint/layouts/awq.py",
        old="_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)",
        new="_ORDER = (0, 1, 2, 3, 4, 5, 6, 7)",
        tests=(_RANKS,),
    ),
    Mutant(
        name="a window within a group begins a group",
        file="llama/checkpoint/layouts/hf_quantized.py",
        old="    return (first + torch.arange(form.groups) * form.group) // group",
        new="    return first // group + torch.arange(form.groups) * form.group // group",
        tests=(_RANKS, _BLOCKS),
    ),
    Mutant(
        name="a single row is not copied when it is transposed",
        file="llama/checkpoint/layouts/hf_quantized.py",
        old="    return words.t().clone(memory_format=torch.contiguous_format)",
        new="    return words.t().contiguous()",
        tests=(_RANKS, _BLOCKS),
    ),
    Mutant(
        name="scales are not looked at",
        file="llama/checkpoint/layouts/hf_quantized.py",
        old="        bad = sum(",
        new="        bad = 0 * sum(",
        tests=(f"{_DAMAGED}::test_tensors_that_do_not_fit",),
    ),
    Mutant(
        name="1 is a flag",
        file="llama/checkpoint/layouts/hf_quantized.py",
        old="    if (type(value), value) not in [(type(each), each) for each in supported]:",
        new="    if value not in supported:",
        tests=(f"{_DAMAGED}::test_settings_that_are_not_read",),
    ),
    Mutant(
        name="the first of two codes of nf4 is in the low bits",
        file="llama/checkpoint/layouts/bitsandbytes.py",
        old="torch.stack((codes.repeat_interleave(16), codes.repeat(16)), 1)",
        new="torch.stack((codes.repeat(16), codes.repeat_interleave(16)), 1)",
        tests=(_RANKS,),
    ),
    Mutant(
        name="quantized rows of wq and wk stay in Hugging Face's order",
        file="llama/checkpoint/layouts/hugging_face.py",
        old="        place = row // dim * dim + row % 2 * (dim // 2) + row % dim // 2",
        new="        place = row",
        tests=(_RANKS, _BLOCKS),
    ),
    Mutant(
        name="nf4 is read as what it is quantized to again",
        file="llama/checkpoint/layouts/hugging_face.py",
        old="        if columns is None or not isinstance(matrix, Requantized):",
        new="        if True:",
        tests=(_RANKS,),
    ),
    Mutant(
        name="a matrix may be there plain and quantized",
        file="llama/checkpoint/layouts/hf_schemes.py",
        old='        if "weight" not in scheme.endings and name in tensors:',
        new="        if False:",
        tests=(f"{_DAMAGED}::test_tensors_that_do_not_fit",),
    ),
]
