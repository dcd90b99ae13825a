"""Ranks and replicas that no longer do the same."""

from __future__ import annotations

from mutant import Mutant

_APART = "tests/distributed/test_apart.py::"
_SHARED = "tests/distributed/test_shared_memory.py::"
_CUT_OFF = "tests/distributed/test_cut_off.py::"

MUTANTS = [
    Mutant(
        name="gloo's connections wait for a machine that is gone",
        file="llama/distributed/world.py",
        old="""            with noticing_silence():
                made = dist.new_group""",
        new="""            with contextlib.nullcontext():
                made = dist.new_group""",
        tests=(_CUT_OFF + "test_both_ends_of_a_cut_cable_end_with_an_error_that_says_so",),
    ),
    Mutant(
        name="the store's connection waits for a machine that is gone",
        file="llama/distributed/world.py",
        old="""            with noticing_silence():
                self._connect(device)""",
        new="""            with contextlib.nullcontext():
                self._connect(device)""",
        tests=(_CUT_OFF + "test_both_ends_of_a_cut_cable_end_with_an_error_that_says_so",),
    ),
    Mutant(
        name="an interrupt between two steps is told to nobody",
        file="llama/api/session.py",
        old="        if not isinstance(error, LlamaError):  # an error of this package is raised on all ranks alike\n",
        new="        if isinstance(error, MemoryError):\n",
        tests=(_APART + "test_a_step_that_fails_on_one_rank_fails_on_all_with_its_reason",),
    ),
    Mutant(
        name="an error of one replica that is none of the package is not gathered",
        file="llama/api/session.py",
        old="        except BaseException as error:\n            self._report(error)\n",
        new="        except ValueError as error:\n            self._report(error)\n",
        tests=(_APART + "test_an_error_of_one_replica_reaches_all_and_the_next_call_is_right",),
    ),
    Mutant(
        name="gathers do not compare their tags",
        file="llama/api/replicas.py",
        old="other = first_difference(tags)",
        new="other = first_difference([tag[:0] for tag in tags])",
        tests=(_APART + "test_replicas_at_different_places_all_raise",),
    ),
    Mutant(
        name="shared memory compares sizes and kinds, but not steps",
        file="llama/kernels/csrc/ranks.c",
        old="own, sizeof(uint64_t) * WORDS)) return DIFFER;",
        new="own, sizeof(uint64_t))) return DIFFER;",
        tests=(_SHARED + "test_ranks_that_do_not_do_the_same_all_raise_and_name_both",),
    ),
    Mutant(
        name="the word of a collective leaves its kind out",
        file="llama/distributed/shared_memory.py",
        old="return x.numel() * x.element_size() << 8 | kind",
        new="return x.numel() * x.element_size() << 8",
        tests=(_SHARED + "test_ranks_that_do_not_do_the_same_all_raise_and_name_both",),
    ),
    Mutant(
        name="a step's hash leaves the requests out",
        file="llama/engine/step_digest.py",
        old="row = (*sequence.key, sequence.digest, start,",
        new="row = (*sequence.key, 0, start,",
        tests=(_APART + "test_ranks_with_other_requests_all_raise_and_go_on_raising",),
    ),
    Mutant(
        name="ranks over sockets do not compare their steps",
        file="llama/distributed/groups.py",
        old="        other = first_difference(keys)\n",
        new="        other = None\n",
        tests=(_APART + "test_ranks_with_other_requests_all_raise_and_go_on_raising",),
    ),
    Mutant(
        name="a step that fails on one rank is told to nobody",
        file="llama/engine/engine.py",
        old="            if not isinstance(error, NumericsError):",
        new="            if isinstance(error, NumericsError):",
        tests=(_APART + "test_a_step_that_fails_on_one_rank_fails_on_all_with_its_reason",),
    ),
    Mutant(
        name="a rank that gave up goes on with the next collective",
        file="llama/distributed/shared_memory.py",
        old="""        if self.health.failure is not None:
            raise self.health.error()
        try:
            self._number += 1""",
        new="""        try:
            self._number += 1""",
        tests=(_SHARED + "test_a_rank_that_is_interrupted_in_a_collective_leaves_it_for_good",),
    ),
    Mutant(
        name="a rank that leaves with an error of the package lets the others wait in their step",
        file="llama/distributed/world.py",
        old="            parallel.announce_leaving(error)\n",
        new="",
        tests=("tests/distributed/test_endings.py::test_an_error_of_one_rank_ends_the_other",),
    ),
    Mutant(
        name="any name that arrives is taken for a class of errors",
        file="llama/api/replicas.py",
        old="getattr(errors, name, None) if name in errors.__all__ else None",
        new="getattr(errors, name, None)",
        tests=(_APART + "test_no_name_that_arrives_is_looked_up_but_those_of_errors",),
    ),
    Mutant(
        name="ranks do not look whether their launcher lives",
        file="llama/distributed/launcher_watch.py",
        old="        if os.getppid() != parent:",
        new="        if os.getppid() == 0:",
        tests=("tests/distributed/test_endings.py::test_ranks_end_with_a_launcher_that_is_killed",),
    ),
]
