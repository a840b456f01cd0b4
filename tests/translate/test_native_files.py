"""Native files that are read again with mistakes in them, beside others and beside objects."""

from __future__ import annotations

from lb.model.health import HealthCheck
from lb.model.stream import StreamOptions
from lb.model.upstream import UpstreamOptions
from lb.objects.decode import decode
from lb.problems import Problem
from lb.sources.store import Store
from lb.translate.translation import Options, Translation, translate
from tests.translate.cluster import backend

HEAD = "apiVersion: lb/v1\nkind: Config\n"
ROUTES = f"{HEAD}hosts:\n  default:\n    a.test: [{{path: /, forward: web}}]\n"
UPSTREAMS = f'{HEAD}upstreams:\n  web: ["10.0.0.1:80"]\n'


class Files:
    """Files that change, and what they mean together."""

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()
        self.store = Store()
        self.translation: Translation | None = None

    def write(self, **texts: str | None) -> Translation:
        """`None` removes a file."""
        for name, text in texts.items():
            file = f"{name}.yaml"
            if text is None:
                self.store.remove_file(file)
                continue
            parts = decode(text.encode(), file).parts()
            assert not parts.rejected
            self.store.replace_file(file, parts.stored)
        self.translation = translate(self.store, self.options, self.store.take_changes(), self.translation)
        return self.translation

    @property
    def errors(self) -> list[Problem]:
        assert self.translation is not None
        return [one for one in self.translation.problems if one.severity == "error"]


def test_a_mistake_in_a_file_leaves_what_it_says_to_others() -> None:
    files = Files()
    before = files.write(routes=ROUTES, upstreams=UPSTREAMS).config
    assert not files.errors
    after = files.write(upstreams=UPSTREAMS.replace("upstreams:", "upstraems:")).config
    assert after == before
    (error,) = files.errors
    assert (error.code, error.field, error.origin.file, error.origin.line) == (
        "LB5003",
        "upstraems",
        "upstreams.yaml",
        3,
    )
    assert files.write(upstreams=UPSTREAMS).config == before
    assert not files.errors


def test_defaults_hold_for_native_parts_and_a_file_read_again_changes_nothing() -> None:
    options = Options(
        balance="least-connections",
        stream=StreamOptions(max_connections_per_client=9),
        upstream=UpstreamOptions(connect_timeout_ms=700),
        health_check=HealthCheck("tcp"),
    )
    listener = "listeners: {db: {port: 5432, protocol: tcp, stream: {forward: web}}}\n"
    files = Files(options)
    before = files.write(
        routes=ROUTES + listener, upstreams=UPSTREAMS, others=ROUTES.replace("web", "gone").replace("a.test", "b.test")
    )
    stream = before.config.listeners["db"].stream
    assert stream is not None
    assert stream.options == options.stream
    for name in ("web", "gone"):
        upstream = before.config.upstreams[name]
        assert (upstream.balance, upstream.options) == ("least-connections", options.upstream)
        assert upstream.health_check.type == "off"  # native upstreams speak for themselves
    assert files.write(upstreams=UPSTREAMS).config is before.config
    assert files.write(upstreams=f"# a comment\n{UPSTREAMS}").config.upstreams["web"].options == options.upstream


def test_an_upstream_that_another_file_still_names_stays() -> None:
    """The two files are one change, and the first half of it does no harm."""
    files = Files()
    before = files.write(routes=ROUTES, upstreams=UPSTREAMS).config
    renamed = files.write(upstreams=UPSTREAMS.replace("web:", "www:")).config
    assert renamed.upstreams["web"] == before.upstreams["web"]
    assert renamed.hosts == before.hosts
    (error,) = files.errors
    assert (error.code, error.origin.line) == ("LB5004", 5)
    assert "stays in use" in error.why
    done = files.write(routes=ROUTES.replace("forward: web", "forward: www")).config
    assert list(done.upstreams) == ["www"]
    assert not files.errors


def test_a_part_that_moves_to_another_file_with_a_mistake_stays() -> None:
    files = Files()
    before = files.write(routes=ROUTES, upstreams=UPSTREAMS).config
    both = ROUTES + UPSTREAMS.removeprefix(HEAD).replace("10.0.0.1:80", "10.0.0.1")
    assert files.write(routes=both, upstreams=None).config.upstreams == before.upstreams
    (error,) = files.errors
    assert (error.code, error.field) == ("LB5003", "upstreams.web[0].address")


def test_a_part_with_a_mistake_is_not_mistaken_for_that_of_another_file() -> None:
    files = Files()
    files.write(a=UPSTREAMS, b=UPSTREAMS.replace("10.0.0.1:80", "10.0.0.1"))
    told = files.errors
    assert [one.why for one in told] == [""]
    files.write(c=ROUTES)
    assert files.errors == told
    # The first one is good, and what is wrong with the second one takes nothing from it.
    before = files.write(a=UPSTREAMS).config
    assert files.write(a=UPSTREAMS.replace("10.0.0.1:80", "10.0.0.1")).config == before


def test_a_file_that_is_removed_takes_with_it_what_stayed() -> None:
    files = Files()
    files.write(routes=ROUTES, upstreams=UPSTREAMS)
    files.write(routes=ROUTES.replace("hosts:", "host:"))
    after = files.write(routes=None).config
    assert "default" not in after.hosts
    assert not files.errors
    # It comes back with its mistake: there is nothing to go back to.
    assert "default" not in files.write(routes=ROUTES.replace("hosts:", "host:")).config.hosts


def test_what_stayed_follows_the_objects_it_names() -> None:
    files = Files()
    text = ROUTES.replace("forward: web", "forward: shop/web:80")
    files.write(routes=text, cluster=backend("web", "10.0.0.1"))
    files.write(routes=text.replace("path: /", "path: 7"))
    (error,) = files.errors
    after = files.write(cluster=backend("web", "10.0.0.1", "10.0.0.2")).config
    assert len(after.upstreams["shop/web:80"].endpoints) == 2
    assert files.errors == [error]


def test_what_stays_is_the_same_value_and_is_not_compiled_again() -> None:
    files = Files()
    before = files.write(routes=ROUTES, upstreams=UPSTREAMS).config
    after = files.write(routes=ROUTES.replace("path: /", "path: 7")).config
    assert after.hosts["default"]["a.test"] is before.hosts["default"]["a.test"]
    assert after.upstreams["web"] is before.upstreams["web"]
