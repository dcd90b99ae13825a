"""What a sandbox shows of this machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llama.errors import EvaluationError
from llama.evaluation.sandbox import interpreter
from llama.evaluation.sandbox.view import view


def covered(path: Path, places: tuple[str, ...]) -> bool:
    return any(path.is_relative_to(place) for place in places)


def test_the_interpreter_is_shown_and_the_environment_is_not() -> None:
    shown = view().shown
    assert covered(interpreter(), shown)
    assert covered(Path(sys.base_prefix, "lib"), shown)
    assert sys.prefix == sys.base_prefix or not covered(Path(sys.prefix), shown)


def test_home_the_project_and_most_of_etc_are_not_shown() -> None:
    shown = view().shown
    for place in (
        Path.home(),
        Path.cwd(),
        Path("/etc"),
        Path("/etc/passwd"),
        Path("/var"),
        Path("/home"),
        Path("/"),
    ):
        assert not covered(place, shown), place


def test_packages_within_what_is_shown_are_hidden() -> None:
    found = view()
    for lib in (Path(sys.base_prefix, "lib"), Path("/usr/lib"), Path("/usr/local/lib")):
        for folder in lib.glob("python3*/*-packages"):
            if not folder.is_symlink():
                assert str(folder) in found.hidden


def test_links_of_the_root_folder_are_links_again() -> None:
    links = dict(view().links)
    for name in ("bin", "lib"):
        place = Path("/", name)
        assert (str(place) in links) == place.is_symlink()


def test_a_link_is_shown_with_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    found = view((tmp_path / "link",))
    assert {str(tmp_path / "link"), str(tmp_path / "real")} <= set(found.shown)
    assert str(tmp_path) in found.parents()


def test_what_is_shown_anyway_is_not_shown_twice() -> None:
    assert view((Path("/usr/bin"), interpreter())).shown == view().shown
    if Path("/lib").is_symlink():
        assert view((Path("/lib"),)).shown == view().shown


@pytest.mark.parametrize("path", [Path("/"), Path("/usr/.."), Path("/no/such/place")])
def test_everything_and_nothing_cannot_be_shown(path: Path) -> None:
    with pytest.raises(EvaluationError, match="must be there, and be less than everything"):
        view((path,))
