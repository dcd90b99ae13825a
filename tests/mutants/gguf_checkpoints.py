"""GGUF: what the header may claim, what bytes mean, and which tokenizer comes out."""

from __future__ import annotations

from mutant import Mutant

_HEADER, _TYPES, _LAYOUT, _REFUSALS, _TOKENIZER, _VERBS = (
    "tests/checkpoint/weight_files/test_gguf_header.py",
    "tests/checkpoint/weight_files/test_gguf_types.py",
    "tests/checkpoint/layouts/test_gguf.py",
    "tests/checkpoint/layouts/test_gguf_refusals.py",
    "tests/checkpoint/layouts/test_gguf_tokenizer.py",
    "tests/cli/test_gguf_verbs.py",
)
_READER, _KINDS = "llama/checkpoint/weight_files/gguf.py", "llama/checkpoint/weight_files/gguf_types.py"
_CHECKPOINT, _CONFIG = "llama/checkpoint/layouts/gguf.py", "llama/checkpoint/layouts/gguf_config.py"
_VOCABULARY = "llama/checkpoint/layouts/gguf_tokenizer.py"

MUTANTS = [
    Mutant(
        name="tensors may overlap",
        file=_READER,
        old="        if entry.at < end:",
        new="        if False:",
        tests=(f"{_HEADER}::test_what_is_not_sound_is_named_with_its_numbers",),
    ),
    Mutant(
        name="a tensor may end behind the file",
        file=_READER,
        old="        if first + end > size:",
        new="        if False:",
        tests=(f"{_HEADER}::test_what_is_not_sound_is_named_with_its_numbers",),
    ),
    Mutant(
        name="a header may announce more than the file holds",
        file=_READER,
        old="        if found > (self.size - self.at) // least:",
        new="        if False:",
        tests=(f"{_HEADER}::test_what_is_not_sound_is_named_with_its_numbers",),
    ),
    Mutant(
        name="the data begin right behind the header",
        file=_READER,
        old="    first = -(-header.at // alignment) * alignment",
        new="    first = header.at",
        tests=(f"{_HEADER}::test_sound_files_are_read_as_the_package_reads_them",),
    ),
    Mutant(
        name="the factors of Q4_K lose their high bits",
        file=_KINDS,
        old="    d = torch.cat([low & 63, high & 15 | low >> 6 << 4], -1)",
        new="    d = torch.cat([low & 63, high & 15], -1)",
        tests=(
            f"{_TYPES}::test_random_blocks_have_the_values_of_the_package",
            f"{_LAYOUT}::test_every_type_is_read_as_the_package_reads_it",
        ),
    ),
    Mutant(
        name="codes of Q8_0 keep their sign",
        file=_KINDS,
        old="        return raw[..., 2:] ^ 128  # from signed to unsigned with 128 as the zero",
        new="        return raw[..., 2:].clone()",
        tests=(f"{_LAYOUT}::test_every_type_is_read_as_the_package_reads_it",),
    ),
    Mutant(
        name="scales of a slice begin at the first group",
        file=_CHECKPOINT,
        old="    at = skip // form.group",
        new="    at = 0",
        tests=(f"{_LAYOUT}::test_any_window_is_that_part_of_the_whole",),
    ),
    Mutant(
        name="scales may be NaN",
        file=_CHECKPOINT,
        old="        if not bool(numbers.isfinite().all()):",
        new="        if False:",
        tests=(f"{_LAYOUT}::test_scales_that_are_not_finite_are_an_error_when_they_are_read",),
    ),
    Mutant(
        name="factors of the rotary frequencies are left out",
        file=_CHECKPOINT,
        old="        if factors is None:\n            return",
        new="        return",
        tests=(f"{_REFUSALS}::test_tensors_that_change_the_model_are_named",),
    ),
    Mutant(
        name="unknown keys change nothing",
        file=_CONFIG,
        old="        elif isinstance(value, bool | int | float | str) and not value:",
        new="        else:",
        tests=(f"{_REFUSALS}::test_keys_that_change_the_model_are_named",),
    ),
    Mutant(
        name="norm_eps is a little less than 1e-5",
        file=_CONFIG,
        old="        return float(str(np.float32(value)))",
        new="        return float(value)",
        tests=(f"{_LAYOUT}::test_hyperparameters_are_those_of_the_meta_folder",),
    ),
    Mutant(
        name="blanks at the ends of a text are taken away",
        file=_VOCABULARY,
        old='    blanks = _truth(metadata, "remove_extra_whitespaces", False)',
        new='    blanks = _truth(metadata, "remove_extra_whitespaces", True)',
        tests=(f"{_TOKENIZER}::test_any_text_has_the_same_ids",),
    ),
    Mutant(
        name="eos stands for no token",
        file=_VOCABULARY,
        old='    if padding in (special["bos"], special["eos"]) or',
        new="    if",
        tests=(f"{_TOKENIZER}::test_a_padding_that_is_no_mark_for_nothing_is_left_out",),
    ),
    Mutant(
        name="a GGUF's folder is protected instead of the file",
        file="llama/checkpoint/convert/conversion.py",
        old="    kept_whole = source.files[0] if source.layout == GgufCheckpoint.layout else source.folder",
        new="    kept_whole = source.folder",
        tests=(f"{_VERBS}::test_convert_writes_the_values_and_the_tokenizer",),
    ),
]
