"""deploy/: what the files promise each other and the server."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from kiban.serve.auth import read_keys
from kiban.serve.limits import FREE
from kiban.serve.server import LAST_WORDS
from kiban.serve.settings import Limits

DEPLOY = Path(__file__).parents[2] / "deploy"


def _options(arguments: list[str]) -> dict[str, str]:
    """Options of a command line, as `kiban serve` reads them: it refuses others."""
    import typer.main

    from kiban.cli.main import app

    command: Any = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    context = command.make_context("serve", list(arguments))
    return dict(context.params)


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    """What the Kubernetes example makes, by kind and name."""
    found = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8")))
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in found}


def test_kubernetes_server_and_its_options_agree(objects: dict[str, dict[str, Any]]) -> None:
    deployment = objects["Deployment/kiban"]["spec"]
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    options = _options(container["args"])
    assert pod["terminationGracePeriodSeconds"] > options["drain"] + 2 * LAST_WORDS
    assert deployment["replicas"] == 1 and deployment["strategy"]["type"] == "Recreate"  # one ledger
    (port,) = container["ports"]
    assert options["host"] == "0.0.0.0" and options["port"] == port["containerPort"] == 8000
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": port["name"]} and "/healthz" in FREE
    annotations = deployment["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == "8000" and annotations["prometheus.io/path"] == "/metrics"
    assert "/metrics" not in FREE  # so the scrape has a key, in prometheus.yml
    assert float(container["resources"]["limits"]["cpu"]) == int(
        next(one["value"] for one in container["env"] if one["name"] == "OMP_NUM_THREADS")
    )
    (service,) = objects["Service/kiban"]["spec"]["ports"]
    assert service["targetPort"] == port["name"]
    assert objects["Service/kiban"]["spec"]["selector"] == deployment["selector"]["matchLabels"]
    assert deployment["template"]["metadata"]["labels"] == deployment["selector"]["matchLabels"]


def test_kubernetes_files_lie_where_the_options_say(objects: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    pod = objects["Deployment/kiban"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = _options(container["args"])
    mounts = {Path(mount["mountPath"]): mount for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    secret = volumes[mounts[options["keys"].parent]["name"]]["secret"]["secretName"]
    claim = volumes[mounts[options["ledger"].parent]["name"]]["persistentVolumeClaim"]["claimName"]
    assert f"PersistentVolumeClaim/{claim}" in objects and not mounts[options["ledger"].parent].get("readOnly")
    (tmp_path / "keys.json").write_text(objects[f"Secret/{secret}"]["stringData"][options["keys"].name], "utf-8")
    keys = read_keys(tmp_path / "keys.json")
    assert keys.keys == () and not keys.open  # closed until somebody puts a key there
    own = pod["securityContext"], container["securityContext"]
    assert own[0]["runAsNonRoot"] and own[1]["readOnlyRootFilesystem"] and not own[1]["allowPrivilegeEscalation"]
    assert own[1]["capabilities"] == {"drop": ["ALL"]} and Path("/tmp") in mounts
    for claim in ("kiban-data", "kiban-models"):
        assert objects[f"PersistentVolumeClaim/{claim}"]["spec"]["resources"]["requests"]["storage"]


def test_prometheus_scrapes_with_a_key() -> None:
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    assert job["metrics_path"] == "/metrics" and job["authorization"]["type"] == "Bearer"
    assert job["authorization"]["credentials_file"]


def test_the_scrapes_key_reads_metrics_and_nothing_more(serve: Any, tiny_chat: Any, keys_file: Any) -> None:
    """As prometheus.yml promises."""
    path, tokens = keys_file(prometheus={"monthly_budget": 0})
    live = serve(tiny_chat(), keys=path, price_per_hour=50.0)
    assert live.get("/metrics").status_code == 401
    answer = live.get("/metrics", key=tokens["prometheus"])
    assert answer.status_code == 200 and "kiban_running" in answer.text
    asked = live.post("/v1/completions", {"model": "tiny-chat", "prompt": "x"}, key=tokens["prometheus"])
    assert asked.status_code == 429 and asked.json()["error"]["code"] == "insufficient_quota"


def _unit() -> dict[str, str]:
    lines = (DEPLOY / "kiban.service").read_text("utf-8").replace("\\\n", " ").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and line[0] not in "#[")


def test_the_unit_and_its_options_agree() -> None:
    unit = _unit()
    program, verb, *arguments = shlex.split(unit["ExecStart"])
    assert Path(program).name == "kiban" and verb == "serve"
    options = _options(arguments)
    assert int(unit["TimeoutStopSec"]) > options["drain"] + 2 * LAST_WORDS
    assert unit["KillSignal"] == "SIGTERM" and unit["KillMode"] == "mixed"
    name, _, file = unit["LoadCredential"].partition(":")
    assert str(options["keys"]) == f"%d/{name}" and file.startswith("/etc/")
    assert str(options["ledger"]).startswith(f"%S/{unit['StateDirectory']}/")
    assert int(unit["LimitNOFILE"]) > 2 * Limits().max_connections
    assert {unit[name] for name in ("DynamicUser", "NoNewPrivileges", "ProtectHome")} == {"yes"}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    text = (DEPLOY / "kiban.service").read_text("utf-8").replace("/opt/kiban/bin/kiban", sys.executable)
    (tmp_path / "kiban.service").write_text(text, "utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / "kiban.service")], capture_output=True, text=True
    )
    assert done.returncode == 0 and "kiban.service" not in done.stderr, done.stderr


def test_the_image_serves_as_the_server_wants_it() -> None:
    text = (DEPLOY / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    steps = [line.split(" ", 1) for line in text.splitlines() if line and line[0] not in "# "]
    last = dict(steps)  # of each kind the last one counts
    assert last["USER"] == "kiban" and json.loads(last["ENTRYPOINT"]) == ["kiban", "serve"]
    options = _options(json.loads(last["CMD"]))
    assert options["host"] == "0.0.0.0" and str(options["keys"].parent) in last["VOLUME"].split()
    check = json.loads(last["HEALTHCHECK"].partition("CMD ")[2])
    assert f"http://127.0.0.1:{options['port']}/healthz" in check[2] and last["EXPOSE"] == str(options["port"])
    copied = {name for kind, rest in steps if kind == "COPY" and "--from" not in rest for name in rest.split()[:-1]}
    allowed = set(re.findall(r"^!(\S+)", (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8"), re.M))
    assert copied == allowed and all((DEPLOY.parent / name).exists() for name in copied)


def test_the_image_holds_all_that_the_source_does() -> None:
    """It installs a wheel, in which files that are not Python are only if pyproject.toml says so."""
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text("utf-8"))
    told = {pattern.removeprefix("**/*") for pattern in project["tool"]["setuptools"]["package-data"]["kiban"]}
    files = [path for path in (DEPLOY.parent / "src" / "kiban").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} - {".py", ".pyc", ".typed"} == told - {"py.typed"}
