"""Mutations of the engine, of the way calls take through it, and of how its ranks meet."""

from __future__ import annotations

from mutant import Mutant

_INTERRUPTS = ("tests/engine/test_interrupts.py",)
_LOOP = "tests/api/test_session.py"
_ENGINE = "tests/engine/test_engine.py"
_REUSE = "tests/engine/test_prefix_reuse.py"
_LIMITS = "tests/engine/test_request_limits.py"
_GHOST = ("tests/engine/test_ghost_pool.py",)
_HANDSHAKE = "tests/serving/test_handshake.py"

MUTANTS = [
    Mutant(
        name="after a failed step a copy that was not made is missing",
        file="llama/engine/scheduler.py",
        old="place * self.blocks.size)\n            self.preempt(sequence)\n",
        new="place * self.blocks.size)\n",
        tests=(
            "tests/engine/test_failures.py::test_memory_that_runs_out_in_a_step_leaves_the_engine_whole",
            *_GHOST,
        ),
    ),
    Mutant(
        name="a failed step names requests that it did not run",
        file="llama/engine/engine.py",
        old="        self._planned = [scheduled.sequence for scheduled in batch]\n",
        new="        self._planned = list(self.scheduler.running)\n",
        tests=(
            "tests/engine/test_failures.py::test_a_failed_step_names_the_requests_that_it_ran_and_no_other",
        ),
    ),
    Mutant(
        name="one that lost its place in the plan is run all the same",
        file="llama/engine/scheduler.py",
        old="elif left and sequence.is_running and self._grow",
        new="elif left and self._grow",
        tests=("tests/engine/test_preemption.py",),
    ),
    Mutant(
        name="a block whose copy was not made is kept for others",
        file="llama/engine/scheduler.py",
        old="            sequence.computed = min(sequence.computed, place * self.blocks.size)\n",
        new="",
        tests=_GHOST,
    ),
    Mutant(
        name="the beginning of a block is reused, but not copied",
        file="llama/engine/scheduler.py",
        old="                batch.copies.append(copy)\n",
        new="                pass\n",
        tests=_GHOST,
    ),
    Mutant(
        name="a last block that several hold is kept as one's own",
        file="llama/engine/cache_manager.py",
        old=" and self._is_own(sequence, known // self.blocks.size)",
        new="",
        tests=_GHOST,
    ),
    Mutant(
        name="a block that others hold is written",
        file="llama/engine/cache_manager.py",
        old="self.blocks.holders(sequence.table[place]) > 1",
        new="self.blocks.holders(sequence.table[place]) > 99",
        tests=_GHOST,
    ),
    Mutant(
        name="a block that others hold is replaced and not copied",
        file="llama/engine/scheduler.py",
        old="            copies.append(copy)\n",
        new="            pass\n",
        tests=_GHOST,
    ),
    Mutant(
        name="two blocks stand for the same tokens",
        file="llama/engine/prefix_cache.py",
        old="                others.append((i, node.block))\n",
        new="                pass\n",
        tests=_GHOST,
    ),
    Mutant(
        name="what was drafted in vain counts as computed",
        file="llama/engine/output.py",
        old="        sequence.computed -= len(draft) - accepted\n",
        new="        pass\n",
        tests=_GHOST,
    ),
    Mutant(
        name="a model that was cast goes on in the pool of its old dtype",
        file="llama/model.py",
        old="return pool.form == cache_format(self.cache_dtype, weight.dtype) and pool.device == weight.device",
        new="return pool.device == self.device",
        tests=(
            "tests/test_model.py::test_forward_forgets_when_the_model_is_cast",
            "tests/engine/test_shared_blocks.py::test_a_model_that_is_cast_gets_a_pool_of_its_dtype_and_computes_again",
        ),
    ),
    Mutant(
        name="memory of what is held again goes back to the system",
        file="llama/engine/block_pool.py",
        old="            self._idle.difference_update(blocks)\n",
        new="            pass\n",
        tests=("tests/engine/test_block_pool.py", *_GHOST),
    ),
    Mutant(
        name="a new sequence begins where another one grows",
        file="llama/engine/block_pool.py",
        old="            if start != behind + 1 and start - 1 in self._growing:\n",
        new="            if False:\n",
        tests=("tests/engine/test_block_pool.py",),
    ),
    Mutant(
        name="a prefix that others hold counts again for each who begins with it",
        file="llama/engine/cache_manager.py",
        old="        return need - held - coming <= room\n",
        new="        return need <= room\n",
        tests=(
            "tests/engine/test_scheduler.py::test_a_prefix_is_counted_once_whether_it_is_there_or_about_to_be",
        ),
    ),
    Mutant(
        name="after an interrupt a paused request runs on",
        file="llama/engine/sequence.py",
        old="        self.leader, self.shared, self.stale = None, 0, False\n",
        new="        self.leader, self.shared, self.stale, self.is_paused = None, 0, False, False\n",
        tests=("tests/engine/test_interrupts.py::test_a_paused_request_stays_paused_when_all_is_made_again",),
    ),
    Mutant(
        name="after an interrupt a wave that was not forked stands for one sample",
        file="llama/engine/scheduler.py",
        old="sequence.slots, sequence.rest = following.sample - sequence.sample, 0",
        new="sequence.slots, sequence.rest = 1, 0",
        tests=(
            "tests/engine/test_scheduler.py::test_sequences_stand_for_all_samples_of_a_request_whichever_have_begun",
        ),
    ),
    Mutant(
        name="a list without end is walked",
        file="llama/values.py",
        old="list(itertools.islice(values, _MAX_ENTRIES + 1))",
        new="list(itertools.islice(values, 10**6))",
        tests=("tests/engine/test_request_limits.py::test_a_list_without_end_is_not_walked",),
    ),
    Mutant(
        name="an interrupt in a plan is forgotten",
        file="llama/engine/engine.py",
        old="        self._torn = True\n        reuse = ",
        new="        reuse = ",
        tests=_INTERRUPTS,
    ),
    Mutant(
        name="a step counts before its tokens are cut to what was entered",
        file="llama/engine/sequence.py",
        old="            del self.tokens[last.tokens :]\n",
        new="",
        tests=_INTERRUPTS,
    ),
    Mutant(
        name="after an interrupt a reader is not told of what it has not read",
        file="llama/engine/request_state.py",
        old="        self.notify()\n        left = self.request.n\n",
        new="        left = self.request.n\n",
        tests=("tests/engine/test_interrupts.py::test_what_was_entered_just_before_an_interrupt_is_read",),
    ),
    Mutant(
        name="an interrupt leaves the lock taken",
        file="llama/engine/fair_lock.py",
        old="            if had:\n                self._lock.release()\n            raise\n",
        new="            raise\n",
        tests=("tests/engine/test_interrupts.py::test_an_interrupt_leaves_no_lock_taken",),
    ),
    Mutant(
        name="a request whose reader is gone runs on",
        file="llama/engine/engine.py",
        old="        self._settle()\n        self.tidy()\n",
        new="        self._settle()\n",
        tests=(f"{_ENGINE}::test_a_request_that_nobody_reads_any_more_is_cancelled_at_the_next_step",),
    ),
    Mutant(
        name="logits that are not finite end whoever stepped",
        file="llama/engine/rows.py",
        old="            error.request_id = row.sequence.request_id\n",
        new="",
        tests=(f"{_LOOP}::test_logits_that_are_not_finite_end_the_call_that_they_belong_to",),
    ),
    Mutant(
        name="what a broken request computed is used again",
        file="llama/engine/request_state.py",
        old="                sequence.stale = True  # nobody may reuse what it computed\n",
        new="",
        tests=(
            "tests/engine/test_failures.py::test_logits_that_are_not_finite_are_named_and_the_engine_lives_on",
        ),
    ),
    Mutant(
        name="strangers are heard one after the other",
        file="llama/serving/handshake.py",
        old="        connection.setblocking(False)\n        if len(self.callers)",
        new="        connection.settimeout(5.0)\n"
        "        connection.recv(36, socket.MSG_PEEK | socket.MSG_WAITALL)\n"
        "        if len(self.callers)",
        tests=(f"{_HANDSHAKE}::test_strangers_keep_no_rank_waiting",),
    ),
    Mutant(
        name="a rank proves itself to whoever answers",
        file="llama/serving/handshake.py",
        old="    if not hmac.compare_digest(answer[_NONCE:], leader):\n        return False\n",
        new="",
        tests=(f"{_HANDSHAKE}::test_a_rank_tells_a_stranger_nothing",),
    ),
    Mutant(
        name="a stranger's wrong proof is taken",
        file="llama/serving/handshake.py",
        old="            if not hmac.compare_digest(self.received, self.proof):\n"
        '                raise ConnectionError("does not know the secret")\n',
        new="",
        tests=(f"{_HANDSHAKE}::test_strangers_keep_no_rank_waiting",),
    ),
    Mutant(
        name="stop strings are as long as anybody likes",
        file="llama/engine/request.py",
        old="    if characters > _MOST_STOP_CHARACTERS:\n",
        new="    if False:\n",
        tests=(f"{_LIMITS}::test_stop_strings_have_a_limit",),
    ),
    Mutant(
        name="each sample makes its own index of the prompt",
        file="llama/engine/speculation.py",
        old="return Drafter(tokens, self._prompt, self._predicted, self._given)",
        new="return Drafter(tokens, self._prompt, self._predicted)",
        tests=(f"{_LIMITS}::test_the_samples_of_a_request_share_what_they_look_up",),
    ),
    Mutant(
        name="a text is encoded before its length is looked at",
        file="llama/api/arguments.py",
        old="    if least > max_seq_len:\n",
        new="    if False:\n",
        tests=(f"{_LIMITS}::test_a_text_that_can_never_fit_is_not_encoded",),
    ),
    Mutant(
        name="the turn goes to whoever just had it",
        file="llama/engine/fair_lock.py",
        old="            with self._queue:\n                had",
        new="            if True:\n                had",
        tests=(f"{_LOOP}::test_the_turn_goes_to_whoever_waits_and_not_to_whoever_had_it",),
    ),
    Mutant(
        name="a paused stream goes on when all of it is read",
        file="llama/serving/async_engine.py",
        old="stream.unread <= self._unread // 2",
        new="stream.unread <= 0",
        tests=(
            "tests/serving/test_callers.py::test_a_stream_pauses_when_so_many_wait_and_goes_on_when_half_are_read",
        ),
    ),
    Mutant(
        name="what was just used is evicted first",
        file="llama/engine/prefix_cache.py",
        old="        node = next(iter(self._unheld))\n",
        new="        node = next(each for each in reversed(self._unheld) if not each.children)\n",
        tests=(f"{_REUSE}::test_what_was_not_used_for_the_longest_time_is_evicted_first",),
    ),
    Mutant(
        name="a prefix goes before what continues it",
        file="llama/engine/cache_manager.py",
        old="self.blocks.release(reversed(table))",
        new="self.blocks.release(table)",
        tests=(f"{_REUSE}::test_what_was_not_used_for_the_longest_time_is_evicted_first", *_GHOST),
    ),
    Mutant(
        name="a prefix that another one computes is computed too",
        file="llama/engine/prefix_cache.py",
        old="if each.key < sequence.key and not each.is_paused:",
        new="if False:",
        tests=(f"{_REUSE}::test_a_prefix_that_several_begin_with_is_computed_once",),
    ),
    Mutant(
        name="a pinned buffer is written again while its copy is under way",
        file="llama/engine/transfers.py",
        old="            copied.synchronize()\n",
        new="            pass\n",
        tests=("tests/gpu/test_transfers.py",),
    ),
    Mutant(
        name="rows are chosen on CUDA by a list of the host",
        file="llama/engine/runner.py",
        old="logits_NV = model.logits(hidden_TC[rows_N])",
        new="logits_NV = model.logits(hidden_TC[rows_N.tolist()])",
        tests=("tests/gpu/test_steps_on_gpu.py",),
    ),
    Mutant(
        name="what is drawn on CUDA may be an id that does not exist",
        file="llama/kernels/draws.py",
        old="torch.minimum((uniform_R1 * total_R1).long(), total_R1 - 1)",
        new="(uniform_R1 * total_R1).long()",
        tests=("tests/gpu/test_steps_on_gpu.py::test_rows_that_are_not_finite_give_some_id",),
    ),
]
