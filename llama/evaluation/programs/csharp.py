"""C#: mcs (or csc) and mono, with System.Numerics; the class is `Problem`, its tests are Debug.Assert in `Main`.

Debug.Assert is compiled only where DEBUG is defined, and one that fails only reports: mono shows nothing and goes
on. So a listener of ours ends the program at the first one that fails.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..sandbox import Command, Job, Limits
from .language import COMPILER, Language, Need, Tools, visible

__all__ = ["CSHARP"]

_RUN = """\
using System;
using System.Diagnostics;
using System.Runtime.InteropServices;
class FailingListener : TraceListener {
    public override void Write(string message) { Console.Error.Write(message); }
    public override void WriteLine(string message) { Console.Error.WriteLine(message); }
    public override void Fail(string message) { Fail(message, null); }
    public override void Fail(string message, string detail) {
        string place = "";
        foreach (StackFrame frame in new StackTrace(true).GetFrames() ?? new StackFrame[0])
            if (place == "" && (frame.GetFileName() ?? "").EndsWith("problem.cs"))
                place = " in line " + frame.GetFileLineNumber() + " of problem.cs";
        Console.Error.WriteLine(("Debug.Assert failed" + place + " " + message + " " + detail).TrimEnd());
        Environment.Exit(1);
    }
}
static class Run {
    [DllImport("libc", EntryPoint = "write")]
    static extern IntPtr WriteTo(int descriptor, byte[] bytes, IntPtr count);
    static void Main(string[] args) {
        Debug.Listeners.Clear();
        Debug.Listeners.Add(new FailingListener());
        Problem.Main(args);
        byte[] token = System.Text.Encoding.ASCII.GetBytes("{token}");
        WriteTo(3, token, new IntPtr(token.Length));
    }
}
"""

# mono reserves address space for its heap and its code; the heap's limit leaves room for the latter.
_HEAP = {"MONO_GC_PARAMS": "max-heap-size=640m"}
_LIMITS = Limits(address_space_bytes=None, processes=64)


def _job(source: bytes, token: str, tools: Tools) -> Job:
    flags = ("-nologo", "-debug", "-define:DEBUG", "-r:System.Numerics.dll", "-main:Run", "-out:problem.exe")
    compile_ = Command((str(tools["mcs"]), *flags, "problem.cs", "run.cs"), COMPILER)
    run = Command((str(tools["mono"]), "--debug", "problem.exe"), _LIMITS, environment=_HEAP)
    files = {"problem.cs": source, "run.cs": _RUN.replace("{token}", token).encode()}
    return Job(files, [compile_, run], visible(Path("/etc/mono")))


_NEEDS = (Need("mcs", "mono-mcs", ("mcs", "csc")), Need("mono", "mono-runtime", ("mono",)))
_TRIAL = """\
using System.Diagnostics;
using System.Numerics;
class Problem {
    public static void Main(string[] args) {
        Debug.Assert(new BigInteger(1) + 1 == 2);
    }
}
"""
_ERROR = re.compile(r"error CS\d+|FATAL UNHANDLED EXCEPTION|^Debug\.Assert failed")
CSHARP = Language("C#", _NEEDS, _job, _ERROR, _TRIAL)
