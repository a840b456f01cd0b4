"""What the verbs take and read: paths and the options of translation, and from them the Config and its problems."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
import msgspec

from lb.model.config import Config
from lb.objects.view import Changes
from lb.problems import Problem, Problems
from lb.settings import Kubernetes, Settings, SettingsError, check_name, load_settings, problem_with
from lb.sources.files import STDIN, read_paths
from lb.sources.store import Store
from lb.translate.translation import Options, translate

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


class Flags(msgspec.Struct, frozen=True):
    """The options of translation as given on the command line; None and () where they are not given."""

    classes: tuple[str, ...] = ()
    take_over: tuple[str, ...] = ()
    targets: Literal["endpoints", "nodeports"] | None = None
    node_selector: dict[str, str] | None = None
    node_address: Literal["InternalIP", "ExternalIP"] | None = None
    load_balancers: bool = False
    tcp_services: str = ""
    udp_services: str = ""
    ssl_passthrough: bool = False

    def apply(self, kubernetes: Kubernetes) -> Kubernetes:
        """`kubernetes` with what was given in place of what it says."""
        given = {name: value for name in self.__struct_fields__ if (value := getattr(self, name))}
        return msgspec.structs.replace(kubernetes, **given)


class Input(msgspec.Struct, frozen=True):
    """All that was read."""

    settings: Settings
    store: Store
    config: Config
    problems: tuple[Problem, ...]


class _Labels(click.ParamType[dict[str, str]]):
    """`a=b,c=d` as a dict."""

    name = "labels"

    def convert(
        self, value: str | dict[str, str], param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, str]:
        if isinstance(value, dict):
            return value
        labels = {}
        for label in value.split(","):
            name, equals, text = label.partition("=")
            if not equals or not name:
                self.fail(f"{value!r} is not like NAME=VALUE,NAME=VALUE", param, ctx)
            labels[name.strip()] = text.strip()
        return labels


class _Name(click.ParamType[str]):
    """NAMESPACE/NAME of an object."""

    name = "name"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            if value:
                check_name(value)
        except SettingsError as error:
            self.fail(str(error), param, ctx)
        return value


_TRANSLATION = (
    click.option(
        "--class", "classes", multiple=True, metavar="NAME", help="Also serve this Ingress class. Repeatable."
    ),
    click.option(
        "--take-over",
        multiple=True,
        metavar="CONTROLLER",
        help="Serve what names this controller or loadBalancerClass, such as k8s.io/ingress-nginx. Repeatable.",
    ),
    click.option(
        "--targets",
        type=click.Choice(["endpoints", "nodeports"]),
        help="Send requests to pod addresses (the default) or to node ports.",
    ),
    click.option(
        "--node-selector", type=_Labels(), metavar="NAME=VALUE,…", help="Labels that a node must have to be a target."
    ),
    click.option(
        "--node-address",
        type=click.Choice(["InternalIP", "ExternalIP"]),
        help="Which address of a node is the target; InternalIP when not given.",
    ),
    click.option(
        "--load-balancers", is_flag=True, help="Serve every Service of type LoadBalancer that has no class of its own."
    ),
    click.option(
        "--tcp-services",
        type=_Name(),
        default="",
        metavar="NAMESPACE/NAME",
        help="ConfigMap that maps TCP ports to Services, as ingress-nginx reads it.",
    ),
    click.option(
        "--udp-services",
        type=_Name(),
        default="",
        metavar="NAMESPACE/NAME",
        help="ConfigMap that maps UDP ports to Services.",
    ),
    click.option(
        "--ssl-passthrough",
        is_flag=True,
        help="Pass TLS through where an Ingress says so by ingress-nginx's annotation ssl-passthrough.",
    ),
)


def translation_options(function: FunctionT) -> FunctionT:
    """Adds the options of translation. The function gets them as one argument, `flags: Flags`."""

    @functools.wraps(function)
    def collect(**arguments: Any) -> Any:  # noqa: ANN401  # click passes on whatever the command takes and returns
        given = {name: arguments.pop(name) for name in Flags.__struct_fields__}
        return function(flags=Flags(**given), **arguments)

    for option in reversed(_TRANSLATION):
        collect = option(collect)
    return collect  # type: ignore[return-value]  # click's decorators keep the function


def config_option(function: FunctionT) -> FunctionT:
    """Adds `-c FILE`. The function gets it as `config_file: str | None`."""
    return click.option(
        "-c",
        "--config",
        "config_file",
        type=click.Path(exists=True, dir_okay=False),
        metavar="FILE",
        help="Native file whose settings count; it is read like a PATH, too.",
    )(function)


def publish_option(function: FunctionT) -> FunctionT:
    """Adds `--publish PORT=ADDR:PORT[/udp]`. The function gets it as `publish: tuple[str, ...]`."""
    return click.option(
        "--publish",
        multiple=True,
        metavar="PORT=ADDR:PORT[/udp]",
        help="Bind the listener of PORT there, such as 80=127.0.0.1:8080 or 53=:5353/udp. Repeatable.",
    )(function)


def path_arguments(function: FunctionT) -> FunctionT:
    """Adds `[PATH]...`. The function gets them as `paths: tuple[str, ...]`."""
    return click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path())(function)


def check_paths(paths: Sequence[str]) -> None:
    """UsageError for one that does not exist: mistyped, it would start a healthy load balancer that serves nothing, or
    look as if everything were removed.

    While lb runs it may come and go: what is away then keeps what it had.
    """
    for path in paths:
        try:
            if path != STDIN:
                Path(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            raise click.UsageError(f"PATH {path} does not exist") from None
        except OSError:
            continue  # it is there, and its problem says why it cannot be read


def read_input(paths: Sequence[str], config_file: str | None, flags: Flags, *, only_settings: bool = False) -> Input:
    """Read and translate everything. What is wrong with it is in `problems`; UsageError when nothing is named.

    With `only_settings` the routes of `config_file` are left out.
    """
    extra = () if config_file is None or only_settings or config_file in paths else (config_file,)
    names = [*paths, *extra]
    if not names:
        raise click.UsageError("name at least one PATH to read, or - for standard input")
    settings, problems = _read_settings(config_file)
    with _uncollected():
        store = read_paths(names)
        translation = translate(store, make_options(settings, flags, config_file), Changes(everything=True), None)
    return Input(
        settings, store, translation.config, tuple(Problems([*problems, *store.problems(), *translation.problems]))
    )


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keeps the garbage collector out while objects are made that stay: it would walk over them again and again, which
    costs an export of 100,000 objects a third of its time. Reference counts free what does not stay."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def make_options(settings: Settings, flags: Flags, config_file: str | None = None) -> Options:
    """The options of translation: the settings, which are those of `config_file`, and the command line over them."""
    kubernetes = flags.apply(settings.kubernetes)
    defaults = settings.defaults
    return Options(
        classes=kubernetes.classes,
        take_over=kubernetes.take_over,
        targets=kubernetes.targets,
        node_selector=kubernetes.node_selector,
        node_address=kubernetes.node_address,
        port=kubernetes.port,
        https_port=kubernetes.https_port,
        tls_policy=kubernetes.tls_policy,
        hsts=kubernetes.hsts,
        load_balancers=kubernetes.load_balancers,
        tcp_services=kubernetes.tcp_services,
        udp_services=kubernetes.udp_services,
        ssl_passthrough=kubernetes.ssl_passthrough,
        balance=defaults.balance,
        http=defaults.http,
        stream=defaults.stream,
        datagram=defaults.datagram,
        route=defaults.route,
        upstream=defaults.upstream,
        health_check=defaults.health_check,
        settings_file=config_file or "",
    )


def _read_settings(config_file: str | None) -> tuple[Settings, list[Problem]]:
    """The settings, or the built-in ones and the Problem with those of the file."""
    if config_file is None:
        return Settings(), []
    try:
        return load_settings(config_file), []
    except SettingsError as error:
        return Settings(), [problem_with(config_file, error, _UNSETTLED)]


_UNSETTLED = "`lb run` does not start with it; what is told besides is so with the built-in settings"
