"""What the package is to whoever installs it."""

from __future__ import annotations

from mutant import Mutant

_BUILT = "tests/project/test_distributions.py::"
_NAMES = "tests/project/test_public_names.py::"
_COMPLETE = _BUILT + "test_sdist_and_wheel_are_complete_and_run_in_an_empty_environment"

MUTANTS = [
    Mutant(
        name="the wheel lacks the subpackages",
        file="pyproject.toml",
        old='include = ["llama", "llama.*"]',
        new='include = ["llama"]',
        tests=(_COMPLETE,),
    ),
    Mutant(
        name="the sdist lacks the C headers",
        file="setup.py",
        old='glob("*.h")',
        new='glob("*.hh")',
        tests=(_COMPLETE,),
    ),
    Mutant(
        name="the wheel lacks the notice",
        file="pyproject.toml",
        old='license-files = ["LICENSE", "NOTICE"]',
        new='license-files = ["LICENSE"]',
        tests=(_COMPLETE,),
    ),
    Mutant(
        name="import llama loads torch",
        file="llama/__init__.py",
        old="from importlib import import_module\n",
        new="from importlib import import_module\n\nimport torch\n",
        tests=(_NAMES + "test_importing_llama_and_its_errors_loads_only_the_standard_library",),
    ),
    Mutant(
        name="an error is not public",
        file="llama/__init__.py",
        old='    "RankError",\n',
        new="",
        tests=(_NAMES + "test_all_errors_are_public_and_all_public_names_are_listed",),
    ),
]
