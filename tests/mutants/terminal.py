"""Mutants of the programs at a terminal: what they keep, write, resume, and how Ctrl-C reaches them."""

from __future__ import annotations

from mutant import Mutant

_CHAT = "tests/terminal/test_chat_program.py"
_FILES = "tests/terminal/test_text_files.py"
_BATCH = "tests/terminal/test_batch.py"
_BATCH_FILES = "tests/terminal/test_batch_files.py"
_ANSWERS = "tests/terminal/test_answers.py"
_READERS = "tests/terminal/test_readers.py"

MUTANTS = [
    Mutant(
        name="a stopped answer is forgotten",
        file="llama/terminal/chat.py",
        old="        if said:\n            self._keep(",
        new="        if said and end is not None:\n            self._keep(",
        tests=(f"{_CHAT}::test_ctrl_c_stops_the_answer_and_what_was_said_stays",),
    ),
    Mutant(
        name="a turn with a tag makes every later question fail",
        file="llama/terminal/chat.py",
        old="                if tag in answer:",
        new="                if tag == answer:",
        tests=(f"{_CHAT}::test_a_turn_whose_answer_holds_a_tag_is_not_kept",),
    ),
    Mutant(
        name="a full context loses one turn at every turn",
        file="llama/terminal/chat.py",
        old="self._has_room(text, 2 * least)",
        new="self._has_room(text, least)",
        tests=(f"{_CHAT}::test_the_oldest_turns_leave_a_full_context_and_it_says_so",),
    ),
    Mutant(
        name="Ctrl-C goes to torchrun",
        file="llama/terminal/line_editor.py",
        old="with self._input.raw_mode(), self._input.attach(keys):",
        new="with self._input.attach(keys):",
        tests=("tests/terminal/test_terminals.py::test_ctrl_c_under_torchrun_stops_the_answer_and_no_rank",),
    ),
    Mutant(
        name="keys pressed during an answer are lost",
        file="llama/terminal/line_editor.py",
        old="            store_typeahead(self._input, [each for each in pressed if each.key != Keys.ControlC])\n",
        new="",
        tests=(f"{_READERS}::test_while_an_answer_runs_ctrl_c_stops_and_other_keys_wait",),
    ),
    Mutant(
        name="an answer may control the terminal",
        file="llama/terminal/answers.py",
        old="            text = harmless(text[",
        new="            text = (text[",
        tests=(f"{_ANSWERS}::test_what_a_terminal_shows",),
    ),
    Mutant(
        name="a pipe gets escaped text",
        file="llama/terminal/answers.py",
        old="        if self.on_terminal or buffer is None:",
        new="        if True:",
        tests=(f"{_ANSWERS}::test_a_pipe_gets_the_texts_own_bytes",),
    ),
    Mutant(
        name="somebody's change of the file is overwritten",
        file="llama/terminal/files.py",
        old="        if expected is not None:",
        new="        if expected is None:",
        tests=(f"{_FILES}::test_a_file_that_changed_meanwhile_is_left_as_it_is",),
    ),
    Mutant(
        name="a file has its new name before it is on disk",
        file="llama/terminal/files.py",
        old="            os.fsync(file.fileno())\n",
        new="",
        tests=(f"{_FILES}::test_the_new_file_is_on_disk_before_it_has_the_name",),
    ),
    Mutant(
        name="a torn answer counts as done",
        file="llama/terminal/batch_files.py",
        old='                if not line.endswith(b"\\n"):\n                    break\n',
        new="",
        tests=(f"{_BATCH_FILES}::test_a_run_goes_on_from_every_byte_at_which_one_can_stop",),
    ),
    Mutant(
        name="answers to other requests are gone on with",
        file="llama/terminal/batch_files.py",
        old="if request is None or _id(line) != request.id:",
        new="if request is None:",
        tests=(f"{_BATCH_FILES}::test_answers_to_other_requests_are_refused_and_stay",),
    ),
    Mutant(
        name="a batch keeps any number of answers in memory",
        file="llama/terminal/batch.py",
        old="len(pending) >= _AHEAD * in_flight",
        new="len(pending) >= 1 << 20",
        tests=(f"{_BATCH}::test_answers_run_only_so_far_ahead_of_a_slow_one",),
    ),
    Mutant(
        name="a dead rank's errors are taken for answers",
        file="llama/terminal/batch.py",
        old="                    self._check()",
        new="                    pass",
        tests=(f"{_BATCH}::test_an_engine_that_has_ended_is_no_answer",),
    ),
    Mutant(
        name="an event that comes in two pieces is cut",
        file="llama/terminal/sse.py",
        old='        *lines, rest = (rest + chunk).split(b"\\n")',
        new='        *lines, rest = chunk.split(b"\\n")',
        tests=("tests/terminal/test_sse.py::test_however_a_response_is_cut_its_events_are_the_same",),
    ),
]
