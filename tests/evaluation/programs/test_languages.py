"""Every language: a right program passes, and a wrong, endless, broken, greedy or early ending one does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from language_programs import PROGRAMS
from program_verdicts import Hurried

from llama.errors import EvaluationError
from llama.evaluation.problem import Program, Status, Verdict
from llama.evaluation.programs import LANGUAGES, judge, missing, sandbox_for, try_language
from llama.evaluation.sandbox import Ended, Job, Outcome, Sandbox

pytestmark = pytest.mark.slow

EARLY = Verdict(Status.FAILED, "it ended with 0, but before the end of its tests")


@pytest.fixture(params=PROGRAMS)
def language(request: pytest.FixtureRequest) -> str:
    if missing(request.param):
        pytest.skip(f"no toolchain of {LANGUAGES[request.param].title}")
    return request.param


def judged(sandbox: Sandbox, language: str, body: str) -> Verdict:
    return judge(sandbox, Program(language, PROGRAMS[language].source(body)))


def test_there_are_programs_in_every_language():
    assert list(PROGRAMS) == list(LANGUAGES)


def test_a_right_program_passes(sandbox, language):
    assert judged(sandbox, language, PROGRAMS[language].right) == Verdict(Status.PASSED)


def test_the_trial_of_a_language_passes(sandbox, language):
    try_language(sandbox, language)


def test_a_wrong_program_fails_by_its_test(sandbox, language):
    verdict = judged(sandbox, language, PROGRAMS[language].wrong)
    assert verdict.status is Status.FAILED
    assert PROGRAMS[language].error in verdict.detail


def test_a_program_that_does_not_compile_fails_with_the_compilers_line(sandbox, language):
    body, line = PROGRAMS[language].broken
    verdict = judged(sandbox, language, body)
    assert verdict.status is Status.FAILED
    assert verdict.detail.startswith(line)
    assert len(verdict.detail) <= 200


def test_a_program_that_ends_with_0_in_front_of_its_tests_fails(sandbox, language):
    for body in PROGRAMS[language].early:
        assert judged(sandbox, language, body) == EARLY, body


# What tsc writes is run as a JavaScript program is, under the same limits, which are compared below.
@pytest.mark.parametrize("language", [name for name in PROGRAMS if PROGRAMS[name].endless], indirect=True)
def test_an_endless_program_is_timed_out(sandbox, language):
    verdict = judged(Hurried(sandbox, 0.5), language, PROGRAMS[language].endless)
    assert verdict == Verdict(Status.TIMED_OUT, "it used up 10 s of processor time")


@pytest.mark.parametrize("name", [name for name, programs in PROGRAMS.items() if programs.greedy])
def test_a_program_without_end_of_memory_fails_by_its_languages_own_limit(sandbox, name):
    if missing(name):
        pytest.skip(f"no toolchain of {LANGUAGES[name].title}")
    body, line = PROGRAMS[name].greedy
    verdict = judged(sandbox, name, body)
    assert verdict.status is Status.FAILED
    assert line in verdict.detail


class Recording:
    """Keeps the job, and answers how its first command ended."""

    level = "limits"

    def __init__(self, ended: Ended = Ended.EXITED, exit_code: int = 0, **output: bytes) -> None:
        self.outcome = Outcome(ended, 0, exit_code, output.get("stdout", b""), output.get("stderr", b""), b"")
        self.jobs: list[Job] = []

    def run(self, job: Job) -> Outcome:
        self.jobs.append(job)
        return self.outcome


@pytest.mark.parametrize(
    ("sandbox", "verdict"),
    [
        (Recording(Ended.CPU), Verdict(Status.TIMED_OUT, "its compiler used up 30 s of processor time")),
        (Recording(Ended.WALL), Verdict(Status.TIMED_OUT, "its compiler had not ended after 120 s")),
        (Recording(Ended.MEMORY), Verdict(Status.FAILED, "its compiler used more than 2,048 MiB of memory")),
        (
            Recording(
                exit_code=1, stderr=b"In file included\na.cpp:1:2: error: first\na.cpp:9:9: error: second\n"
            ),
            Verdict(Status.FAILED, "a.cpp:1:2: error: first"),
        ),
        (
            Recording(exit_code=1, stdout=b"on stdout: error: it"),
            Verdict(Status.FAILED, "on stdout: error: it"),
        ),
        (Recording(exit_code=137), Verdict(Status.FAILED, "ended by signal 9")),
    ],
)
def test_how_a_compiler_ended_is_told_apart_from_how_the_program_did(sandbox, verdict, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/true")
    assert judge(sandbox, Program("cpp", "int main() {}")) == verdict


def test_what_is_missing_is_named_with_its_package_and_nothing_is_run(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    sandbox = Recording()
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    assert missing("sh") == "bash (Debian's package bash) is missing"
    assert (
        missing("cs")
        == "mcs (Debian's package mono-mcs) and mono (Debian's package mono-runtime) are missing"
    )
    assert missing("java") == (
        "javac (Debian's package default-jdk-headless), java (Debian's package default-jre-headless) and javatuples.jar"
        " (Debian's package libjavatuples-java, or give its place by --javatuples JAR) are missing"
    )
    for name in LANGUAGES:
        verdict = judge(sandbox, Program(name, ""))
        if name == "python":
            assert sandbox.jobs.pop()
            continue
        assert verdict.status is Status.NOT_RUN
        assert verdict.detail == missing(name)
        assert not sandbox.jobs


def test_a_toolchain_that_is_half_there_is_found_before_a_run(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/true")
    sandbox = Recording(
        exit_code=1, stderr=b"error CS0006: Metadata file `System.Numerics.dll' could not be found"
    )
    monkeypatch.setattr("llama.evaluation.programs.trial.open_sandbox", lambda name: sandbox)
    with pytest.raises(
        EvaluationError, match=r"trivial C# program .* sandbox limits: error CS0006.* mono-runtime"
    ):
        sandbox_for("cs", "limits")
    assert sandbox_for("cs", sandbox) is sandbox  # whoever opens one has tried it


def test_a_toolchain_that_is_missing_is_no_error_before_a_run(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    sandbox = Recording()
    try_language(sandbox, "ts")
    assert not sandbox.jobs


def test_the_jar_of_java_is_the_one_that_is_given(monkeypatch, tmp_path: Path):
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/true")
    jar = tmp_path / "tuples.jar"
    assert missing("java", javatuples=jar) == (
        "javatuples.jar (Debian's package libjavatuples-java, or give its place by --javatuples JAR) is missing"
    )
    assert judge(Recording(), Program("java", ""), javatuples=jar).status is Status.NOT_RUN
    jar.touch()
    sandbox = Recording()
    judge(sandbox, Program("java", ""), javatuples=jar)
    (job,) = sandbox.jobs
    assert jar in job.visible
    assert all(any(str(jar) in argument for argument in command.argv) for command in job.commands)


def test_either_compiler_of_csharp_will_do(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None if name == "mcs" else f"/opt/bin/{name}")
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    assert missing("cs") == ""
    sandbox = Recording()
    judge(sandbox, Program("cs", ""))
    assert sandbox.jobs[0].commands[0].argv[0] == "/opt/bin/csc"


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_program_is_limited_as_the_page_says(name, monkeypatch):
    """Virtual machines reserve address space: they alone have no limit of it, but a heap of their own."""
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/true")
    sandbox = Recording()
    judge(sandbox, Program(name, ""), javatuples=Path(__file__))
    command = sandbox.jobs[0].commands[-1]
    limits = command.limits
    assert (limits.cpu_seconds, limits.wall_seconds, limits.memory_bytes) == (10, 30.0, 1 << 30)
    assert (limits.file_bytes, limits.output_bytes) == (16 << 20, 64 << 10)
    if limits.address_space_bytes is None:
        assert "640" in " ".join((*command.argv, *command.environment.values()))
    else:
        assert (limits.address_space_bytes, limits.processes) == (1 << 30, 32)
