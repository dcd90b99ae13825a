"""Mutants of `convert` and of the checkpoints it reads."""

from __future__ import annotations

from mutant import Mutant

_REPLACING = "tests/checkpoint/convert/test_replacing.py"
_MOMENTS = "tests/checkpoint/convert/test_every_moment.py"
_LINKS = "tests/checkpoint/convert/test_links.py"

_BUILD = "tests/api/test_build_errors.py"

MUTANTS = [
    Mutant(
        name="a disk that fails under Llama.build is no named error",
        file="llama/checkpoint/opening.py",
        old="    except OSError as error:  # the disk",
        new="    except EOFError as error:  # the disk",
        tests=(f"{_BUILD}::test_a_folder_that_fails_under_the_reader_is_a_named_error",),
    ),
    Mutant(
        name="--force removes any consolidated file",
        file="llama/checkpoint/convert/file_names.py",
        old="        return name == shard_name(numbers[0])",
        new='        return name.startswith("consolidated")',
        tests=(f"{_REPLACING}::test_a_name_that_no_conversion_writes_keeps_a_folder",),
    ),
    Mutant(
        name="--force takes a link for a file",
        file="llama/checkpoint/convert/output_folder.py",
        old="entry.is_file(follow_symlinks=False)",
        new="entry.is_file()",
        tests=(f"{_REPLACING}::test_what_is_no_file_keeps_a_folder",),
    ),
    Mutant(
        name="what came into the old folder in the last moment is removed",
        file="llama/checkpoint/convert/output_folder.py",
        old="        names = [entry.name for entry in entries if _is_own(entry)]",
        new="        names = [entry.name for entry in entries]",
        tests=(f"{_REPLACING}::test_a_file_that_comes_in_the_last_moment_is_kept_and_told",),
    ),
    Mutant(
        name="the writer's names are not held to the list",
        file="llama/checkpoint/convert/output_folder.py",
        old='        assert not _strange(self.folder), "file_names.py',
        new='        assert self.folder, "file_names.py',
        tests=(f"{_REPLACING}::test_a_writer_whose_name_is_not_in_the_list_publishes_nothing",),
    ),
    Mutant(
        name="Ctrl-C between the renames loses sight of the old folder",
        file="llama/checkpoint/convert/atomic_rename.py",
        old="            signal.signal(each, later)",
        new="            pass",
        tests=(f"{_MOMENTS}::test_a_signal_while_names_change_waits_until_they_have_and_says_so",),
    ),
    Mutant(
        name="a signal that waited is forgotten",
        file="llama/checkpoint/convert/atomic_rename.py",
        old="        for number in dict.fromkeys(came):",
        new="        for number in dict.fromkeys(came[:0]):",
        tests=(f"{_MOMENTS}::test_signals_come_when_it_is_over_and_handlers_are_put_back",),
    ),
    Mutant(
        name="the old folder is removed unlocked",
        file="llama/checkpoint/convert/output_folder.py",
        old="            old = self._locked(self.final)",
        new="            old = os.open(self.final / _LOCK, os.O_RDWR | os.O_CREAT)",
        tests=(f"{_MOMENTS}::test_a_second_run_is_refused_at_every_moment",),
    ),
    Mutant(
        name="the lock of the old folder goes before its files",
        file="llama/checkpoint/convert/output_folder.py",
        old="sorted(names, key=lambda each: each == _LOCK)",
        new="sorted(names, key=lambda each: each != _LOCK)",
        tests=(f"{_MOMENTS}::test_a_second_run_is_refused_at_every_moment",),
    ),
    Mutant(
        name="an interruption does not say what there is now",
        file="llama/checkpoint/convert/output_folder.py",
        old="        if error is not None and not isinstance(error, Exception):",
        new="        if error is not None and isinstance(error, Exception):",
        tests=(f"{_MOMENTS}::test_a_signal_before_it_is_published_leaves_the_old_folder",),
    ),
    Mutant(
        name="the old one that was put aside is overwritten",
        file="llama/checkpoint/convert/output_folder.py",
        old="        if os.path.lexists(self.final) or self._old.is_symlink()",
        new="        if os.path.lexists(self.final):\n            return\n        if self._old.is_symlink()",
        tests=(f"{_MOMENTS}::test_what_was_put_aside_is_kept_where_something_has_its_name",),
    ),
    Mutant(
        name="the lock is opened through a link",
        file="llama/checkpoint/convert/output_folder.py",
        old=' | getattr(os, "O_NOFOLLOW", 0)',
        new="",
        tests=(f"{_LINKS}::test_a_lock_is_not_opened_through_a_link",),
    ),
    Mutant(
        name="files are written through links",
        file="llama/checkpoint/weight_files/output_file.py",
        old='path.open("xb")',
        new='path.open("wb")',
        tests=(f"{_LINKS}::test_nothing_is_written_through_a_link",),
    ),
    Mutant(
        name="a link out of the source is followed into the copy",
        file="llama/checkpoint/convert/companion_files.py",
        old="real.is_relative_to(root) for root",
        new="real.is_absolute() for root",
        tests=(f"{_LINKS}::test_a_link_out_of_the_source_is_not_followed_into_the_copy",),
    ),
    Mutant(
        name="blobs that are a link are followed",
        file="llama/checkpoint/convert/companion_files.py",
        old='*(cache / "blobs" for',
        new='*(Path(os.path.realpath(cache / "blobs")) for',
        tests=(f"{_LINKS}::test_a_folder_that_looks_like_the_hubs_cache_leads_nowhere_else",),
    ),
    Mutant(
        name="any text goes along as JSON",
        file="llama/checkpoint/convert/companion_files.py",
        old="            strict_object(content)",
        new="            content.decode()",
        tests=(f"{_LINKS}::test_what_is_not_what_its_name_says_does_not_go_along",),
    ),
    Mutant(
        name="convert publishes what no reader opens",
        file="llama/checkpoint/convert/conversion.py",
        old="        _check_opens(source, layout, dtype, unfinished.folder, unfinished.final)\n",
        new="",
        tests=(f"{_REPLACING}::test_what_a_reader_refuses_is_not_published",),
    ),
    Mutant(
        name="convert publishes another dtype than asked for",
        file="llama/checkpoint/convert/conversion.py",
        old="    found = _identity(written, written.layout, written.dtype)",
        new="    found = _identity(written, written.layout, dtype)",
        tests=(f"{_REPLACING}::test_params_and_dtype_of_what_was_written_are_those_asked_for",),
    ),
]
