"""Why a test may be skipped: because the machine lacks something, and for no other reason.

`LACKING` lists the reasons. For each, a probe looks whether the machine does lack the thing, without asking the
package under test: kernels that this CPU could run and that were not built are a failure, not a skip. The
plugin prints all skips at the end of a run, and fails the run if there is one that the list does not allow.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cpu_levels import NEEDS, has_compiler, has_cross_compiler, has_simde, knows, runs

__all__ = ["LACKING", "Skips", "allowed"]


def _no_compiled_kernels() -> bool:
    """setup.py compiles on Linux and macOS, for two kinds of CPU, and needs a C compiler."""
    return not _has_levels() or not has_compiler()


def _has_levels() -> bool:
    known = ("x86_64", "AMD64", "aarch64", "arm64")
    return sys.platform in ("linux", "darwin") and platform.machine() in known


# Where Linux has a GPU that torch could use: NVIDIA's, AMD's, and either's under Windows.
_GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def _no_cuda() -> bool:
    if sys.platform == "linux" and not any(map(os.path.exists, _GPUS)):
        return True  # without the seconds that torch takes to be imported
    import torch

    return not torch.cuda.is_available()


def _no_second_gpu() -> bool:
    import torch

    return torch.cuda.device_count() == 1


def _no_cpp_compiler() -> bool:
    from pretended_gpu import has_cpp_compiler

    return not has_cpp_compiler()


def _no_mkldnn_packing() -> bool:
    import torch

    capable = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return not (torch.backends.mkldnn.is_available() and capable)


def _no_flash_attention_on_cpu() -> bool:
    import torch

    return not hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")


def _absent(*programs: str) -> Callable[[], bool]:
    return lambda: any(shutil.which(program) is None for program in programs)


def _no_recent_node() -> bool:
    if _absent("node", "npm")():
        return True
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    return int(version.removeprefix("v").partition(".")[0]) < 20


def _no_sandbox_namespaces() -> bool:
    """Those that a sandbox is made of; util-linux is asked."""
    from sandboxes import can_make_namespaces

    return not can_make_namespaces()


def _no_bubblewrap() -> bool:
    from sandboxes import has_bubblewrap

    return not has_bubblewrap()


def _only_the_test_can_tell() -> bool:
    """The test tried it, with the system's own means."""
    return True


# Regular expressions that match a whole reason -> whether this machine lacks what the reason names.
LACKING: dict[str, Callable[[], bool]] = {
    r"LLAMA_TEST_DATA is unset.*": lambda: not os.environ.get("LLAMA_TEST_DATA"),
    r"no CUDA.*": _no_cuda,
    r"a GPU is here, and need not be pretended": lambda: not _no_cuda(),
    r"only one GPU is here": _no_second_gpu,
    r"the GPU has too little free memory": _only_the_test_can_tell,
    r"no C\+\+ compiler": _no_cpp_compiler,
    **{f"this CPU does not run {level}": lambda level=level: not runs(level) for level in NEEDS},
    **{f"the C compiler does not know {level}": lambda level=level: not knows(level) for level in NEEDS},
    r"no cross compiler for aarch64": lambda: not has_cross_compiler(),
    r"SIMDe is not on this machine": lambda: not has_simde(),
    r"this CPU is no x86-64": lambda: platform.machine() not in ("x86_64", "AMD64"),
    r"no C compiler|needs the compiled file": _no_compiled_kernels,
    r"kernels are compiled for x86-64 and aarch64 only": lambda: not _has_levels(),
    r"this build or CPU may rightly decline": _no_mkldnn_packing,
    r"this torch has no flash kernel for the CPU": _no_flash_attention_on_cpu,
    r"needs Linux's /proc": lambda: not Path("/proc/self/status").exists(),
    r"needs Linux's /dev/full": lambda: not Path("/dev/full").exists(),
    r"download\.sh needs bash, and curl or wget": lambda: (
        _absent("bash")() or (_absent("curl")() and _absent("wget")())
    ),
    r"md5 is not on this machine": _absent("md5"),
    r"md5sum is not on this machine": _absent("md5sum"),
    r"python3 is not on this machine": _absent("python3"),
    r"curl is not on this machine": _absent("curl"),
    r"node 20 or newer, with npm, is not on this machine": _no_recent_node,
    r"chromium, with chromedriver, is not on this machine": _absent("chromium", "chromedriver"),
    r"openssl is not on this machine": _absent("openssl"),
    r"shellcheck is not on this machine": _absent("shellcheck"),
    r"needs a mount namespace of its own": _absent("unshare"),
    r"systemd-analyze is not on this machine": _absent("systemd-analyze"),
    r"needs unshare, nsenter and ip": _absent("unshare", "nsenter", "ip"),
    r"no toolchain of C\+\+": _absent("g++"),
    r"no toolchain of Java": lambda: (
        _absent("javac", "java")() or not Path("/usr/share/java/javatuples.jar").exists()
    ),
    r"no toolchain of PHP": _absent("php"),
    r"no toolchain of TypeScript": _absent("node", "tsc"),
    r"no toolchain of C#": lambda: _absent("mono")() or (_absent("mcs")() and _absent("csc")()),
    r"no toolchain of Bash": _absent("bash"),
    r"no toolchain of JavaScript": _absent("node"),
    r"this user may not make network namespaces.*": _only_the_test_can_tell,
    r"this user may not mount a tmpfs.*": _only_the_test_can_tell,
    r"this user may not make the namespaces of a sandbox": _no_sandbox_namespaces,
    r"bubblewrap 0\.7 or newer is not on this machine": _no_bubblewrap,
    **{
        f"{program} is not on this machine": _absent(program)
        for program in (
            "objdump",
            "aarch64-linux-gnu-objdump",
            "qemu-aarch64",
            "qemu-x86_64",
        )
    },
    r"this machine has no such header of the kernel": _only_the_test_can_tell,
    r"this file system has no such names": _only_the_test_can_tell,
    r"this system does not exchange names": _only_the_test_can_tell,
    r"this system has no (SIGHUP|such signal)": lambda: sys.platform == "win32",
}


def allowed(reason: str) -> bool:
    """Whether the list has the reason and the machine lacks what it names."""
    return any(re.fullmatch(known, reason, re.DOTALL) and lacks() for known, lacks in LACKING.items())


@dataclass(eq=False)  # pytest wants plugins that can be hashed
class Skips:
    """A pytest plugin, for the process that reports: with xdist the controller."""

    reasons: Counter[str] = field(default_factory=Counter)
    wrong: dict[str, str] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a skip, and keep the test's name where the skip is not allowed."""
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        self.reasons[reason] += 1
        if not allowed(reason):
            self.wrong[report.nodeid] = reason

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> object:
        """A file that is skipped as a whole fails: under xdist nobody would hear of it."""
        report = yield
        if report.skipped:
            report.outcome = "failed"
            report.longrepr = f"{collector.nodeid} skips itself while it is collected: use pytestmark"
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """The run fails for a skip that is not allowed."""
        if self.wrong and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """All reasons with counts, and the tests whose skip is not allowed."""
        if self.reasons:
            terminalreporter.section("skipped")
        for reason, count in sorted(self.reasons.items()):
            terminalreporter.line(f"{count:5}  {reason}")
        if self.wrong:
            terminalreporter.section("skips that tests/support/skips.py does not allow", red=True)
        for test, reason in self.wrong.items():
            terminalreporter.line(f"{test}: {reason}", red=True)
