"""Java: javac and `java -ea`, of Java 9 or newer; the class is `Problem`, its tests are asserts in `main`.

The prompts of MultiPL-E import org.javatuples: without its jar none of them compiles.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..sandbox import Command, Job, Limits
from .language import COMPILER, Language, Need, Tools, visible

__all__ = ["JAVA"]

# The token goes to the open descriptor 3. /dev/fd/3 would have to be opened anew, which the sandbox's user may not.
_RUN = """\
import java.io.*;
class Run {
    public static void main(String[] args) throws Throwable {
        FileDescriptor descriptor = new FileDescriptor();
        java.lang.reflect.Field number = FileDescriptor.class.getDeclaredField("fd");
        number.setAccessible(true);
        number.setInt(descriptor, 3);
        Problem.main(args);
        new FileOutputStream(descriptor).write("{token}".getBytes());
    }
}
"""

# A JVM reserves address space by the gigabyte, and starts some twenty threads by itself. The heap's limit leaves
# room for its code, its classes and the stacks of its threads.
_HEAP = 640
_LIMITS = Limits(address_space_bytes=None, processes=128)
_QUICK = ("-XX:+UseSerialGC", "-XX:-UsePerfData", "-Xshare:auto")  # one collector thread, no file in /tmp


def _job(source: bytes, token: str, tools: Tools) -> Job:
    jar = tools["javatuples.jar"].resolve()
    homes = {tools[name].resolve().parents[1] for name in ("javac", "java")}
    settings = {(home / "conf" / "net.properties").resolve().parent for home in homes}  # Debian: below /etc
    javac = (
        str(tools["javac"].resolve()),
        *(f"-J{flag}" for flag in (f"-Xmx{_HEAP}m", "-XX:TieredStopAtLevel=1", *_QUICK)),
        *("-proc:none", "-nowarn", "-encoding", "UTF-8", "-cp", str(jar), "-d", "."),
        *("Problem.java", "Run.java"),
    )
    java = (
        str(tools["java"].resolve()),
        *("-ea", f"-Xmx{_HEAP}m", *_QUICK, "-Dfile.encoding=UTF-8"),
        *("--add-opens", "java.base/java.io=ALL-UNNAMED", "-cp", f".:{jar}", "Run"),
    )
    files = {"Problem.java": source, "Run.java": _RUN.replace("{token}", token).encode()}
    return Job(files, [Command(javac, COMPILER), Command(java, _LIMITS)], visible(jar, *homes, *settings))


_NEEDS = (
    Need("javac", "default-jdk-headless", ("javac",)),
    Need("java", "default-jre-headless", ("java",)),
    Need(
        "javatuples.jar",
        "libjavatuples-java",
        file=Path("/usr/share/java/javatuples.jar"),
        option="--javatuples JAR",
    ),
)
_TRIAL = """\
import org.javatuples.*;
class Problem {
    public static void main(String[] args) {
        assert(new Pair<Long, Long>(1L, 2L).getValue1() == 2L);
    }
}
"""
_ERROR = re.compile(r"error:|^Exception in thread|^Caused by:")
JAVA = Language("Java", _NEEDS, _job, _ERROR, _TRIAL)
