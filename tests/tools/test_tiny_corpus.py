"""Laws of the training text: what is held out stays out, copies and headers go, no package fills it."""

from __future__ import annotations

import ast

from tiny_corpus import (
    LARGEST_SHARE,
    LIBRARY,
    TESTS,
    VENDORED,
    Document,
    capped,
    fresh_parts,
    functions,
    is_table,
    runs,
    without_header,
)

CODE = "".join(f"    value_{line} = compute(value_{line - 1})\n" for line in range(1, 9))


def test_a_run_of_lines_is_found_at_another_indent_and_among_blank_lines() -> None:
    moved = "class Other:\n" + CODE.replace("\n", "\n\n").replace("    ", "        ")
    assert set(runs(CODE)) <= set(runs(moved))
    assert not set(runs(CODE)) & set(runs(CODE.replace("value_4 ", "value_x ")[:120]))


def test_a_header_goes_only_if_it_speaks_of_licence() -> None:
    licensed = "#!/usr/bin/env python\n# Copyright 2020 The Authors.\n# All rights reserved.\n\nimport os\n"
    assert without_header(licensed) == "import os\n"
    plain = "# Small helpers for paths.\n\nimport os\n"
    assert without_header(plain) == plain
    later = "import os\n# Copyright 2020\n"
    assert without_header(later) == later


def test_repeated_functions_go_and_a_copy_goes_whole() -> None:
    seen: set[int] = set()
    first = Document("a", "a.py", f"def first():\n{CODE}\n")
    assert fresh_parts(first, seen) == first
    assert fresh_parts(Document("b", "b.py", first.text), seen) is None
    new = f"def second():\n{CODE.replace('value', 'other')}\n"
    both = Document("c", "c.py", first.text + new)
    assert fresh_parts(both, seen) == Document("c", "c.py", new)


def test_no_package_makes_more_than_its_share() -> None:
    large = [Document("large", f"{number}.py", "x" * 100) for number in range(300)]
    small = [Document(f"small{n % 6}", f"{n}.py", "x" * 100) for n in range(120)]
    left = capped(large + small)
    sizes = {name: sum(d.package == name for d in left) for name in {d.package for d in left}}
    assert sizes.pop("large") <= LARGEST_SHARE * len(left) + 1
    assert sum(sizes.values()) == 120
    assert sum(d.package == "large" for d in left) >= LARGEST_SHARE * len(left) - 2


def test_tables_tests_and_vendored_copies_are_known() -> None:
    assert is_table("TABLE = [" + ", ".join(map(str, range(500))) + "]\n")
    assert not is_table(f"def first():\n{CODE}")
    for name in ("pkg/tests/a.py", "pkg/test_a.py", "pkg/a_test.py", "pkg/conftest.py", "torch/testing/a.py"):
        assert TESTS.search(name), name
    assert not TESTS.search("pkg/contest.py")
    for name in ("pip/_vendor/a.py", "debugpy/_vendored/a.py", "pkg/third_party/a.py"):
        assert VENDORED.search(name), name
    assert not VENDORED.search("pkg/vendors.py")


def test_a_function_is_moved_to_column_0_and_taken_apart() -> None:
    text = 'class A:\n    def double(self, x: int = 2) -> int:\n        """Twice\n        x."""\n        return 2 * x\n'
    (found,) = functions(Document(LIBRARY, "a.py", text))
    assert (found.signature, found.summary) == ("double(self, x: int=2)", "Twice x.")
    assert found.source == found.head + "\n    return 2 * x"
    assert found.bare == "def double(self, x: int = 2) -> int:\n    return 2 * x"
    ast.parse(found.source)
