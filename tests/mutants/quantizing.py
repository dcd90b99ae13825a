"""Mutants of quantizing while a checkpoint is read, and of writing GGUF."""

from __future__ import annotations

from mutant import Mutant

_QUANTIZE = "tests/checkpoint/test_quantize.py"
_WRITTEN = "tests/checkpoint/convert/test_gguf_written.py"
_FILES = "tests/checkpoint/convert/test_gguf_files.py"

MUTANTS = [
    Mutant(
        name="a rank's window has the codes of the row's beginning",
        file="llama/checkpoint/quantize.py",
        old="        return _cut(found, first - start, form)",
        new="        return _cut(found, 0, form)",
        tests=(f"{_QUANTIZE}::test_a_ranks_window_has_the_codes_of_the_whole",),
    ),
    Mutant(
        name="scales that are not finite are taken over",
        file="llama/checkpoint/quantize.py",
        old="        if not bool(found.scales.isfinite().all()):",
        new="        if bool(found.scales.isnan().all()):",
        tests=(f"{_QUANTIZE}::test_what_cannot_be_quantized_is_refused",),
    ),
    Mutant(
        name="the search of k4 keeps the first scale",
        file="llama/kernels/quantizers.py",
        old="        better = (D > 0) & (s > 0) & (gain > best)",
        new="        better = (D > 0) & (s > 0) & (best < -1e300)",
        tests=("tests/kernels/test_quantizers.py::test_k4_is_the_same_on_every_level",),
    ),
    Mutant(
        name="the upper bits of Q4_K's factors are lost",
        file="llama/checkpoint/weight_files/gguf_writer.py",
        old="            a[..., :4] | a[..., 4:] >> 4 << 6,",
        new="            a[..., :4] | a[..., 4:] >> 5 << 6,",
        tests=(f"{_WRITTEN}::test_the_gguf_package_reads_the_same",),
    ),
    Mutant(
        name="a GGUF that is replaced may be the source",
        file="llama/checkpoint/convert/output_gguf.py",
        old="        if final.exists() and any(os.path.samefile(final, each) for each in self._sources):",
        new="        if final in self._sources:",
        tests=(f"{_FILES}::test_the_source_is_never_replaced",),
    ),
    Mutant(
        name="an unfinished GGUF has a name that loads",
        file="llama/checkpoint/convert/file_names.py",
        old='UNFINISHED = "weights.unfinished"',
        new='UNFINISHED = "weights.gguf"',
        tests=(f"{_FILES}::test_a_kill_at_any_moment_leaves_the_old_file_or_the_new_one",),
    ),
]
