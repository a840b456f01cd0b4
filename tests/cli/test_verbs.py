"""The other verbs, and the command itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import yaml
from click.testing import Result

from lb import __version__
from lb.cli.main import VERBS, main
from lb.model.config import Config
from lb.model.text import from_content
from lb.problems import Origin
from tests.model.json_schema import errors

Lb = Callable[..., Result]
ROOT = Path(__file__).parent.parent.parent


def test_help_names_every_verb(lb: Lb) -> None:
    result = lb("--help")
    assert result.exit_code == 0
    assert all(f"  {verb} " in result.stdout and text in result.stdout for verb, text in VERBS.items())


def test_every_verb_has_a_command_that_says_the_same() -> None:
    context = click.Context(main)
    for verb, text in VERBS.items():
        command = main.get_command(context, verb)
        assert command is not None
        assert command.get_short_help_str(100) == text


def test_help_imports_nothing_of_the_verbs() -> None:
    code = (
        "import sys\nfrom lb.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([name for name in sys.modules if name.startswith('lb.') and name not in ('lb.cli', 'lb.cli.main')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"


def test_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lb", "--version"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == f"lb {__version__}\n"


def test_wrong_verb_gets_a_suggestion(lb: Lb) -> None:
    result = lb("xplain")
    assert result.exit_code == 2
    assert "there is no command `xplain`; did you mean `explain`?" in result.stderr


def load(text: str) -> Config:
    config, problems = from_content(yaml.safe_load(text), Origin())
    assert problems == []
    return config


def test_render_reads_back_equal(lb: Lb, tmp_path: Path) -> None:
    first = lb("render", "shop.yaml", "export.json")
    assert first.exit_code == 1
    assert "errors in the input" in first.stderr
    rendered = tmp_path / "rendered.yaml"
    rendered.write_text(first.stdout)
    second = lb("render", str(rendered))
    assert second.exit_code == 0
    assert load(second.stdout) == load(first.stdout)
    assert lb("diff", str(rendered), str(rendered)).exit_code == 0


def test_diff_tells_effects(lb: Lb, tmp_path: Path) -> None:
    text = Path("shop.yaml").read_text()
    changed = tmp_path / "changed.yaml"
    changed.write_text(text.replace("10.1.0.11", "10.1.0.13").replace("path: /healthz", "path: /health"))
    result = lb("diff", "shop.yaml", str(changed))
    assert result.exit_code == 1
    assert "~ route       shop/web:0:3 now takes exact /health instead of exact /healthz" in result.stdout
    assert "- endpoint    drains endpoint 10.1.0.11:8080 of shop/web:80" in result.stdout
    assert result.stdout.splitlines()[-1] == "1 added, 1 removed, 1 changed"
    told = json.loads(lb("diff", "--json", "shop.yaml", str(changed)).stdout)
    assert [change["what"] for change in told] == ["changed", "removed", "added"]


def test_diff_says_once_what_kind_of_thing_changes_and_counts_errors(lb: Lb, tmp_path: Path) -> None:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    head = "apiVersion: lb/v1\nkind: Config\nupstreams:\n"
    old.write_text(f"{head}  a: {{endpoints: ['10.0.0.1:80']}}\n")
    new.write_text(f"{head}  a: {{endpoints: ['10.0.0.1:80'], balance: least-connections}}\n  b: {{endpoints: [x]}}\n")
    result = lb("diff", str(old), str(new))
    assert "~ upstream    a: balance round-robin -> least-connections" in result.stdout
    assert f"1 error in {new};" in result.stderr


def test_diff_of_the_same_exits_with_0(lb: Lb) -> None:
    result = lb("diff", "shop.yaml", "shop.yaml")
    assert (result.exit_code, result.stdout) == (0, "nothing changes\n")


def test_diff_takes_only_the_settings_of_its_config(lb: Lb, tmp_path: Path) -> None:
    """Its routes would be the same on both sides, and hide those that A or B have under the same names."""
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    text = Path("lb.yaml").read_text()
    old.write_text(text)
    new.write_text(text.replace("10.2.0.2:80", "10.2.0.9:80"))
    result = lb("diff", str(old), str(new), "-c", "lb.yaml")
    assert result.exit_code == 1
    assert "- endpoint    drains endpoint 10.2.0.2:80 of new" in result.stdout
    # kubernetes.port of lb.yaml is 8081, on both sides.
    assert "8081" in lb("diff", str(old), "shop.yaml", "-c", "lb.yaml").stdout


def test_diff_tells_what_other_defaults_change(lb: Lb, tmp_path: Path) -> None:
    old, new, settings = (tmp_path / f"{name}.yaml" for name in ("old", "new", "settings"))
    head = "apiVersion: lb/v1\nkind: Config\n"
    settings.write_text(f"{head}settings: {{defaults: {{upstream: {{connect_timeout: 700ms}}}}}}\n")
    old.write_text(f"{head}upstreams: {{web: {{endpoints: ['10.0.0.1:80']}}}}\n")
    new.write_text(f"{head}upstreams: {{web: {{endpoints: ['10.0.0.1:80'], connect_timeout: 700ms}}}}\n")
    assert lb("diff", str(old), str(new), "-c", str(settings)).stdout == "nothing changes\n"
    assert "connect_timeout 5s -> 700ms" in lb("diff", str(old), str(new)).stdout
    rendered = tmp_path / "rendered.yaml"
    rendered.write_text(lb("render", str(old), "-c", str(settings)).stdout)
    assert "connect_timeout: 700ms" in rendered.read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "shop.yaml"),
        ("diff", "shop.yaml", "export.json"),
        ("explain", "http://shop.example.com/", "shop.yaml"),
    ],
)
def test_json_has_two_spellings(lb: Lb, arguments: tuple[str, ...]) -> None:
    told = [lb(*arguments, *form).stdout for form in (("-o", "json"), ("--json",), ("--output", "json"))]
    assert told[0] == told[1] == told[2]
    assert json.loads(told[0])
    assert "--json" not in lb(arguments[0], "--help").stdout  # documented in one form


@pytest.mark.parametrize("place", [0, 1])
def test_diff_of_a_file_that_does_not_exist_is_wrong_usage(lb: Lb, place: int) -> None:
    paths = ["shop.yaml", "shop.yaml"]
    paths[place] = "nofile.yaml"
    result = lb("diff", *paths)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "PATH nofile.yaml does not exist" in result.stderr


def test_diff_needs_two(lb: Lb) -> None:
    assert lb("diff", "shop.yaml").exit_code == 2


def test_schema_takes_the_examples(lb: Lb) -> None:
    schema = json.loads(lb("schema").stdout)
    assert schema["properties"]["settings"]["properties"]["drain_timeout"]["default"] == "30s"
    examples = [path for path in sorted((ROOT / "conf").rglob("*.yaml")) if "apiVersion: lb/v1" in path.read_text()]
    assert ROOT / "conf/lb.yaml" in examples
    for path in examples:
        assert errors(schema, yaml.safe_load(path.read_text())) == [], path
    assert errors(schema, {"apiVersion": "lb/v1", "kind": "Config", "settings": {"kubernetes": {"prt": 1}}}) != []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(lb: Lb, shell: str) -> None:
    result = lb("completion", shell)
    assert result.exit_code == 0
    assert "_LB_COMPLETE" in result.stdout


def test_completion_of_a_verb_works() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lb"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"_LB_COMPLETE": "bash_complete", "COMP_WORDS": "lb exp", "COMP_CWORD": "1"},
    )
    assert done.stdout == "plain,explain\n"


def test_manual_page_has_all_verbs_and_options(lb: Lb) -> None:
    page = lb("man").stdout
    assert page.startswith('.TH LB 1 ""')
    for verb in VERBS:
        assert f".SS lb {verb}" in page
    assert r"\fB\-\-take\-over CONTROLLER\fR" in page
    assert ".SS lb ctl log\\-level" in page
    assert not [line for line in page.splitlines() if line.startswith(("'", ". ", ".["))]


@pytest.mark.parametrize("option", [["--class", "nginx"], ["--take-over", "k8s.io/ingress-nginx"]])
def test_translation_options_reach_translation(lb: Lb, option: list[str]) -> None:
    classed = Path("shop.yaml").read_text().replace("spec:\n  rules", "spec:\n  ingressClassName: nginx\n  rules", 1)
    other = "apiVersion: networking.k8s.io/v1\nkind: IngressClass\nmetadata: {name: %s}\nspec: {controller: %s}\n---\n"
    classes = other % ("nginx", "k8s.io/ingress-nginx") + other % ("lb", "lb/ingress")
    assert load(lb("render", "-", input=classes + classed).stdout).hosts.get("ingress", {}) == {}
    assert "shop.example.com" in load(lb("render", *option, "-", input=classes + classed).stdout).hosts["ingress"]


def test_node_ports_with_a_node_selector(lb: Lb) -> None:
    service = (
        Path("shop.yaml")
        .read_text()
        .replace("  selector: {app: web}", "  type: NodePort\n  selector: {app: web}")
        .replace("port: 80, targetPort", "port: 80, nodePort: 30080, targetPort")
    )
    node = (
        "---\napiVersion: v1\nkind: Node\nmetadata: {name: %s, labels: {edge: '%s'}}\n"
        "status: {conditions: [{type: Ready, status: 'True'}], addresses: [{type: InternalIP, address: %s}, "
        "{type: ExternalIP, address: %s}]}\n"
    )
    text = service + node % ("n1", "yes", "10.9.0.1", "192.0.2.1") + node % ("n2", "no", "10.9.0.2", "192.0.2.2")
    arguments = ["--targets", "nodeports", "--node-selector", "edge=yes", "--node-address", "ExternalIP"]
    upstream = load(lb("render", *arguments, "-", input=text).stdout).upstreams["shop/web:80"]
    assert [endpoint.key for endpoint in upstream.endpoints] == ["192.0.2.1:30080"]
