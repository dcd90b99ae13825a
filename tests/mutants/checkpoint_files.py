"""Checkpoints' small files and safetensors: what is read as what, and what a few bytes may ask for."""

from __future__ import annotations

from mutant import Mutant

_LIMITS, _SAFETENSORS, _ROPE = (
    "tests/checkpoint/test_limits.py",
    "tests/checkpoint/weight_files/test_safetensors.py",
    "tests/checkpoint/layouts/test_rope_config.py",
)

MUTANTS = [
    Mutant(
        name="a header's length is taken for text again",
        file="llama/checkpoint/weight_files/safetensors.py",
        old="            if len(start) == 8 and 2 <= length <= min(MOST_JSON, size - 8):",
        new='            if start.lstrip()[:1] != b"<" and 2 <= length <= min(MOST_JSON, size - 8):',
        tests=(f"{_SAFETENSORS}::test_headers_of_any_length_are_read",),
    ),
    Mutant(
        name="strides of an empty tensor may overflow",
        file="llama/checkpoint/weight_files/safetensors.py",
        old="    elements = math.prod(max(1, extent) for extent in shape)",
        new="    elements = math.prod(shape)",
        tests=(f"{_LIMITS}::test_extents_that_no_tensor_has",),
    ),
    Mutant(
        name="a shape may have any number of dimensions",
        file="llama/checkpoint/weight_files/safetensors.py",
        old="_MOST_DIMENSIONS, _MOST_SIZE = 64, 2**63 - 1",
        new="_MOST_DIMENSIONS, _MOST_SIZE = 10**9, 2**63 - 1",
        tests=(f"{_LIMITS}::test_a_long_shape",),
    ),
    Mutant(
        name="__metadata__ is not looked at",
        file="llama/checkpoint/weight_files/safetensors.py",
        old="    if told is not None and not (",
        new="    if False and not (",
        tests=(f"{_SAFETENSORS}::test_what_the_package_does_not_read_is_refused",),
    ),
    Mutant(
        name="lone surrogates are text",
        file="llama/checkpoint/files.py",
        old='        if b"\\\\u" in text:',
        new="        if False:",
        tests=(f"{_LIMITS}::test_lone_surrogates_are_no_text",),
    ),
    Mutant(
        name="a pipe is opened",
        file="llama/checkpoint/files.py",
        old="    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for the other end",
        new="    if stat.S_ISDIR(found.st_mode):",
        tests=(f"{_LIMITS}::test_no_file_in_place_of_one",),
    ),
    Mutant(
        name="a small file of any size is read",
        file="llama/checkpoint/files.py",
        old="    if size > most:",
        new="    if size > most << 20:",
        tests=(f"{_LIMITS}::test_a_sparse_file_of_metas_layout", f"{_LIMITS}::test_a_sparse_checklist"),
    ),
    Mutant(
        name="a tokenizer of any size is read",
        file="llama/tokenizer.py",
        old="        if found.st_size > _MAX_FILE_BYTES:",
        new="        if found.st_size > _MAX_FILE_BYTES << 20:",
        tests=(f"{_LIMITS}::test_a_sparse_file_of_metas_layout",),
    ),
    Mutant(
        name="pieces are not looked at",
        file="llama/tokenizer.py",
        old="        except UnicodeDecodeError as error:\n            raise TokenizerError(",
        new="        except ZeroDivisionError as error:\n            raise TokenizerError(",
        tests=(f"{_LIMITS}::test_pieces_that_are_no_text",),
    ),
    Mutant(
        name="files are counted up to what a name announces",
        file="llama/checkpoint/layouts/hugging_face.py",
        old="    counted = range(1, min(total, len(numbers) + 3) + 1)",
        new="    counted = range(1, min(total, 10**7) + 1)",
        tests=(f"{_LIMITS}::test_a_name_that_announces_many_files",),
    ),
    Mutant(
        name="only the first missing file is looked for",
        file="llama/checkpoint/layouts/hugging_face.py",
        old="    counted = range(1, min(total, len(numbers) + 3) + 1)",
        new="    counted = range(1, min(total, len(numbers)) + 1)",
        tests=(
            "tests/checkpoint/layouts/test_hugging_face.py::test_a_lost_file_of_numbered_ones_is_named",
            f"{_LIMITS}::test_a_name_that_announces_many_files",
        ),
    ),
    Mutant(
        name="a million layers are laid out",
        file="llama/sizing/args.py",
        old='    "n_layers": 1 << 10,',
        new='    "n_layers": 1 << 21,',
        tests=(f"{_LIMITS}::test_many_layers",),
    ),
    Mutant(
        name="whole numbers stay whole where floats are computed with",
        file="llama/sizing/args.py",
        old="            setattr(self, name, float(value))\n",
        new="",
        tests=(f"{_LIMITS}::test_whole_numbers_are_taken_as_floats",),
    ),
    Mutant(
        name="messages carry a file's control characters",
        file="llama/errors.py",
        old="        super().__init__(printable(message, _MAX_LENGTH))",
        new="        super().__init__(message)",
        tests=(f"{_LIMITS}::test_a_message_is_one_printable_line_and_never_long",),
    ),
    Mutant(
        name="rope_theta inside rope_scaling is ignored",
        file="llama/checkpoint/layouts/hf_config.py",
        old='    for key in ("rope_scaling", "rope_parameters"):',
        new='    for key in ("rope_parameters",):',
        tests=(f"{_ROPE}::test_rope_theta_is_read_wherever_it_is_named",),
    ),
    Mutant(
        name="the first rope_theta counts, whatever the others say",
        file="llama/checkpoint/layouts/hf_config.py",
        old="    if any(value != values[0] for value in values):",
        new="    if False:",
        tests=(f"{_ROPE}::test_what_could_be_read_in_two_ways_is_refused",),
    ),
    Mutant(
        name="the runner takes a killed reader for a finished one",
        file="tests/fuzz/run.py",
        old='            self._lost(job, "crashes", why)',
        new='            self._lost(job, "refused", why)',
        tests=("tests/project/test_fuzz.py::test_the_runner_notices_and_names_what_must_not_happen",),
    ),
    Mutant(
        name="the runner does not look at memory",
        file="tests/fuzz/run.py",
        old="            if taken[0] > memory and word not in _FAILURES:",
        new="            if False:",
        tests=("tests/project/test_fuzz.py::test_the_runner_notices_and_names_what_must_not_happen",),
    ),
]
