"""`lb check`: places, groups, exit statuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Lb = Callable[..., Result]
Golden = Callable[[str, str], None]

GOOD = """\
apiVersion: lb/v1
kind: Config
listeners: {http: {port: 80}}
hosts: {default: {a.example.com: [{forward: web}]}}
upstreams: {web: [10.0.0.1:80]}
"""
SHADOWED = GOOD.replace("[{forward: web}]", "[{forward: web}, {path: /x, forward: web}]")


def test_all_problems_are_told_with_places(lb: Lb, golden: Golden) -> None:
    result = lb("check", "shop.yaml", "export.json", "lb.yaml")
    golden("check.txt", result.stdout)
    assert result.exit_code == 1


def test_problems_as_json(lb: Lb) -> None:
    result = lb("check", "lb.yaml", "-o", "json")
    told = json.loads(result.stdout)
    assert result.exit_code == 1
    problem = next(one for one in told["problems"] if "hed_timeout" in one["what"])
    assert problem == {
        "code": "LB5003",
        "severity": "error",
        "title": "native file is not valid",
        "object": "lb.yaml",
        "file": "lb.yaml",
        "line": 6,
        "column": 58,
        "item": "",
        "field": "listeners.admin.http.hed_timeout",
        "what": "`hed_timeout` is not known here",
        "why": "",
        "fix": "did you mean `head_timeout`?",
    }
    assert told["summary"]["error"] == len([one for one in told["problems"] if one["severity"] == "error"])
    assert told["summary"]["listener"] == 1


def test_no_problem_exits_with_0(lb: Lb) -> None:
    result = lb("check", "-", input=GOOD)
    assert (result.exit_code, result.stdout) == (
        0,
        "no problems; serves 1 listener, 1 host, 1 route, 1 upstream, 1 endpoint\n",
    )


def test_warnings_count_as_errors_when_strict(lb: Lb) -> None:
    assert lb("check", "-", input=SHADOWED).exit_code == 0
    result = lb("check", "--strict", "-", input=SHADOWED)
    assert result.exit_code == 1
    assert "warning[LB3007]" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [[], ["--targets", "nothing", "shop.yaml"], ["--nope"], ["-c", "absent.yaml"], ["--node-selector", "a", "."]]
    + [[option, name, "."] for option in ("--tcp-services", "--udp-services") for name in ("foo", "foo/", "a/b/c")],
)
def test_wrong_usage_exits_with_2(lb: Lb, arguments: list[str]) -> None:
    result = lb("check", *arguments)
    assert result.exit_code == 2
    assert "Usage: lb check" in result.stderr


def test_missing_and_broken_files_are_problems(lb: Lb, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("kind: Ingress\nspec: {rules: [\n")
    result = lb("check", str(broken), "absent.yaml", "shop.yaml")
    assert result.exit_code == 1
    assert "error[LB1001]" in result.stdout
    assert f"{broken}:" in result.stdout
    assert "route" in result.stdout


def test_settings_are_checked_and_count(lb: Lb, tmp_path: Path) -> None:
    file = tmp_path / "lb.yaml"
    file.write_text(GOOD + "settings:\n  kubernetes:\n    prt: 80\n")
    result = lb("check", "-c", str(file))
    assert result.exit_code == 1
    assert f"{file}:8:5: error[LB5003]: settings.kubernetes.prt: unknown field; did you mean `port`?" in result.stdout
    assert "    why: `lb run` does not start with it" in result.stdout


SETTINGS = "settings:\n  access_log: {path: PATH}\n"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("{here}/nowhere/access.log", "there is no directory {here}/nowhere"),
        ("{here}", "it is a directory"),
        ("{here}/access.log", ""),
        ("{here}/old.log", ""),
        ("'-'", ""),
    ],
)
def test_a_log_that_cannot_be_opened_is_told_and_nothing_is_made(lb: Lb, tmp_path: Path, path: str, why: str) -> None:
    file, old = tmp_path / "lb.yaml", tmp_path / "old.log"
    old.write_text("old\n")
    log = path.format(here=tmp_path)
    file.write_text(GOOD + SETTINGS.replace("PATH", log))
    result = lb("check", "-c", str(file))
    assert result.exit_code == 0
    assert ("LB5016" in result.stdout) == bool(why)
    if why:
        told = f"{file}:7:22: warning[LB5016]: settings.access_log.path: {log} cannot be opened: "
        assert told + why.format(here=tmp_path) in result.stdout
    assert sorted(one.name for one in tmp_path.iterdir()) == ["lb.yaml", "old.log"]
    assert old.read_text() == "old\n"


def test_settings_without_c_are_told(lb: Lb, tmp_path: Path) -> None:
    file, other = tmp_path / "lb.yaml", tmp_path / "other.yaml"
    file.write_text(GOOD + SETTINGS.replace("PATH", "'-'"))
    other.write_text("apiVersion: lb/v1\nkind: Config\nsettings: {threads: 2}\n")
    told = lb("check", str(file)).stdout
    assert f"{file}:6:1: warning[LB5015]: the settings in {file} have no effect" in told
    assert "why: no file is named by -c\n" in told
    assert f"fix: name the file by -c, as in `lb run -c {file}`, or take the section out\n" in told
    for arguments in (
        ("-c", str(file)),
        (str(file), "-c", str(file)),
        (str(tmp_path / "." / "lb.yaml"), "-c", str(file)),
    ):
        assert "LB5015" not in lb("check", *arguments).stdout
    told = lb("check", "-c", str(file), str(other)).stdout
    assert f"the settings in {other} have no effect" in told
    assert f"why: the settings of {file} count\n" in told
    assert told.count("LB5015") == 1


def test_a_key_of_data_and_of_annotations_has_its_own_line(lb: Lb, tmp_path: Path) -> None:
    file = tmp_path / "objects.yaml"
    file.write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: tcp, namespace: shop}\ndata:\n"
        '  "5431": shop/db:5432\n'
        '  "5432": db:5432\n'
        "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: db\n  namespace: shop\n  annotations:\n"
        "    lb/load-balancer: 'true'\n"
        "    lb/addresses: 192.0.2\n"
        "spec: {type: LoadBalancer, ports: [{port: 5432}]}\n"
    )
    told = lb("check", "--tcp-services", "shop/tcp", str(file)).stdout
    assert f"{file}:6:11: error[LB4013]" in told
    assert f"{file}:15:19: error[LB5001]" in told


def test_what_cannot_be_read_comes_before_what_is_missing_for_it(lb: Lb, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD.replace("{forward: web}", "{forward: shop/db:5432}"))
    (tmp_path / "b.yaml").write_text("apiVersion: v1\nkind: Service\nmetadata:\n  name: db\n   namespace: shop\n")
    codes = re.findall(r"error\[(LB\d+)\]", lb("check", str(tmp_path)).stdout)
    assert codes == ["LB1002", "LB4001"]


def test_long_lines_are_cut_around_the_place(lb: Lb, tmp_path: Path) -> None:
    file = tmp_path / "long.yaml"
    entries = ", ".join(f"{{path: /a{number}, forward: web}}" for number in range(9))
    file.write_text(
        GOOD.replace("{forward: web}", f"{entries}, {{path: b, forward: web}}, {entries.replace('/a', '/c')}")
    )
    lines = lb("check", str(file)).stdout.splitlines()
    marker = next(index for index, line in enumerate(lines) if line.endswith("^"))
    excerpt = lines[marker - 1]
    assert excerpt[lines[marker].index("^") :].startswith("b, forward: web}")
    assert len(excerpt) < 130


def test_objects_do_not_steer_the_terminal(lb: Lb) -> None:
    """A name that would set its title, or colours, is shown as it is (kubectl's CVE-2021-25743)."""
    told = lb("check", "-", input=GOOD.replace("forward: web", r'forward: "\e]0;owned\a\r\x9b31mweb"'))
    assert told.exit_code == 1
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", told.stdout), repr(told.stdout)
    assert r"\x1b]0;owned" in told.stdout
    assert r"\x9b31mweb" in told.stdout


LOAD_BALANCERS = """\
apiVersion: v1
kind: Service
metadata: {name: first, namespace: shop, creationTimestamp: "2025-01-01T00:00:00Z"}
spec: {type: LoadBalancer, ports: [{port: 5432, nodePort: 31000}]}
---
apiVersion: v1
kind: Service
metadata: {name: second, namespace: shop, creationTimestamp: "2026-01-01T00:00:00Z"}
spec: {type: LoadBalancer, ports: [{port: PORT, nodePort: 31001}]}
---
apiVersion: v1
kind: Service
metadata: {name: inside, namespace: shop}
spec: {ports: [{port: 6000}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: ports, namespace: shop}
data: {"6001": "shop/SERVICE:6000"}
---
apiVersion: v1
kind: Node
metadata: {name: a}
status: {addresses: [{type: InternalIP, address: 10.1.0.1}]}
"""


@pytest.mark.parametrize(
    ("port", "entry", "code"),
    [("5433", "first:5432", ""), ("5432", "first:5432", "LB4011"), ("5433", "inside:6000", "LB4006")],
)
def test_what_is_not_served_as_written_exits_with_1(lb: Lb, port: str, entry: str, code: str) -> None:
    """A port that another object has, and one whose every connection is reset: a step of CI must not let them pass."""
    objects = LOAD_BALANCERS.replace("PORT", port).replace("SERVICE:6000", entry)
    flags = ("--load-balancers", "--targets", "nodeports", "--tcp-services", "shop/ports", "-o", "json")
    result = lb("check", "-", *flags, input=objects)
    told = [one["code"] for one in json.loads(result.stdout)["problems"] if one["severity"] == "error"]
    assert (told, result.exit_code) == ([code] if code else [], 1 if code else 0)
