"""The daemon: builds the components from Settings, starts them, reloads, drains and stops.

The only file that knows all parts; nothing imports it but the command `lb run`. What happens to objects on their way to
the reactors is in pipeline.py; here is when: at start, when files change, on signals, and at the end.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
import gc
import os
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import structlog
import uvloop
from msgspec.structs import replace

from lb._fastpath.credentials import kernel_tls_missing
from lb._fastpath.engine import HISTOGRAM_BOUNDS_SECONDS, LOG_FIELDS, Engine
from lb.admin.server import AdminServer
from lb.certs.expiry import Expiry
from lb.certs.tickets import KEY_BYTES, TicketKeys, read_keys
from lb.compile.table import Compiler
from lb.demo import EchoProcess, hints
from lb.health.monitor import Monitor
from lb.health.runner import most_at_once
from lb.inbox import Files, Inbox, Names
from lb.objects.core import Secret
from lb.observe.access import compile_format
from lb.observe.ejections import Ejections
from lb.observe.metrics import Metrics
from lb.observe.settings_file import SettingsFile
from lb.observe.shortage import Shortage
from lb.pipeline import Build, Pipeline
from lb.problems import Problem
from lb.settings import ACCESS_LOG_PATH, FieldError, Settings, parse_publish
from lb.sockets import Listeners
from lb.sources.paths import read_regular
from lb.sources.resolve import Resolver
from lb.sources.store import Store
from lb.sources.watch import Watcher
from lb.systemd import Notifier, take_listening_sockets
from lb.translate.options import Options

log = structlog.stdlib.get_logger(__name__)

TICK_SECONDS = 1.0
# A reactor turns at least every 500 ms; one that has not for so long hangs.
STUCK_MS = 5_000
DRAIN_POLL_SECONDS = 0.05
# How often certificates and ticket keys are looked at when no build gives reason to.
LOOK_SECONDS = 60.0
# Descriptors of the control plane besides those of health checks: files, DNS, the admin API.
SPARE_DESCRIPTORS = 64
# Errors of one new input that are written to the log one by one.
ERRORS_TOLD = 20
# For what comes after draining: flushing the log, closing the admin API.
CLOSE_SECONDS = 5.0


def run(
    settings: Settings, options: Options, paths: Sequence[str], *, settings_file: str | None = None, demo: bool = False
) -> NoReturn:
    """Run until a signal says stop, then end the process. OSError, SettingsError, FormatError for what cannot start."""
    prepare_process(settings)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(Application(settings, options, paths, settings_file=settings_file, demo=demo).run())
        # All is written and closed. To free a million objects one by one first, or to wait for a thread that still
        # reads a large export, would only keep whoever restarts us waiting.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def prepare_process(settings: Settings) -> None:
    """No core dumps with keys in them, and as many descriptors as the system allows."""
    if not settings.core_dumps:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        pr_set_dumpable = 4  # prctl(2): also keeps other processes of this user from attaching
        ctypes.CDLL(None).prctl(pr_set_dumpable, 0, 0, 0, 0)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = int(Path("/proc/sys/fs/nr_open").read_text())
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _tell_problem(problem: Problem) -> None:
    tell = log.error if problem.severity == "error" else log.warning
    origin = problem.origin
    place = {"object": origin.object} if origin.kind else {}
    place |= {"place": origin.place} if origin.place else {}
    trace = {"exception": problem.trace} if problem.trace else {}  # shown as that of any exception
    tell(problem.what, code=problem.code, **place, why=problem.why, fix=problem.fix, **trace)


class Application:
    """The components and their common life. Implements lb.admin.daemon.Daemon."""

    def __init__(
        self, settings: Settings, options: Options, paths: Sequence[str], *, settings_file: str | None, demo: bool
    ) -> None:
        """`settings` are those of `settings_file` with the command line's over them."""
        self.settings = settings
        self.settings_file = SettingsFile(settings_file)
        self.started_at = time.time()
        self.threads = settings.thread_count
        checks = most_at_once(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self.tls_kernel = (kernel_tls_missing() or "on") if settings.tls.kernel else "off"
        self.engine = Engine(
            threads=self.threads,
            max_connections=settings.limits.max_connections,
            max_buffer_bytes=settings.limits.max_buffer_bytes,
            spare_descriptors=SPARE_DESCRIPTORS + checks,
            tls_by_kernel=self.tls_kernel == "on",
        )
        self.health = Monitor(self.engine.set_health, checks)
        self._ejections = Ejections(self.engine)
        for answer in settings.error_answers:
            self.engine.set_error_answer(answer.status, answer.content_type, answer.body.encode())
        self._tickets = TicketKeys(self.engine, settings.session_tickets.rotate_ms / 1000)
        self._ticket_error = ""
        self._shortage = Shortage()
        self.expiry = Expiry(settings.certificates.expiry_warning_ms / 1000, _tell_problem)
        self._log_program = compile_format(settings.access_log.format, LOG_FIELDS)
        self._paths = paths
        store = Store()
        self._inbox = Inbox()
        self._files = Files(paths, store, self._inbox)
        publish = parse_publish(settings.publish)
        # Nobody knows which port a proxy has that reaches lb by a Unix socket.
        published = {port: bind.port for (port, transport), bind in publish.items() if bind.port and transport == "tcp"}
        self.listeners = Listeners(self.engine, self.threads, publish, take_listening_sockets())
        compiler = Compiler(self.engine, published, self.listeners.places)
        self.pipeline = Pipeline(store, options, compiler, self.engine)
        self.metrics = Metrics(
            self.engine,
            HISTOGRAM_BOUNDS_SECONDS,
            self.pipeline,
            self.listeners,
            self.expiry,
            self.settings_file,
            self.health,
            settings.metrics,
        )
        self._changed = asyncio.Event()
        self._watcher = Watcher(self._files, self._changed.set)
        self._resolver = Resolver(Names(store, self._inbox), self._changed.set)
        self._admin = AdminServer(self, settings.admin)
        self._notifier = Notifier()
        self._demo = EchoProcess() if demo else None
        self._stopping = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._reload_wanted = False

    # -- What the admin API asks

    def readiness(self) -> tuple[bool, str]:
        """(whether new requests are taken, `serving` or what it waits for)."""
        if self._stopping.is_set():
            return False, "draining"
        if not self.pipeline.generation:
            refused = self.pipeline.last_refused
            return False, f"the first build was refused: {refused.error}" if refused else "reading the input"
        if self.pipeline.config.listeners and not self.listeners.opened:
            return False, "no listener could be opened" if self.listeners.problems else "opening the listeners"
        return True, "serving"

    async def reload(self) -> Build:
        """Read all sources again, now."""
        self._notifier.reloading()
        self.settings_file.look()
        build = await self._apply(lambda: self._files.read(force=True), was_asked=True)
        self._notifier.ready(self._summary())
        return build

    async def _follow_change(self) -> Build:
        """What a source has noticed. The settings of a changed file take no part in the build."""
        if self.settings_file.has_changed:
            self.settings_file.look()
        return await self._apply()

    # -- Life

    async def run(self) -> None:
        """From start to end."""
        self._handle_signals()
        if self.tls_kernel not in ("off", "on"):
            log.warning(
                "`tls.kernel` has no effect: OpenSSL encrypts everything",
                why=self.tls_kernel,
                fix="load the module with `modprobe tls`, or take the setting out",
            )
        try:
            self._open_access_log()
        except OSError as error:
            path = self.settings.access_log.path
            raise FieldError(ACCESS_LOG_PATH, f"{path} cannot be opened: {error.strerror}") from error
        self._tickets.rotate(time.monotonic())
        self.engine.start()
        await self._admin.start()
        try:
            if await self._load_unless_stopped():
                self._notifier.ready(self._summary())
                for work in (self._tick, self._watcher.run, self._build_on_change):
                    self._tasks.append(asyncio.create_task(self._keep_running(work)))
                await self._stopping.wait()
                await self._drain()
        finally:
            await self._close()
        log.info("stopped")

    async def _load_unless_stopped(self) -> bool:
        """Whether the first build came to an end before somebody said stop: a large export takes seconds."""
        loading = asyncio.create_task(self._load())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            stopping.cancel()
            await loading
        return loading.done()

    async def _load(self) -> None:
        """The first build. Objects that stay for good are made here, so the garbage collector keeps out of it."""
        gc.disable()
        await self._apply(self._files.read)
        gc.freeze()
        gc.enable()
        for text in self.listeners.unused():
            log.warning(text)
        if self._demo is not None:
            self._print_hints()

    async def _apply(self, read: Callable[[], object] | None = None, *, was_asked: bool = False) -> Build:
        """One build of what `read` finds and what waits in the inbox, and what follows from it outside the table.

        `was_asked`: somebody waits for the answer, also when it is that nothing has changed.
        """

        def take_in() -> None:
            if read is not None:
                read()
            self._inbox.take_in()

        before = self.pipeline.newest
        build = await self.pipeline.apply(take_in)
        self._look_at_certificates()
        self._follow_ticket_keys()
        config = self.pipeline.config
        if self._demo is not None:
            await self._demo.serve(config)
        self.health.follow(config)
        if not self._stopping.is_set():  # draining has closed them for good
            self.listeners.sync(config.listeners)
        self._resolver.follow(upstream.resolve for upstream in config.upstreams.values() if upstream.resolve)
        self._notifier.status(self._summary())
        # A file that is broken now leaves what serves unchanged; without a line nobody would know.
        is_news = build.outcome != "unchanged" or before is None or build.problems != before.problems
        tell = log.info if is_news or was_asked else log.debug
        tell(
            build.outcome,
            generation=build.generation,
            milliseconds=round(sum(build.seconds.values()) * 1000),
            **build.problems,
        )
        self._tell_new_errors()
        return build

    def _tell_new_errors(self) -> None:
        """Each error of the input once; a count alone would send everybody to look for it."""
        pipeline = self.pipeline
        for problem in pipeline.new_errors[:ERRORS_TOLD]:
            _tell_problem(replace(problem, origin=pipeline.place(problem.origin)))
        if (more := len(pipeline.new_errors) - ERRORS_TOLD) > 0:
            log.error(f"and {more} more errors: `lb ctl problems` shows all")

    def _look_at_certificates(self) -> None:
        refused = self.pipeline.compiler.refused.values()
        config = self.pipeline.config
        self.expiry.look(config.certificates, config.revocation_lists(), refused, time.time())

    def _follow_ticket_keys(self) -> None:
        """Session ticket keys from outside, when the settings name some; those in use stay while these are no good."""
        wanted = self.settings.session_tickets
        try:
            if wanted.files:
                keys = read_keys((path, read_regular(path, KEY_BYTES + 1)) for path in wanted.files)
            elif wanted.secret:
                keys = read_keys(self._keys_of_secret(wanted.secret))
            else:
                return
        except (OSError, ValueError) as error:
            if self._ticket_error != str(error):
                log.error("session ticket keys cannot be read; those in use stay", error=str(error))
            self._ticket_error = str(error)
            return
        self._ticket_error = ""
        if self._tickets.share(keys):
            log.info("session ticket keys taken over", count=len(keys))

    def _keys_of_secret(self, name: str) -> list[tuple[str, bytes]]:
        """ValueError when there is none."""
        stored = self.pipeline.store.get("Secret", *name.split("/"))
        secret = stored.object if stored is not None else None
        if not isinstance(secret, Secret) or not secret.data:
            raise ValueError(f"Secret {name} does not exist, or is empty")
        return [(f"{key} of Secret {name}", base64.b64decode(value)) for key, value in sorted(secret.data.items())]

    async def _drain(self) -> None:
        """Take nothing new, finish what is under way, but no longer than the drain time."""
        drain_seconds = self.settings.drain_timeout_ms / 1000
        log.info("draining", seconds=drain_seconds)
        self._notifier.stopping("draining")
        self._notifier.extend_timeout(drain_seconds + CLOSE_SECONDS)
        self.listeners.close()
        self.engine.drain()
        deadline = time.monotonic() + drain_seconds
        while any(self.engine.active()) and time.monotonic() < deadline and not self._stop_now.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop_now.wait(), DRAIN_POLL_SECONDS)
        exchanges, connections = self.engine.active()
        if exchanges:
            log.warning("requests were cut off", exchanges=exchanges, connections=connections)

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._resolver.close()
        self.health.close()
        self.listeners.close()
        self.engine.flush_log()
        self.engine.stop()
        await self._admin.stop()
        if self._demo is not None:
            await self._demo.stop()

    # -- Work that goes on

    async def _keep_running(self, work: Callable[[], Awaitable[None]]) -> None:
        """Nothing here may end while lb serves: what fails is told and started again."""
        while True:
            try:
                await work()
            except Exception:
                log.exception("starting again", work=work.__name__)
                await asyncio.sleep(TICK_SECONDS)

    async def _tick(self) -> None:
        """Free old tables; see to certificates and ticket keys; tell of ejected endpoints, and systemd that all
        reactors turn."""
        patience = self._notifier.watchdog_seconds / 2 or TICK_SECONDS
        stuck: set[int] = set()
        looked_at = time.monotonic()
        while True:
            if not self.pipeline.lock.locked():  # a build may be about to use what nobody uses now
                self.engine.collect()
                if not self._stopping.is_set():
                    self.listeners.retry(self.pipeline.config.listeners)
            self._tickets.rotate(time.monotonic())
            counted = self.engine.counters()
            self._shortage.look(counted["accept_pauses"], counted["descriptors"], time.monotonic())
            if time.monotonic() - looked_at >= LOOK_SECONDS:
                looked_at = time.monotonic()
                self._look_at_certificates()
                self._follow_ticket_keys()
            self._ejections.look()
            ages = self.engine.heartbeat_ages_ms()
            late = {thread for thread, age_ms in enumerate(ages) if age_ms > STUCK_MS}
            for thread in late - stuck:
                log.error("reactor does not turn", thread=thread, since_ms=ages[thread])
            stuck = late
            if not late:
                self._notifier.watchdog()
            await asyncio.sleep(min(TICK_SECONDS, patience))

    async def _build_on_change(self) -> None:
        """Serve what sources brought."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            wanted, self._reload_wanted = self._reload_wanted, False
            await (self.reload() if wanted else self._follow_change())

    # -- Signals

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._on_reload)
        loop.add_signal_handler(signal.SIGUSR1, self._on_reopen)
        loop.add_signal_handler(signal.SIGTERM, self._on_stop)
        loop.add_signal_handler(signal.SIGINT, self._on_stop)

    def _on_reload(self) -> None:
        self._reload_wanted = True
        self._changed.set()

    def _on_reopen(self) -> None:
        try:
            self._open_access_log()
        except OSError as error:
            log.error("access log cannot be reopened; the old file stays in use", error=str(error))

    def _on_stop(self) -> None:
        if self._stopping.is_set():
            self._stop_now.set()
        self._stopping.set()

    def _open_access_log(self) -> None:
        """OSError when the file cannot be opened."""
        path = self.settings.access_log.path
        if not path:
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.dup(sys.stdout.fileno()) if path == "-" else os.open(path, flags, 0o640)
        try:
            self.engine.open_log(descriptor, self._log_program)
        finally:
            os.close(descriptor)

    # -- Texts

    def _summary(self) -> str:
        config = self.pipeline.config
        hosts = sum(len(hosts) for hosts in config.hosts.values())
        ready, why = self.readiness()
        state = "" if ready else f"{why}; "
        return f"{state}generation {self.pipeline.generation}: {hosts} hosts, {len(config.upstreams)} upstreams"

    def _print_hints(self) -> None:
        """Commands to try, for people who look at the demo."""
        opened = next(iter(self.listeners.opened.values()), None)
        if opened is not None:
            lines = hints(self.pipeline.config, opened.address.replace("*", "127.0.0.1"), self._paths[0])
            print("Try:", *(f"  {line}" for line in lines), sep="\n", flush=True)
