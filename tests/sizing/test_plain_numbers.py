"""Laws of imports: shapes, members and what ranks agree on are plain Python."""

from __future__ import annotations

import subprocess
import sys

MODULES = ("sizing.args", "sizing.shapes", "sizing.family", "distributed.agreement")


def test_numbers_about_a_model_need_no_torch() -> None:
    imports = "; ".join(f"import llama.{name}" for name in MODULES)
    code = f"import sys; {imports}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
