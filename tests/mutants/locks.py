"""What `make` installs."""

from __future__ import annotations

from mutant import Mutant

_TESTS = "tests/project/test_locks.py::"

MUTANTS = [
    Mutant(
        name="make installs what no hash vouches for",
        file="Makefile",
        old=" --require-hashes",
        new="",
        tests=(_TESTS + "test_make_installs_by_hash_all_but_torch_and_the_package_itself",),
    ),
    Mutant(
        name="a lock file is not what constraints.txt says",
        file="requirements.lock",
        old="fire==0.7.1 ",
        new="fire==0.7.0 ",
        tests=(_TESTS + "test_the_lock_files_hold_what_constraints_txt_says",),
    ),
    Mutant(
        name="a package that another needs is not in the lock file",
        file="requirements.lock",
        old="mpmath==1.3.0 ",
        new="npmath==1.3.0 ",
        tests=(_TESTS + "test_nothing_that_an_installed_package_needs_is_left_out_of_the_lock_files",),
    ),
]
