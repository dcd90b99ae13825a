"""The readers of .pth files."""

from __future__ import annotations

from mutant import Mutant

_PICKLES_TEST = "tests/checkpoint/weight_files/test_hostile_pickles.py"
_ARCHIVES_TEST = "tests/checkpoint/weight_files/test_hostile_archives.py"
_CHECKSUMS = "tests/checkpoint/verify/test_checksums.py"
_TRUNCATED = "tests/checkpoint/weight_files/test_truncated_while_mapped.py"

WALK = "llama/checkpoint/weight_files/pickle_walk.py"
ZIP = "llama/checkpoint/weight_files/zip_directory.py"
STORED = "llama/checkpoint/weight_files/stored_tensor.py"
PTH = "llama/checkpoint/weight_files/pth.py"
PICKLES = (f"{_PICKLES_TEST}::test_a_hostile_pickle_is_refused",)
ARCHIVES = (f"{_ARCHIVES_TEST}::test_a_hostile_archive_is_refused",)

MUTANTS = [
    Mutant(
        name="a key is hashed before it is known to be text",
        file=WALK,
        old="            if not isinstance(key, str):\n",
        new="            if not isinstance(key, (str, int)):\n",
        tests=PICKLES,
    ),
    Mutant(
        name="any global passes the walk",
        file=WALK,
        old='            raise _refusal(f"names {shown(name)}")\n',
        new="            pass\n",
        tests=PICKLES,
    ),
    Mutant(
        name="a pickle may be of any length",
        file=WALK,
        old="if number >= _MOST_OPERATIONS:",
        new="if number < 0:",
        tests=(f"{_PICKLES_TEST}::test_more_operations_than_any_checkpoint_needs",),
    ),
    Mutant(
        name="a tensor whose numbers are damaged is taken",
        file=WALK,
        old="    if problem is not None:",
        new="    if False:",
        tests=(
            "tests/checkpoint/layouts/test_damaged_folders.py"
            "::test_a_damaged_pickle_raises_a_named_error_or_changes_nothing",
        ),
    ),
    Mutant(
        name="a stride of 0 is taken",
        file=STORED,
        old="if stride <= reach:",
        new="if 0 < stride <= reach:",
        tests=PICKLES,
    ),
    Mutant(
        name="rows may overlap",
        file=STORED,
        old="            reach += (extent - 1) * stride\n",
        new="            reach += 0\n",
        tests=PICKLES,
    ),
    Mutant(
        name="an offset counts for nothing",
        file=STORED,
        old="if self.offset + self.span > self.storage.count:",
        new="if self.span > self.storage.count:",
        tests=PICKLES,
    ),
    Mutant(
        name="a storage may be larger than its record",
        file=PTH,
        old="if storage.count * itemsize > record.size:",
        new="if storage.count > record.size:",
        tests=PICKLES,
    ),
    Mutant(
        name="one storage serves any number of names",
        file=PTH,
        old="if total > _MOST_SHARED * size:",
        new="if total > 1000 * size:",
        tests=(f"{_PICKLES_TEST}::test_one_storage_under_many_names",),
    ),
    Mutant(
        name="an offset in elements is taken for bytes",
        file=PTH,
        old="record.start + each.offset * itemsize",
        new="record.start + each.offset",
        tests=("tests/checkpoint/weight_files/test_pth.py::test_any_state_dict_is_read_as_torch_reads_it",),
    ),
    Mutant(
        name="a storage may be of two dtypes",
        file=WALK,
        old="if self._storages.setdefault(key, found) != found:",
        new="if self._storages.setdefault(key, found).count != count:",
        tests=PICKLES,
    ),
    Mutant(
        name="a contiguous tensor keeps strides that mean nothing",
        file="llama/checkpoint/weight_files/mapped.py",
        old="            if not found.is_contiguous():\n                return found\n",
        new="            return found\n",
        tests=("tests/checkpoint/weight_files/test_pth.py::test_strides_that_mean_nothing_do_no_harm",),
    ),
    Mutant(
        name="records may share bytes",
        file=ZIP,
        old="if entry.header < end:",
        new="if entry.header < 0:",
        tests=ARCHIVES,
    ),
    Mutant(
        name="compressed records are taken as they are",
        file=ZIP,
        old="if method or size != packed:",
        new="if size != packed:",
        tests=ARCHIVES,
    ),
    Mutant(
        name="a name may be there twice",
        file=ZIP,
        old="        if text in found:\n",
        new="        if not text:\n",
        tests=ARCHIVES,
    ),
    Mutant(
        name="a directory of any size is read",
        file=ZIP,
        old=" or length > _LONGEST_DIRECTORY:",
        new=":",
        tests=(f"{_ARCHIVES_TEST}::test_a_directory_of_gigabytes_is_not_read",),
    ),
    Mutant(
        name="zip64 numbers are taken from the wrong place",
        file=ZIP,
        old='number, wide = int.from_bytes(wide[:8], "little"), wide[8:]',
        new='number = int.from_bytes(wide[:8], "little")',
        tests=("tests/checkpoint/weight_files/test_pth.py::test_records_behind_4_gib",),
    ),
    Mutant(
        name="a CRC begins anew with each chunk",
        file=ZIP,
        old="zlib.crc32(part, self._crcs[self._next])",
        new="zlib.crc32(part)",
        tests=(f"{_CHECKSUMS}::test_crcs_are_the_same_however_a_file_is_read",),
    ),
    Mutant(
        name="verify believes the CRCs",
        file="llama/checkpoint/verify.py",
        old="elif wrong := [shown(record) for record in crcs.wrong()]:",
        new="elif wrong := [shown(record) for record in crcs.wrong()][:0]:",
        tests=(f"{_CHECKSUMS}::test_without_a_checklist_the_crcs_in_a_pth_are_checked",),
    ),
    Mutant(
        name="memory that no file holds is given back like a mapped file's",
        file="llama/checkpoint/base.py",
        old="            if file is not None:\n                # Up to",
        new="            if True:\n                # Up to",
        tests=("tests/checkpoint/test_load.py::test_a_weight_that_no_file_holds_is_read_as_often_as_wanted",),
    ),
    Mutant(
        name="a cut file is not noticed before a window",
        file="llama/checkpoint/base.py",
        old="                file.check()\n            yield first, window\n",
        new="                pass\n            yield first, window\n",
        tests=(f"{_TRUNCATED}::test_a_file_that_is_cut_under_way_is_an_error_too",),
    ),
    Mutant(
        name="a cut file is not noticed behind the last window",
        file="llama/checkpoint/base.py",
        old="        if file is not None:\n            file.check()\n",
        new="",
        tests=(f"{_TRUNCATED}::test_a_file_that_is_cut_under_way_is_an_error_too",),
    ),
    Mutant(
        name="a cut file is not noticed when shards are compared",
        file="llama/checkpoint/layouts/meta.py",
        old="            file.check()\n",
        new="            pass\n",
        tests=(f"{_CHECKSUMS}::test_a_file_that_is_cut_while_it_is_verified_fails_its_row",),
    ),
]
