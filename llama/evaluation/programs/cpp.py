"""C++: `g++ -std=c++17`, without optimization, as MultiPL-E compiles it; its tests are asserts in main."""

from __future__ import annotations

import re

from ..sandbox import Command, Job
from .language import COMPILER, Language, Need, Tools

__all__ = ["CPP"]

# The linker calls this in place of the program's main (--wrap=main), so exit(0) within the program writes nothing.
_RUN = """\
#include <unistd.h>
extern "C" int __real_main(int, char **);
extern "C" int __wrap_main(int argc, char **argv) {
    int code = __real_main(argc, argv);
    static const char token[] = "{token}";
    if (code == 0 && write(3, token, sizeof token - 1) < 0) return 1;
    return code;
}
"""


def _job(source: bytes, token: str, tools: Tools) -> Job:
    flags = ("-std=c++17", "-pipe", "-w", "-fno-diagnostics-show-caret", "-Wl,--wrap=main", "-o", "problem")
    compile_ = Command(
        (str(tools["g++"]), *flags, "problem.cpp", "run.cpp"), COMPILER, environment={"TMPDIR": "."}
    )
    files = {"problem.cpp": source, "run.cpp": _RUN.replace("{token}", token).encode()}
    return Job(files, [compile_, Command(("./problem",))])


_TRIAL = (
    "#include <assert.h>\n#include <bits/stdc++.h>\nint main() { assert(std::string(2, 'a') == \"aa\"); }\n"
)
_ERROR = re.compile(r"error:|undefined reference|Assertion")
CPP = Language("C++", (Need("g++", "g++", ("g++",)),), _job, _ERROR, _TRIAL)
