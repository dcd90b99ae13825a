"""Two machines, as far as their network goes: namespaces with a cable between them that a test can cut.

The namespaces have no names that could be left behind. Each lives as long as a process that waits for its
standard input to close, and so ends with the tests, whatever ends them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

__all__ = ["Machine", "two_machines"]

_IP = shutil.which("ip", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
# Anybody may make a network of their own within a user namespace, unless the system forbids that.
_USER = () if os.geteuid() == 0 else ("--user",)


@dataclass(frozen=True)
class Machine:
    """One end of the cable. `enter` is a command line that runs the command after it on this machine."""

    pid: int
    interface: str
    address: str

    @property
    def enter(self) -> tuple[str, ...]:
        credentials = ("--preserve-credentials",) if _USER else ()
        return ("nsenter", "--target", str(self.pid), *_USER, *credentials, "--net", "--")

    def join(self) -> None:
        """Make this very process, which must have one thread, run on this machine."""
        for kind in ("user", "net") if _USER else ("net",):
            with open(f"/proc/{self.pid}/ns/{kind}") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0):
                    raise OSError(ctypes.get_errno(), f"setns {kind}")

    def ip(self, *words: object) -> None:
        """Run `ip` on this machine."""
        assert _IP is not None
        _run(*self.enter, _IP, *map(str, words))

    def unplug(self) -> None:
        """Switch the interface off: this machine has no route any more, and the other one no carrier."""
        self.ip("link", "set", self.interface, "down")

    def vanish_for(self, other: Machine) -> None:
        """From now on what the other machine sends here arrives nowhere, and nothing tells it so."""
        wrong = "02:00:00:00:00:99"  # no interface has it
        other.ip(
            "neigh", "replace", self.address, "lladdr", wrong, "nud", "permanent", "dev", other.interface
        )


@contextlib.contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Two machines, 10.77.0.1 and 10.77.0.2. Skips the test where this user cannot make them."""
    if _IP is None or shutil.which("unshare") is None or shutil.which("nsenter") is None:
        pytest.skip("needs unshare, nsenter and ip")
    with contextlib.ExitStack() as stack:
        first = Machine(
            _namespace(stack, (), *_USER, *(("--map-root-user",) if _USER else ())), "node0", "10.77.0.1"
        )
        # In the first one's user namespace, if it has one: the cable's owner must own both ends.
        within = first.enter[:-2] if _USER else ()
        second = Machine(_namespace(stack, within), "node1", "10.77.0.2")
        cable = ("type", "veth", "peer", "name", second.interface, "netns", second.pid)
        first.ip("link", "add", "name", first.interface, *cable)
        for machine in (first, second):
            machine.ip("address", "add", f"{machine.address}/24", "dev", machine.interface)
            machine.ip("link", "set", machine.interface, "up")
            machine.ip("link", "set", "lo", "up")
        yield first, second


def _namespace(stack: contextlib.ExitStack, within: tuple[str, ...], *options: str) -> int:
    """Make a network namespace -> the process that holds it."""
    command = [*within, "unshare", *options, "--net", "--", "sh", "-c", "echo; exec cat"]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    stack.callback(holder.communicate)  # closes its standard input, on which it ends
    assert holder.stdout is not None
    if holder.stdout.readline() != b"\n":
        said = holder.communicate()[1].decode().strip()
        pytest.skip(f"this user may not make network namespaces: {said}")
    return holder.pid


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
