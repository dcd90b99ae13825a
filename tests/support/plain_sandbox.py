"""A sandbox for programs that the tests wrote themselves: it shuts nothing off, and keeps time and memory only."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import tempfile
from pathlib import Path

from llama.evaluation.sandbox import Command, Ended, Job, Outcome

CLOSE = 'exec 3>"$0"; exec "$@"'


class PlainSandbox:
    """Runs a job's commands in a folder of its own."""

    level = "limits"

    def run(self, job: Job) -> Outcome:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name, "job")
            folder.mkdir()
            for file, content in job.files.items():
                (folder / file).write_bytes(content)
            outcome = None
            for index, command in enumerate(job.commands):
                outcome = self._run(index, command, folder, Path(name, "token"))
                if outcome.ended is not Ended.EXITED or outcome.exit_code:
                    break
            assert outcome is not None
            return outcome

    def _run(self, index: int, command: Command, folder: Path, token: Path) -> Outcome:
        limits = command.limits

        def restrict() -> None:
            resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_seconds, limits.cpu_seconds))
            if limits.address_space_bytes is not None:
                resource.setrlimit(resource.RLIMIT_AS, (limits.address_space_bytes,) * 2)

        environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "LANG": "C.UTF-8", **command.environment}
        argv = ["/bin/bash", "-c", CLOSE, str(token), *command.argv]
        process = subprocess.Popen(
            argv,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=restrict,
            start_new_session=True,
        )
        ended = Ended.EXITED
        try:
            out, err = process.communicate(timeout=limits.wall_seconds)
        except subprocess.TimeoutExpired:
            ended = Ended.WALL
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
        code = process.returncode if process.returncode >= 0 else 128 - process.returncode
        if code == 128 + signal.SIGKILL and ended is Ended.EXITED:
            ended = Ended.CPU
        kept = limits.output_bytes
        return Outcome(ended, index, code, out[:kept], err[:kept], token.read_bytes()[:64])
