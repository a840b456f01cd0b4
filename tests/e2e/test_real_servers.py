"""PostgreSQL, Redis and dnsmasq through TCP listeners, spoken to by their own clients, while tables swap underneath."""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.certificates import Authority
from tests.harness.daemons import dnsmasq, postgres, program, redis, run
from tests.harness.native import Native
from tests.harness.ports import free_port
from tests.harness.serving import Serving, serving
from tests.harness.waiting import wait_until


@contextlib.contextmanager
def swapping(site: Serving) -> Iterator[None]:
    """The table is another one all the time meanwhile, at least four times in all: listeners, upstreams and endpoints
    come and go beside what is tested.
    """
    over = threading.Event()
    failures: list[BaseException] = []

    def swap() -> None:
        number = 0
        try:
            while not over.is_set() or number < 4:
                number += 1
                site.native.upstream("beside", [f"127.0.0.1:{1 + number % 3}"])
                site.native.carry(f"beside-{number % 2}", beside[number % 2], "beside")
                site.native.listeners.pop(f"beside-{(number + 1) % 2}", None)
                site.apply()
        except BaseException as error:
            failures.append(error)

    beside = free_port(), free_port()
    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert failures == []


def all_ok(site: Serving, listener: str, *others: str) -> int:
    """How many connections there were; none of them may have ended by anything but itself."""
    wait_until(lambda: site.lb.metric("lb_listener_connections_active", listener=listener) == 0, "all have ended")
    count = int(site.lb.metric("lb_listener_request_duration_seconds_count", listener=listener))
    records = site.lb.wait_log(count, listener=listener)
    assert len(records) == count
    assert {record["reason"] for record in records} <= {"ok", *others}
    return count


# ----------------------------------------------------------------------------------------------------------- PostgreSQL


class Database:
    """PostgreSQL behind lb, and its clients."""

    def __init__(self, site: Serving, authority_file: Path) -> None:
        self.site = site
        self.authority_file = authority_file
        self.port = site.address("db")[1]
        self.environment = {
            "PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": "tester", "PGDATABASE": "postgres",
            "PGSSLMODE": "disable", "PGOPTIONS": "", "PSQLRC": "/dev/null",
        }  # fmt: skip

    def run(self, *command: str, text: str = "", **environment: str) -> str:
        return run(*command, text=text, environment=self.environment | environment)

    def query(self, text: str, **environment: str) -> str:
        return self.run("psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-f", "-", text=text, **environment).strip()

    def session(self) -> subprocess.Popen[str]:
        """A psql that takes statements as they come."""
        return subprocess.Popen(
            [program("psql") or "", "-qAtX"], text=True, env=self.environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    authority = Authority()
    directory = tmp_path_factory.mktemp("postgres")
    native = Native()
    with postgres(authority) as port:
        native.upstream("db", [f"127.0.0.1:{port}"])
        native.carry("db", free_port(), "db")
        (directory / "ca.pem").write_text(authority.pem)
        with serving(directory / "lb", native) as site:
            yield Database(site, directory / "ca.pem")


def test_many_short_sessions(database: Database) -> None:
    """A connection for each transaction, from many clients at once."""
    database.run("pgbench", "-i", "-q", "-s", "1")
    before = all_ok(database.site, "db")
    with swapping(database.site):
        told = database.run("pgbench", "-n", "-C", "-S", "-c", "10", "-j", "2", "-t", "40")
    assert "number of transactions actually processed: 400/400" in told
    assert "number of failed transactions: 0" in told
    assert all_ok(database.site, "db") - before >= 400


def test_one_session_lives_across_swaps(database: Database) -> None:
    """Temporary tables and transactions belong to a session: nobody else's would know of them."""
    with database.session() as session:
        assert session.stdin is not None
        assert session.stdout is not None

        def ask(statement: str) -> str:
            session.stdin.write(f"{statement};\n")
            session.stdin.flush()
            return session.stdout.readline().strip()

        first = ask("create temp table seen (number int); select pg_backend_pid()")
        with swapping(database.site):
            for number in range(200):
                assert ask(f"begin; insert into seen values ({number}); commit; select pg_backend_pid()") == first
        assert ask("select count(*), sum(number) from seen") == "200|19900"
        session.stdin.close()
        assert session.wait() == 0
    all_ok(database.site, "db")


def test_copy_carries_each_byte_both_ways(database: Database) -> None:
    chance = random.Random(7)
    lines = "".join(f"{number}\t{chance.randbytes(60).hex()}\n" for number in range(60_000))
    with swapping(database.site):
        database.query("drop table if exists copied; create table copied (number int, noise text)")
        database.run("psql", "-qX", "-c", "\\copy copied from pstdin", text=lines)
        back = database.run("psql", "-qX", "-c", "\\copy (select * from copied order by number) to pstdout")
    assert hashlib.sha256(back.encode()).digest() == hashlib.sha256(lines.encode()).digest()
    all_ok(database.site, "db")


def test_a_query_is_cancelled_through_lb(database: Database) -> None:
    """psql asks for it by a connection of its own (PostgreSQL documentation, 55.2.8)."""
    with database.session() as session:
        assert session.stdin is not None
        session.stdin.write("select pg_sleep(300);\n")
        session.stdin.flush()
        active = "select count(*) from pg_stat_activity where query like '%pg_sleep(300)%' and pid <> pg_backend_pid()"
        wait_until(lambda: database.query(active + " and state = 'active'") == "1", "it sleeps", interval=0.1)
        session.send_signal(signal.SIGINT)
        _, complaints = session.communicate(timeout=60)
    assert "canceling statement due to user request" in complaints
    assert database.query(active) == "0"


def test_tls_begins_inside_the_stream(database: Database) -> None:
    """It is the server's own certificate that the client sees, and checks."""
    strict = {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": str(database.authority_file)}
    mine = "select ssl, version from pg_stat_ssl where pid = pg_backend_pid()"
    assert database.query(mine, **strict) == "t|TLSv1.3"
    assert database.query(mine) == "f|"
    told = database.query("select sum(length(repeat('x', 1000000))) from generate_series(1, 5)", **strict)
    assert told == "5000000"
    sent = database.query("select md5(repeat('lb', 2000000)), repeat('lb', 2000000)", **strict)
    checksum, _, text = sent.partition("|")
    assert hashlib.md5(text.encode()).hexdigest() == checksum


# ---------------------------------------------------------------------------------------------------------------- Redis


class Cache:
    """Redis behind lb, and its clients."""

    def __init__(self, site: Serving) -> None:
        self.site = site
        self.place = ("-h", "127.0.0.1", "-p", str(site.address("cache")[1]))

    def cli(self, *arguments: str, text: str = "") -> str:
        return run("redis-cli", *self.place, *arguments, text=text).strip()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cache]:
    native = Native()
    with redis() as port:
        native.upstream("cache", [f"127.0.0.1:{port}"])
        native.carry("cache", free_port(), "cache")
        with serving(tmp_path_factory.mktemp("redis"), native) as site:
            yield Cache(site)


def test_many_clients_and_pipelines(cache: Cache) -> None:
    with swapping(cache.site):
        for keepalive in ("1", "0"):
            told = run(
                "redis-benchmark", *cache.place, "-n", "1500", "-c", "40", "-P", "8" if keepalive == "1" else "1",
                "-k", keepalive, "-t", "set,get,lpush,lrange_100", "-d", "700", "--csv",
            )  # fmt: skip
            assert "error" not in told.lower()
            assert len(told.strip().splitlines()) >= 4
    assert all_ok(cache.site, "cache", "client-reset") > 1_500


def test_a_mass_insertion_keeps_its_order(cache: Cache) -> None:
    """One stream of commands, and one of answers that is much shorter: 3 MB in, then read back and compared."""
    cache.cli("flushall")
    commands = []
    for number in range(40_000):
        words = ("RPUSH", f"list-{number % 7}", f"value {number}")
        commands.append(f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words))
    with swapping(cache.site):
        assert "errors: 0, replies: 40000" in cache.cli("--pipe", text="".join(commands))
    for name in range(7):
        expected = [f"value {number}" for number in range(name, 40_000, 7)]
        assert cache.cli("lrange", f"list-{name}", "0", "-1").splitlines() == expected


def test_a_large_value(cache: Cache) -> None:
    value = random.Random(11).randbytes(8 << 20).hex()
    assert cache.cli("-x", "set", "large", text=value) == "OK"
    assert hashlib.sha256(cache.cli("get", "large").encode()).digest() == hashlib.sha256(value.encode()).digest()


def test_subscriptions_live_across_swaps(cache: Cache) -> None:
    command = [program("redis-cli") or "", *cache.place, "--csv", "subscribe", "news"]
    listeners = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(5)]
    try:
        subscribed = [f'"news",{len(listeners)}', f"news\n{len(listeners)}"]
        wait_until(lambda: cache.cli("--csv", "pubsub", "numsub", "news") in subscribed, "all listen")
        with swapping(cache.site):
            for number in range(30):
                assert cache.cli("publish", "news", f"number {number}") == "5"
        for one in listeners:
            assert one.stdout is not None
            while not one.stdout.readline().startswith('"subscribe"'):
                pass
            heard = [re.findall(r'"message","news","(.*)"', one.stdout.readline())[0] for _ in range(30)]
            assert heard == [f"number {number}" for number in range(30)]
    finally:
        for one in listeners:
            one.terminate()
            one.communicate()


# ----------------------------------------------------------------------------------------------------------------- DNS


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    records = [f"--address=/host-{number}.lb.test/192.0.2.{number}" for number in range(1, 100)]
    native = Native()
    with dnsmasq(*records, *(f"--txt-record=long.lb.test,{letter * 250}" for letter in "abcdefgh")) as port:
        native.upstream("names", [f"127.0.0.1:{port}"])
        native.carry("names", free_port(), "names")
        with serving(tmp_path_factory.mktemp("dns"), native) as site:
            yield site


def test_names_are_resolved_over_tcp(names: Serving, tmp_path: Path) -> None:
    """Many questions, each with a connection of its own, and then all over one."""
    asked = tmp_path / "names"
    asked.write_text("".join(f"host-{number}.lb.test\n" for number in range(1, 100)))
    server = ("@127.0.0.1", "-p", str(names.address("names")[1]), "+tcp", "+short", "+tries=1")
    expected = [f"192.0.2.{number}" for number in range(1, 100)]
    with swapping(names):
        assert run("dig", *server, "-f", str(asked)).split() == expected
        assert run("dig", *server, "+keepopen", "-f", str(asked)).split() == expected
    long = run("dig", *server, "long.lb.test", "TXT").splitlines()
    assert sorted(long) == [f'"{letter * 250}"' for letter in "abcdefgh"]
    assert all_ok(names, "names") >= 100
