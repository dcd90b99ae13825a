"""Mutants of what callers see: seeds, arguments, prompts, samples, sampling off the CPU."""

from __future__ import annotations

from mutant import Mutant

__all__ = ["MUTANTS"]

_HOST = "tests/api/test_host_untouched.py"
_API = "tests/api"
_PROMPTS = "tests/test_prompts.py"

MUTANTS = [
    Mutant(
        name="an unseeded call takes the system's entropy",
        file="llama/api/seeds.py",
        old="else self._draw() if samples",
        new="else self._draw() + __import__('secrets').randbits(63) if samples",
        tests=(f"{_HOST}::test_without_a_seed_a_call_draws_once_from_torch_and_repeats_with_it",),
    ),
    Mutant(
        name="a greedy call draws a seed",
        file="llama/api/options.py",
        old="return not self.sampling.greedy and self.max_gen_len != 0",
        new="return self.max_gen_len != 0",
        tests=(f"{_HOST}::test_where_nothing_is_sampled_nothing_is_drawn",),
    ),
    Mutant(
        name="each replica keeps the seed that it drew",
        file="llama/api/seeds.py",
        old="return self._agree(int(drawn))",
        new="return int(drawn)",
        tests=("tests/distributed/test_ranks.py::test_replicas_give_all_results_in_order_on_every_rank",),
    ),
    Mutant(
        name="the middle of an empty prefix keeps the dummy space",
        file="llama/prompts.py",
        old="alone = suffix_first and not before",
        new="alone = False",
        tests=(f"{_PROMPTS}::test_a_middle_as_in_training_comes_back",),
    ),
    Mutant(
        name="the middle of an empty prefix loses a space in the PSM order too",
        file="llama/prompts.py",
        old="alone = suffix_first and not before",
        new="alone = not before",
        tests=(f"{_PROMPTS}::test_a_middle_as_in_training_comes_back",),
    ),
    Mutant(
        name="the empty prompt's first space stays",
        file="llama/prompts.py",
        old='start_of_text=text == ""',
        new="start_of_text=False",
        tests=(f"{_API}/test_results.py::test_a_leading_space_is_part_of_a_continuation_and_of_no_answer",),
    ),
    Mutant(
        name="infilling written by hand runs past EOT",
        file="llama/prompts.py",
        old="for token in (tokenizer.eot_id, tokenizer.step_id) if token",
        new="for token in (tokenizer.step_id,) if token",
        tests=(f"{_API}/test_results.py::test_which_control_ids_end_what",),
    ),
    Mutant(
        name="in PyTorch all ties at the border of top-k are kept",
        file="llama/kernels/sampling.py",
        old="keep_RW = (rank_W < top_k_R1) & (before",
        new="keep_RW = (before",
        tests=("tests/kernels/test_sampling.py::test_of_equals_the_lower_ids_are_kept",),
    ),
    Mutant(
        name="an error forgets the refused dialogs before its row",
        file="llama/generation.py",
        old="self.session.run(list(allowed.values()), call, list(allowed), len(prompts))",
        new="self.session.run(list(allowed.values()), call, range(len(allowed)), len(prompts))",
        tests=(
            f"{_API}/test_infilling_and_chat.py::test_an_error_names_the_place_of_a_dialog_behind_refused_ones",
        ),
    ),
    Mutant(
        name="who begins a second time brings its followers a second time",
        file="llama/engine/scheduler.py",
        old="            sequence.rest = 0  # a preempted sequence begins again, but brings nobody along\n",
        new="            pass\n",
        tests=(
            "tests/engine/test_scheduler.py::test_a_preempted_sequence_begins_again_and_brings_no_sample_twice",
        ),
    ),
    Mutant(
        name="samples that follow are numbered from 0 again",
        file="llama/engine/scheduler.py",
        old="self._wave(sequence.request_id, sequence.request, sequence.request.n - sequence.rest)",
        new="self._wave(sequence.request_id, sequence.request, 0)",
        tests=(
            "tests/engine/test_scheduler.py::test_samples_that_do_not_run_together_follow_one_another_before_the_next_request",
        ),
    ),
    Mutant(
        name="more samples than the batch holds wait for ever",
        file="llama/engine/scheduler.py",
        old="return min(request.n, self.limits.max_batch_size, fitting)",
        new="return min(request.n, fitting)",
        tests=(
            "tests/engine/test_scheduler.py::test_samples_that_do_not_run_together_follow_one_another_before_the_next_request",
        ),
    ),
    Mutant(
        name="replicas that share a prompt's samples all make the first ones",
        file="llama/engine/scheduler.py",
        old="first_sample=request.first_sample + first)",
        new="first_sample=request.first_sample)",
        tests=("tests/engine/test_engine.py::test_samples_go_on_where_an_earlier_request_stopped",),
    ),
    Mutant(
        name="only Python's own integers are integers",
        file="llama/values.py",
        old="        return operator.index(value)  # type: ignore[arg-type]",
        new="        return None",
        tests=(f"{_API}/test_argument_types.py::test_numbers_of_any_type_are_taken",),
    ),
    Mutant(
        name="a number too large for a float is a traceback",
        file="llama/values.py",
        old="    except OverflowError:\n",
        new="    except ZeroDivisionError:\n",
        tests=(f"{_API}/test_bad_input.py::test_bad_options_are_named",),
    ),
    Mutant(
        name="a set of prompts is taken",
        file="llama/values.py",
        old="(*_TEXT, set, frozenset, Mapping)",
        new="(*_TEXT, Mapping)",
        tests=(f"{_API}/test_bad_input.py::test_bad_input_is_named",),
    ),
    Mutant(
        name="top_p 0 is drawn, not greedy",
        file="llama/sampling.py",
        old="return self.temperature == 0 or self.top_p == 0",
        new="return self.temperature == 0",
        tests=("tests/kernels/test_sampling.py::test_temperature_zero_is_the_argmax_and_ignores_all_else",),
    ),
]
