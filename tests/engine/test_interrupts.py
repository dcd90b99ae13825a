"""Ctrl-C, wherever it strikes in one call, takes nothing from another stream that is open.

Python runs signal handlers in few places: on entry to a function, after a call and at the end of a loop's
body. A trace raises KeyboardInterrupt at the k-th such place that a call passes in the engine's own code, for
every k of a stride.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import itertools
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_llama import tiny_llama, tiny_model
from tiny_tokenizers import tiny_tokenizer

import llama
from llama.engine import Engine, Feed
from llama.engine.fair_lock import FairLock
from llama.generation import Llama

ROOT = Path(llama.__file__).parent
# All that changes anything which outlives a call: the engine, what steps it, and what a sequence holds.
FILES = {str(path) for path in (ROOT / "engine").glob("*.py")}
FILES |= {str(ROOT / name) for name in ("api/session.py", "detokenizer.py")}
assert all(Path(name).is_file() for name in FILES), "a file was renamed, and would be struck no more"
# All of them: STRIDE=1, some minutes.
STRIDE = int(os.environ.get("STRIDE", "149"))
HANGS = 1000


ANYWHERE = -1


@functools.cache
def places(code):
    """Offsets at which a handler's error can come up -> the offset of the call that is left there.

    Behind a call it is an error of the call, so that what is behind it must be covered alike. ANYWHERE: on entry, and
    at the end of a loop's body.
    """
    table = dis._parse_exception_table(code)
    found, call = {}, None
    for each in dis.get_instructions(code):
        cover = next((i for i, row in enumerate(table) if row.start <= each.offset < row.end), None)
        if each.opname.startswith(("RESUME", "JUMP_BACKWARD")):
            found[each.offset] = ANYWHERE
        elif call is not None and call[1] == cover:
            found[each.offset] = call[0]
        call = (each.offset, cover) if each.opname.startswith("CALL") else None
    return found


@contextlib.contextmanager
def struck_at(number, passed):
    """KeyboardInterrupt at the place of this number, from 0; `passed` grows by each place."""

    def enter(frame, event, argument):
        code = frame.f_code
        if code.co_filename not in FILES:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        mine, last = places(code), None

        def instruction(frame, event, argument):
            nonlocal last
            if event == "opcode":
                here, before = frame.f_lasti, last
                last = here
                if here in mine and mine[here] in (ANYWHERE, before):
                    passed.append(code.co_qualname)
                    if len(passed) == number + 1:
                        raise KeyboardInterrupt
            return instruction

        return instruction

    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(None)


def small():
    """Little memory, so that sequences wait, grow, are preempted, and share prefixes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llama.generation.Engine", functools.partial(Engine, block=4))
        made = Llama(
            tiny_model(max_batch_size=4, max_seq_len=64),
            tiny_tokenizer(),
            cache_tokens=44,
            retained_tokens=24,
        )
    made.engine.scheduler.limits = replace(made.engine.scheduler.limits, reserve_tokens=0)
    return made


OPEN = {
    "prompts": ["def return self value"],
    "temperature": 0.9,
    "max_gen_len": 7,
    "seed": 3,
    "n": 2,
    "stop": ["zzz"],
}
STRUCK = {
    "prompts": ["def return self for i in range list value class def return self", "for i"],
    "temperature": 0.8,
    "max_gen_len": 3,
    "seed": 5,
    "n": 2,
    "stop": ["qqq"],
}


def texts(deltas, into=None):
    """Texts and reasons of the samples, put together from deltas that end."""
    found = {} if into is None else into
    for delta in itertools.islice(deltas, HANGS):
        text, reason = found.get(delta.sample, ("", None))
        assert reason is None, "a delta after the end"
        found[delta.sample] = (text + delta.text, delta.finish_reason)
    return found


def clean(engine):
    assert not engine.unfinished
    assert not engine._requests
    assert not engine.scheduler.running
    assert engine.scheduler.waiting == 0
    assert engine.blocks.used == engine.scheduler.prefixes.unheld
    assert not engine.scheduler.prefixes._paths
    assert engine.blocks.reserved == 0
    assert not engine.lock._lock.locked()
    assert not engine.lock._queue.locked()


def counted(thing, name):
    """A list that grows with each call of thing.name."""
    plain, calls = getattr(thing, name), []

    def call(*arguments):
        calls.append(arguments)
        return plain(*arguments)

    setattr(thing, name, call)
    return calls


def blocking(made):
    made.text_completion(**STRUCK, logprobs=1, echo=True)


def streaming(made):
    for _ in made.stream(**STRUCK):
        pass


def left_early(made):
    stream = made.stream(["class value"], temperature=0, max_gen_len=8)
    next(stream)
    stream.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "stride", "n"),
    # With 5, one sample of the open stream waits until the others, which fill the batch, have begun.
    [
        (blocking, 2 * STRIDE, 2),
        (streaming, STRIDE, 2),
        (streaming, 2 * STRIDE, 5),
        (left_early, STRIDE // 4, 2),
    ],
)
def test_an_interrupt_anywhere_in_one_call_takes_nothing_from_another(call, stride, n):
    made, mine = small(), {**OPEN, "n": n}
    expected = texts(made.stream(**mine))
    assert all(reason is not None for _, reason in expected.values())
    settled = counted(made.engine.scheduler, "clear")
    for number in itertools.count(0, stride):
        stream, found, passed = made.stream(**mine), {}, []
        texts(itertools.islice(stream, 8), found)
        try:
            with struck_at(number, passed):
                call(made)
        except KeyboardInterrupt:
            pass
        place = f"struck at {number}, {passed[-1]}"
        assert texts(stream, found) == expected, place
        clean(made.engine)
        if len(passed) <= number:
            break
    # The law says little if no change was ever struck in the middle, or no sequence was ever preempted.
    assert len(settled) > 5
    assert made.engine.scheduler.preemptions > 0 or call is left_early or n > 2


def test_what_was_entered_just_before_an_interrupt_is_read(monkeypatch):
    """It strikes behind the last text of a stream that another call steps, before anybody was told of it."""
    made = tiny_llama()
    options = {"temperature": 0, "max_gen_len": 2, "stop_ids": []}
    expected = texts(made.stream(["def return"], **options))
    stream, found = made.stream(["def return"], **options), {}
    texts(itertools.islice(stream, 1), found)

    def struck(sequence):
        assert sequence.finish_reason is not None
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(made.engine.scheduler, "retire", struck)
        with pytest.raises(KeyboardInterrupt):
            made.text_completion(["class"], temperature=0, max_gen_len=30)
    steps = counted(made.engine.scheduler, "plan")

    def plan():
        assert len(steps) < HANGS, "the stream never ends"
        return counting()

    counting = made.engine.scheduler.plan
    made.engine.scheduler.plan = plan
    assert texts(stream, found) == expected
    clean(made.engine)


def test_an_interrupt_leaves_no_lock_taken():
    for number in itertools.count():
        lock, passed, done = FairLock(), [], []
        with contextlib.suppress(KeyboardInterrupt), struck_at(number, passed):
            with lock:
                done.append(1)
            lock.if_free(done.clear)
        assert not lock._lock.locked(), passed
        assert not lock._queue.locked(), passed
        if len(passed) <= number:
            break
    assert number > 5


def test_a_paused_request_stays_paused_when_all_is_made_again():
    made = small()
    engine, feed = made.engine, Feed()
    (request,) = made.requests(**{**OPEN, "n": 1, "stop": []})
    expected = texts(made.stream(**{**OPEN, "n": 1, "stop": []}))[0][0]
    paused = engine.add(request, feed)
    engine.advance()
    engine.pause(paused)
    engine._torn = True  # as an interrupt in the middle of a change leaves it
    before = engine.read(feed)
    for _ in range(3):
        engine.advance()
        assert engine.read(feed) == []
    assert not engine.unfinished
    engine.resume(paused)
    while engine.unfinished:
        engine.advance()
        before += engine.read(feed)
    assert "".join(delta.text for delta in before) == expected
    clean(engine)
