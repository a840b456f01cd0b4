"""A part of a native file with a mistake stays as it was before; without a mistake every change counts."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from lb.model.config import Config
from lb.model.route import Respond
from lb.model.text import Before, Reading, read_content
from lb.problems import Origin

ORIGIN = Origin(file="lb.yaml")

GOOD = """
listeners:
  http: {port: 80}
  db: {port: 5432, protocol: tcp, stream: {forward: db}}
hosts:
  default:
    a.test: [{path: /, forward: web}]
    b.test: [{path: /, respond: 200}]
upstreams:
  web: {endpoints: ["10.0.0.1:80"], connect_timeout: 5s}
  db: ["10.0.0.2:5432"]
"""


def read(text: str, before: Reading | None = None) -> Reading:
    """One native file, read after `before`."""
    last = before or Reading()
    content = yaml.safe_load(text)
    return read_content(content, ORIGIN, {}, lambda _: False, Before(last, last.config, last.flawed))


def edit(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def errors(reading: Reading) -> list[tuple[str, str]]:
    """(field, why) of each."""
    return [(one.field, one.why) for one in reading.problems if one.severity == "error"]


def status(config: Config, hostname: str) -> list[Any]:
    actions = [route.action for route in config.hosts["default"][hostname].routes]
    return [one.status for one in actions if isinstance(one, Respond)]


@pytest.mark.parametrize("section", ["listeners", "hosts", "upstreams"])
def test_a_section_whose_name_is_unknown_stays(section: str) -> None:
    first = read(GOOD)
    assert not first.problems
    second = read(edit(GOOD, (f"\n{section}:", f"\n{section}x:")), first)
    assert second.config == first.config
    ((field, why),) = errors(second)
    assert field == f"{section}x"
    assert why == "until this is mended, nothing that the file held is removed (2 parts stay as they were)"


@pytest.mark.parametrize("section", ["listeners", "hosts", "upstreams"])
def test_a_section_of_the_wrong_type_stays(section: str) -> None:
    first = read(GOOD)
    content = yaml.safe_load(GOOD) | {section: ["a", "list"]}
    second = read(yaml.safe_dump(content), first)
    assert second.config == first.config
    ((field, why),) = errors(second)
    assert field == section
    assert why.startswith(f"until this is mended, nothing of `{section}` is removed (")


@pytest.mark.parametrize(
    ("old", "new", "part", "field"),
    [
        ("{port: 80}", "{port: 800000}", "listeners.http", "listeners.http.port"),
        ("{port: 80}", "{port: 80, addr: 127.0.0.1}", "listeners.http", "listeners.http.addr"),
        ("{path: /, forward: web}", "{path: 7, forward: web}", "hosts.default.a.test", "hosts.default.a.test.routes"),
        ("{path: /, forward: web}", "{pathx: /x, forward: web}", "hosts.default.a.test", "hosts.default.a.test.routes"),
        ("{path: /, forward: web}", "{path: /, forward: wbe}", "hosts.default.a.test", "hosts.default.a.test.routes"),
        ('["10.0.0.1:80"]', '["10.0.0.1"]', "upstreams.web", "upstreams.web.endpoints[0]"),
        ('["10.0.0.1:80"]', '"10.0.0.1:80"', "upstreams.web", "upstreams.web.endpoints"),
        ("connect_timeout: 5s", "connect_timeout: soon", "upstreams.web", "upstreams.web.connect_timeout"),
        ("connect_timeout: 5s", "conect_timeout: 7s", "upstreams.web", "upstreams.web.conect_timeout"),
        ("stream: {forward: db}", "stream: {forward: bd}", "listeners.db", "listeners.db.stream"),
        ("stream: {forward: db}", "", "listeners.db", "listeners.db.stream"),
    ],
)
def test_a_part_with_a_mistake_stays_and_all_else_changes(old: str, new: str, part: str, field: str) -> None:
    first = read(GOOD)
    second = read(edit(GOOD, (old, new), ("respond: 200", "respond: 201")), first)
    ((found, why),) = errors(second)
    assert found.replace("hosts.default.a.test[", "hosts.default.a.test.routes[").startswith(field)
    assert why == f"the last good version of `{part}` stays in use"
    assert status(second.config, "b.test") == [201]
    assert second.config.listeners == first.config.listeners
    assert second.config.upstreams == first.config.upstreams
    assert second.config.hosts["default"]["a.test"] == first.config.hosts["default"]["a.test"]


def test_what_has_no_version_before_is_dropped_with_its_problem() -> None:
    reading = read(edit(GOOD, ("{port: 80}", "{port: 800000}"), ('"10.0.0.1:80"', '"10.0.0.1:80", "10.0.0.9"')))
    assert list(reading.config.listeners) == ["db"]
    assert [one.address for one in reading.config.upstreams["web"].endpoints] == ["10.0.0.1"]
    assert all("stay" not in why for _, why in errors(reading))


def test_a_part_that_began_with_a_mistake_is_nothing_to_go_back_to() -> None:
    """Each attempt to mend it counts, as far as it goes; a mistake in what is whole at last does not."""
    broken = edit(GOOD, ('["10.0.0.1:80"]', '["10.0.0.1:80", "10.0.0.9", "10.0.0.8"]'))
    first = read(broken)
    second = read(edit(broken, ('"10.0.0.9"', '"10.0.0.9:80"')), first)
    assert [one.address for one in second.config.upstreams["web"].endpoints] == ["10.0.0.1", "10.0.0.9"]
    lost = read(edit(GOOD, ("\nupstreams:", "\nupstraems:")), second)
    assert lost.config.upstreams == second.config.upstreams
    third = read(broken, lost)
    assert [one.address for one in third.config.upstreams["web"].endpoints] == ["10.0.0.1"]
    fourth = read(broken, read(GOOD, third))
    assert fourth.config == read(GOOD).config


def test_what_is_taken_away_without_a_mistake_is_removed() -> None:
    first = read(GOOD)
    content = yaml.safe_load(GOOD)
    del content["hosts"]["default"]["b.test"], content["listeners"]["db"], content["upstreams"]["db"]
    second = read(yaml.safe_dump(content), first)
    assert not second.problems
    assert list(second.config.hosts["default"]) == ["a.test"]
    assert list(second.config.listeners) == ["http"]
    assert list(second.config.upstreams) == ["web"]
    assert read("hosts: {}", first).config == Config()


def test_what_stayed_goes_once_the_mistake_is_mended() -> None:
    first = read(GOOD)
    broken = read(edit(GOOD, ("\nlisteners:", "\nlistener:")), first)
    assert broken.config == first.config
    without = edit(GOOD, ("\nlisteners:", "\nother:")).replace("\nother:\n", "\nmetadata:\n")
    assert read(without, broken).config.listeners == {}
    assert read(GOOD, broken).config == first.config


def test_a_name_that_cannot_be_used_may_stand_for_one_that_is_missing() -> None:
    first = read(GOOD)
    second = read(edit(GOOD, ("    a.test:", "    A.test:")), first)
    assert second.config.hosts == first.config.hosts
    assert errors(second) == [
        (
            "hosts.default.A.test",
            "until this is mended, nothing of `hosts.default` is removed (1 part stays as it was)",
        )
    ]


def test_an_upstream_that_routes_still_name_stays_with_them() -> None:
    first = read(GOOD)
    second = read(edit(GOOD, ("\n  web:", "\n  www:"), ("\n  db: [", "\n  data: [")), first)
    assert sorted(second.config.upstreams) == ["data", "db", "web", "www"]
    assert second.config.hosts == first.config.hosts
    assert second.config.listeners == first.config.listeners
    again = read(edit(GOOD, ("\n  web:", "\n  www:"), ("\n  db: [", "\n  data: [")), second)
    assert again == second
    mended = edit(GOOD, ("\n  web:", "\n  www:"), ("forward: web", "forward: www"))
    assert sorted(read(mended, again).config.upstreams) == ["db", "www"]


def test_the_same_file_again_changes_nothing() -> None:
    first = read(GOOD)
    broken = edit(GOOD, ("{port: 80}", "{port: 800000}"), ("connect_timeout: 5s", "connect_timeout: soon"))
    second = read(broken, first)
    assert read(broken, second) == second


@pytest.mark.parametrize(
    ("good", "misspelt", "field", "lost"),
    [
        (
            "stream: {forward: db}",
            "stream: {forward: db, allowz: [10.0.0.0/8]}",
            "listeners.db.stream.allowz",
            "listener",
        ),
        ("{port: 80}", "{port: 80, addresz: 127.0.0.1}", "listeners.http.addresz", "listener"),
        (
            "{path: /, forward: web}",
            "{path: /, forward: web, methodz: [GET]}",
            "hosts.default.a.test[0].methodz",
            "route",
        ),
        ('"10.0.0.1:80"]', '"10.0.0.1:80"], tsl: {}', "upstreams.web.tsl", "upstream"),
    ],
)
def test_a_misspelt_key_does_not_open_what_it_should_hold_back(good: str, misspelt: str, field: str, lost: str) -> None:
    text = edit(GOOD, (good, misspelt))
    reading = read(text)
    assert [(one.code, one.field) for one in reading.problems if one.code == "LB5003"] == [("LB5003", field)]
    assert lost == _what_is_missing(reading.config, read(GOOD).config)
    assert read(text, read(GOOD)).config == read(GOOD).config
    harmless = read(edit(GOOD, ("{port: 80}", "{port: 80, of_a_later_version: 1}")))
    assert not _what_is_missing(harmless.config, read(GOOD).config)


def _what_is_missing(new: Config, old: Config) -> str:
    if new.listeners.keys() != old.listeners.keys():
        return "listener"
    if new.upstreams.keys() != old.upstreams.keys():
        return "upstream"
    return "" if len(new.hosts["default"]["a.test"].routes) == 1 else "route"
