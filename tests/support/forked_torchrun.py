"""torchrun as a fork of a process that has imported torch, and its ranks as forks of torchrun.

A new interpreter takes two seconds of processor time to import torch, and a launch of two nodes has four. This
is torchrun's own agent, with the options of its command line, its store and its environment, but it forks its
ranks (torch's `LaunchConfig.start_method`) where torchrun runs a command. For tests of what nodes do to each
other; those of torchrun itself, of its signals and of its threads, run the command.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence

from forked import SERVER
from network import Machine

__all__ = ["ForkedTorchrun"]

_PR_SET_PDEATHSIG = 1


class ForkedTorchrun:
    """A running launcher, in a session of its own. It has what tests use of `subprocess.Popen`.

    Args:
        outputs: paths that its stdout and stderr are written to, and those of its ranks.
        words: torchrun's options, the script, and its arguments. Without options the script, or `-m MODULE`, runs by
            itself.
    """

    def __init__(
        self, outputs: Sequence[str], env: Mapping[str, str], machine: Machine | None, words: Sequence[str]
    ) -> None:
        # Not a daemon, which might have no children.
        self._process = SERVER.Process(target=_torchrun, args=(outputs, dict(env), machine, words))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired("torchrun", timeout)
        return self._process.exitcode

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _torchrun(
    outputs: Sequence[str], env: dict[str, str], machine: Machine | None, words: Sequence[str]
) -> None:
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    os.setsid()
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if machine is not None:
        machine.join()
    if not words[0].startswith("--"):
        _set_threads()
        _rank(*words)
        return
    arguments = parse_args(list(words))
    config, *_ = config_from_args(arguments)
    config.start_method = "fork"
    _set_threads()
    module = ["-m"] if arguments.module else []
    elastic_launch(config, _rank)(*module, arguments.training_script, *arguments.training_script_args)


def _set_threads() -> None:
    """As a new interpreter would. torchrun sets the variable, if nobody else does."""
    import torch

    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))


def _rank(script: str, *arguments: str) -> None:
    """Run the script, or with -m the module that the first argument names; end as an interpreter of its own would."""
    # torch's own forks are told when their parent ends, torchrun's ranks are not; nor have they its handlers.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    code = 0
    try:
        if script == "-m":
            sys.argv = [*arguments]
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [script, *arguments]
            runpy.run_path(script, run_name="__main__")
    except SystemExit as ending:
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException as error:
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)
