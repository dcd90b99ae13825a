"""Laws of what may be trained on: licences are read from metadata, and doubt keeps a package out."""

from __future__ import annotations

from email.message import Message
from importlib import metadata

import pytest
from tiny_packages import is_permissive, is_trainable, licence_of, packages


@pytest.mark.parametrize(
    ("licence", "is_in"),
    [
        ("MIT", True),
        ("BSD-3-Clause", True),
        ("PSF-2.0", True),
        ("ISC", True),
        ("CC0-1.0", True),
        ("Apache-2.0 OR BSD-2-Clause", True),
        ("GPL-3.0-only OR MIT", True),  # the reader chooses
        ("BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0", True),
        ("Zlib", False),  # counts beside another only
        ("MPL-2.0", False),
        ("MPL-2.0 AND MIT", False),
        ("Apache-2.0 AND CNRI-Python", False),
        ("(MIT OR GPL-2.0-only) AND MPL-2.0", False),
        ("MIT-like", False),
        ("unknown", False),
        ("", False),
    ],
)
def test_an_expression_is_in_if_all_its_terms_are(licence: str, is_in: bool) -> None:
    assert is_permissive(licence) is is_in


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ([("License-Expression", "MIT"), ("License", "GPL")], "MIT"),
        ([("Classifier", "License :: OSI Approved :: MIT License")], "MIT"),
        (
            [("Classifier", "License :: OSI Approved :: BSD License"), ("License", "BSD-3-Clause")],
            "BSD-3-Clause",
        ),
        ([("License", "UNKNOWN"), ("Classifier", "License :: OSI Approved :: ISC License (ISCL)")], "ISC"),
        ([("License", "Apache 2.0 License")], "Apache-2.0"),
        ([("License", "BSD 3-Clause License\n\nCopyright (c) 2001 The Authors")], "BSD-3-Clause"),
        ([("Classifier", "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)")], None),
        ([("License", "GNU GPL, see COPYING")], None),
        ([], "unknown"),
    ],
)
def test_metadata_become_an_expression(fields: list[tuple[str, str]], licence: str | None) -> None:
    facts = Message()
    for name, value in fields:
        facts[name] = value
    found = licence_of(facts)  # type: ignore[arg-type]
    assert is_permissive(found) is (licence is not None and licence != "unknown")
    assert licence is None or found == licence


def test_this_project_and_what_it_is_measured_on_are_never_trained_on() -> None:
    found = {package.name: package for package in packages()}
    assert not is_trainable(found["codellama-runtime"])
    assert not is_trainable(found["hypothesis"])  # MPL-2.0
    assert is_trainable(found["pytest"])
    assert {package.version for package in found.values()} >= {metadata.version("pytest")}
