"""Every option of every verb: given twice it is an error, unless it says that it repeats."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import Any

import pytest

from featurecache.cli import build_parser

pytestmark = pytest.mark.quick

VALUES = ("1", "0.5,0.5,0.5", "float32", "1,2")


def options(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str, bool]]:
    """Yield the verb, the name of an option, and whether it repeats."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from options(inner, (*path, name))
        elif action.option_strings and action.nargs != 0:
            yield path, action.option_strings[-1], isinstance(action, argparse._AppendAction)


PARSER = build_parser()
ALL = sorted(set(options(PARSER)))


def said(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        PARSER.parse_args(args)
    assert stop.value.code == 2
    return capsys.readouterr().err


def a_value(verb: tuple[str, ...], option: str) -> str:
    """Return a value that an option takes."""
    parser: argparse.ArgumentParser = PARSER
    for name in verb:
        parser = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices[name]
    action = parser._option_string_actions[option]
    if action.choices:
        return str(next(iter(action.choices)))
    for value in VALUES:
        try:
            parser._get_values(action, [value])
        except argparse.ArgumentError:
            continue
        return value
    raise AssertionError(f"no value for {option}")


def test_there_are_options_of_every_verb() -> None:
    from featurecache.cli import VERBS

    assert {verb[0] for verb, _, _ in ALL} >= set(VERBS) - {"ls", "doctor", "backbones", "rm", "guide"}


def test_whatever_reads_a_table_takes_how_it_is_written() -> None:
    of_verb: dict[tuple[str, ...], set[str]] = {}
    for verb, option, _ in ALL:
        of_verb.setdefault(verb, set()).add(option)
    reading = {verb: names for verb, names in of_verb.items() if names & {"--path-column", "--text-column"}}
    assert {("run",), ("advise",), ("task", "add"), ("predict",)} <= set(reading)
    for verb, names in reading.items():
        flags = PARSER
        for name in verb:
            flags = next(a for a in flags._actions if isinstance(a, argparse._SubParsersAction)).choices[name]
        assert {"--path-column", "--text-column", "--delimiter"} <= names, verb
        assert "--no-header" in flags._option_string_actions, verb


def test_an_option_that_is_given_twice_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, option, repeats in ALL:
        value = a_value(verb, option)
        if option.startswith("--"):
            spellings = [[option, value, option, value], [f"{option}={value}", f"{option}={value}"]]
        else:
            spellings = [[option, value, option, value]]
        for twice in spellings:
            error = said(capsys, *verb, *twice)
            assert ("given twice" in error) != repeats, (verb, option, error)
            assert repeats or (option in error and error.count("\n") == 1)


def test_abbreviations_count_as_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    error = said(
        capsys, "extract", "--backbone", "a", "--precis", "float16", "x", "--cache", "c", "--precision=float16"
    )
    assert "--precision is given twice" in error
    error = said(capsys, "extract", "--dtype", "int8", "x", "--cache", "c", "--dtype=float16")
    assert "--dtype is given twice" in error


EARLIER = {
    ("extract", "--backbone", "b", "--cache", "c", "x"): {"--seed": "--weights-seed", "--workers": "--jobs"},
    ("run", "x"): {"--seed": "--weights-seed", "--workers": "--jobs"},
    ("inspect", "b"): {"--seed": "--weights-seed"},
    ("task", "add", "c", "t"): {"--seed": "--random-state"},
    ("predict", "h", "x"): {"--workers": "--jobs"},
    ("verify", "c"): {"--workers": "--jobs"},
    ("repair", "c"): {"--workers": "--jobs"},
}


@pytest.mark.parametrize("command", EARLIER, ids=lambda command: command[0])
def test_earlier_names_are_taken_and_hidden(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    for earlier, name in EARLIER[command].items():
        assert PARSER.parse_args([*command, earlier, "3"]) == PARSER.parse_args([*command, name, "3"])
        assert PARSER.parse_args(command) != PARSER.parse_args([*command, name, "3"])
        error = said(capsys, *command, name, "3", earlier, "3")
        assert f"{earlier} is given twice (before as {name})" in error
        with pytest.raises(SystemExit):
            PARSER.parse_args([*command, "--help"])
        help_text = capsys.readouterr().out
        assert name in help_text
        assert f"{earlier} " not in help_text


def test_jobs_are_counted_from_one(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("0", "-2", "two", "1.5"):
        assert f"needs a number from 1, or -1 for one per core, got '{wrong}'" in said(
            capsys, "train", "c", "--task", "t", f"--jobs={wrong}"
        )
    args = [
        PARSER.parse_args(["train", "c", "--task", "t", *jobs]).jobs for jobs in ([], ["--jobs", "-1"], ["--jobs", "3"])
    ]
    assert args == [None, None, 3]


def test_one_parser_parses_one_command_after_the_other() -> None:
    parser = PARSER
    for _ in range(2):
        args = parser.parse_args(
            ["extract", "x", "--cache", "c", "--backbone", "b", "--tap", "s", "--tap", "t", "--json"]
        )
        assert (args.backbone, args.tap) == (["b"], ["s", "t"])
    assert parser.parse_args(["extract", "x", "--json", "--json", "--cache", "c", "--backbone", "b"]).json


def test_doctor_lists_every_optional_package() -> None:
    """Those of the project file, but for what only development needs."""
    import tomllib

    from conftest import REPOSITORY

    from featurecache.cli.doctor import _EXTRAS

    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    needed = {re.split("[<>=]", each)[0].strip() for extra, of in extras.items() if extra != "dev" for each in of}
    assert set(_EXTRAS) >= needed - {"setuptools"}
    assert {extra for extra, _ in _EXTRAS.values()} <= set(extras)


def test_the_advice_to_install_names_packages_that_exist() -> None:
    from featurecache.errors import install_command

    assert install_command("timm").startswith(("pip install 'timm>=", "pip install 'featurecache[timm]'"))
    assert install_command("no_such") == "pip install 'featurecache[no_such]'"


def parsers(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every verb with its parser."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield path, parser
    for action in below:
        for name, inner in action.choices.items():
            yield from parsers(inner, (*path, name))


VERB_PARSERS = dict(parsers(PARSER))


@pytest.mark.parametrize("verb", VERB_PARSERS, ids=" ".join)
def test_help_shows_what_most_people_want_first_and_every_option_once(
    verb: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    parser = VERB_PARSERS[verb]
    shown = parser.format_help()
    actions = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    assert all(action.help for action in actions)
    for action in actions:
        for name in action.option_strings[-1:]:
            listed = re.findall(rf"^  (?:-\w, )?{name}(?![\w-])", shown, re.MULTILINE)
            assert len(listed) == 1, (verb, name)
    if len(shown.splitlines()) > 60:
        first, *_ = re.split(r"\n\n(?=[a-z ]+:\n)", shown.partition("common options:")[2])
        before = shown.partition("common options:")[0]
        assert len(before.splitlines()) + len(first.splitlines()) <= 45
        assert shown.splitlines()[0].endswith("[options]")
    assert "\nexample:\n" in shown
