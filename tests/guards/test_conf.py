"""What stands in conf/ is valid, and the schema there is that of the code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lb.sources.files import read_paths
from tests.guards.sources import ROOT, name
from tests.harness.certificates import Authority
from tests.model.json_schema import errors

CONF = ROOT / "conf"
SCHEMA = CONF / "lb.schema.json"
NATIVE = [path for path in sorted(CONF.rglob("*.yaml")) if "apiVersion: lb/v1" in path.read_text()]


def test_schema_is_up_to_date() -> None:
    assert json.loads(SCHEMA.read_text()) == json.loads(_lb("schema").stdout), "run `make schema`"


@pytest.mark.parametrize("path", NATIVE, ids=name)
def test_native_files_fit_the_schema(path: Path) -> None:
    assert errors(json.loads(SCHEMA.read_text()), yaml.safe_load(path.read_text())) == []


@pytest.mark.parametrize("path", NATIVE, ids=name)
def test_native_files_name_the_schema_for_editors(path: Path) -> None:
    first = path.read_text().split("\n")[0]
    relative = os.path.relpath(SCHEMA, path.parent)
    assert first == f"# yaml-language-server: $schema={relative}"


def test_example_has_no_problems() -> None:
    done = _lb("check", "-c", "conf/lb.yaml")
    assert (done.returncode, done.stdout.split(";")[0]) == (0, "no problems")


def test_its_tls_example_has_no_problems(tmp_path: Path) -> None:
    """The parts that name files are comments, because there are no such files beside it."""
    authority = Authority()
    pair = authority.issue("shop.example.com", "api.example.com")
    (tmp_path / "certs").mkdir()
    for path in (tmp_path / "shop", tmp_path / "certs/shop"):
        path.with_suffix(".crt").write_text(pair.chain)
        path.with_suffix(".key").write_text(pair.key)
    (tmp_path / "clients-ca.pem").write_text(authority.pem)
    text = (CONF / "lb.yaml").read_text()
    for indent in ("", "      "):
        commented = re.search(rf"^{indent}# certificates:.*\n(?:{indent}# .*\n)*", text, re.MULTILINE)
        assert commented
        block = commented[0]
        text = text.replace(block, re.sub(rf"^{indent}# ", indent, block, flags=re.MULTILINE))
    (tmp_path / "lb.yaml").write_text(text)
    content = yaml.safe_load(text)
    assert content["certificates"].keys() == {"shop", "site"}
    assert content["listeners"]["secure"]["tls"]["hosts"]["api.example.com"]["clients"]["mode"] == "required"
    done = _lb("check", "-c", str(tmp_path / "lb.yaml"))
    assert (done.returncode, done.stdout.split(";")[0]) == (0, "no problems"), done.stdout


def test_demo_shows_what_exports_look_like() -> None:
    """Several namespaces, both formats, a pod that is not ready, a Service without endpoints, fields lb ignores."""
    store = read_paths([str(CONF / "demo")])
    assert {namespace for namespace, _ in store.all("Ingress")} == {"shop", "blog", "internal"}
    assert store.counts().keys() >= {"EndpointSlice", "Endpoints", "IngressClass", "NativeConfig", "Node", "Service"}
    exported = (CONF / "demo/shop.json").read_text()
    assert '"managedFields"' in exported
    assert '"ready": false' in exported
    found = json.loads(_lb("check", "--output", "json", "conf/demo").stdout)
    codes = [problem["code"] for problem in found["problems"]]
    assert codes == ["LB2001", "LB4003"]


def _lb(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lb", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
