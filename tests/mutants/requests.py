"""Mutants of deltas, gauges and the drain, and of what a caller asks of the sampler."""

from __future__ import annotations

from mutant import Mutant

__all__ = ["MUTANTS"]

_DELTAS = "tests/engine/test_deltas.py"
_GAUGES = "tests/serving/test_gauges.py"
_LEAST = "tests/engine/test_min_new_tokens.py"

MUTANTS = [
    Mutant(
        name="an id comes before its text",
        file="llama/engine/output.py",
        old="settled = len(sequence.request.prompt) + sequence.detokenizer.kept_tokens",
        new="settled = kept",
        tests=(f"{_DELTAS}::test_the_ids_of_a_character_come_with_the_last_of_them",),
    ),
    Mutant(
        name="a delta without text is no delta",
        file="llama/serving/streams.py",
        old="if not (delta.text or delta.tokens or reason or delta.prompt_scores):",
        new="if not (delta.text or reason or delta.prompt_scores):",
        tests=("tests/serving/test_async_engine.py::test_an_id_without_text_is_delivered_at_once",),
    ),
    Mutant(
        name="requests on their way are not counted as waiting",
        file="llama/serving/async_engine.py",
        old="return snapshot.waiting + self._asked - taken",
        new="return snapshot.waiting",
        tests=(f"{_GAUGES}::test_waiting_counts_a_request_from_its_first_await_until_it_begins",),
    ),
    Mutant(
        name="the snapshot is made after the results have left",
        file="llama/serving/async_engine.py",
        old="        self._look()  # before the results: who has the last of them finds its request finished\n",
        new="",
        tests=(f"{_GAUGES}::test_who_has_the_last_delta_finds_its_request_finished",),
    ),
    Mutant(
        name="a prompt counts with every step of its output",
        file="llama/engine/engine.py",
        old="            elif not sequence.journal:\n",
        new="            else:\n",
        tests=("tests/engine/test_snapshot.py::test_counters_add_up_to_what_the_requests_got",),
    ),
    Mutant(
        name="a drain ends the streams at once",
        file="llama/serving/lifecycle.py",
        old="                await _drain(async_engine, task, terminated, drain)\n",
        new="                pass\n",
        tests=("tests/serving/test_serve.py::test_a_drain_ends_the_streams_that_take_too_long",),
    ),
    Mutant(
        name="a drain that has begun stays as long without a launcher",
        file="llama/serving/lifecycle.py",
        old="            end = min(end, loop.time() + drain_left(seconds))\n",
        new="",
        tests=(
            "tests/serving/test_serve.py::test_a_launcher_that_is_killed_during_a_drain_leaves_it_little_time",
        ),
    ),
    Mutant(
        name="the other ranks do not wait for a drain",
        file="llama/serving/follower.py",
        old="seconds = timeouts.LEADER_AFTER_SIGTERM + drain",
        new="seconds = timeouts.LEADER_AFTER_SIGTERM",
        tests=(
            "tests/serving/test_service.py::test_a_drain_lets_streams_run_to_their_end_and_takes_no_more",
        ),
    ),
    Mutant(
        name="a drafted position has the history of the first",
        file="llama/engine/rows.py",
        old="output = [*sequence.output, *each.drafted]",
        new="output = sequence.output",
        tests=("tests/engine/test_speculation.py::test_the_penalty_sees_what_was_drafted_before_a_token",),
    ),
    Mutant(
        name="presence and frequency see the prompt",
        file="llama/engine/rows.py",
        old="changes(request.sampling, request.prompt, output, banned, vocab)",
        new="changes(request.sampling, (), [*request.prompt, *output], banned, vocab)",
        tests=("tests/engine/test_scores.py::test_presence_and_frequency_see_the_output_alone",),
    ),
    Mutant(
        name="a draft may hold a stop id before min_new_tokens",
        file="llama/engine/rows.py",
        old="return self.sequence.generated + len(self.drafted) < self.sequence.request.min_new_tokens",
        new="return self.sequence.generated < self.sequence.request.min_new_tokens",
        tests=(f"{_LEAST}::test_drafts_change_nothing_also_where_they_hold_a_stop_id",),
    ),
    Mutant(
        name="stop strings are found in the first tokens",
        file="llama/detokenizer.py",
        old="if self._matcher is None or self._pushed <= self._stop_after:",
        new="if self._matcher is None:",
        tests=(f"{_LEAST}::test_stop_strings_are_found_in_the_text_behind_the_first_tokens",),
    ),
    Mutant(
        name="ignore_eos ignores the stop token of the caller",
        file="llama/generation.py",
        old="call.stop_ids = (*call.stop_ids, *own)",
        new="call.stop_ids = call.stop_ids",
        tests=("tests/api/test_least_tokens.py::test_with_ignore_eos_only_the_callers_own_stop_ids_end",),
    ),
]
