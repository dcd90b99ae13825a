"""PHP, with the extensions that its configuration loads (on Debian ctype is one of them).

The line that writes the token follows the program's text. After an answer that ends in `?>` it is only printed, like
the tests, so such a program does not pass.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..sandbox import Command, Job
from .language import Language, Need, Tools, visible

__all__ = ["PHP"]

_SETTINGS = {"display_errors": "stderr", "log_errors": "0", "html_errors": "0", "memory_limit": "640M"}


def _job(source: bytes, token: str, tools: Tools) -> Job:
    end = f"\nfwrite(fopen('php://fd/3', 'w'), '{token}');\n"
    settings = (part for name, value in _SETTINGS.items() for part in ("-d", f"{name}={value}"))
    run = Command((str(tools["php"].resolve()), *settings, "problem.php"))
    return Job({"problem.php": source + end.encode()}, [run], visible(Path("/etc/php")))


_TRIAL = "<?php\nif (1 + 1 !== 2) { throw new Exception('Test failed!'); }\n"
_ERROR = re.compile(r"^(PHP )?(\w+ )?[Ee]rror: ")
PHP = Language("PHP", (Need("php", "php-cli", ("php",)),), _job, _ERROR, _TRIAL)
