"""Whatever is sent along the OpenAPI description, the answer is one of the contract's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ADMIN_KEY, Start, ask, curl


def test_the_description_names_every_route(start: Start) -> None:
    hub = start()
    paths = curl(f"{hub.url}/openapi.json").json["paths"]
    for path in ("/api/git/push", "/api/git/fetch/{name}", "/api/channels/{name}/posts"):
        assert path in paths
    typed = {
        "/api/tasks": {"get", "post"}, "/api/results": {"get", "post"},
        "/api/results/{number}": {"get"}, "/api/leaderboard": {"get"},
        "/api/claims": {"get", "post"}, "/api/claims/{number}": {"get", "delete"},
        "/api/best": {"get", "post"},
    }  # fmt: skip
    assert {path: set(paths[path]) for path in typed} == typed
    body = paths["/api/results"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["additionalProperties"] is False
    assert set(body["required"]) == {"name", "commit", "platform", "metric", "status"}
    assert curl(f"{hub.url}/docs").status == 200


OPEN = {("get", "/api/health"), ("post", "/api/register")}


def test_no_other_route_answers_without_a_key(start: Start) -> None:
    url = start("--registrations", "0").url
    wrong = ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"})
    for path, methods in ask("GET", f"{url}/openapi.json").json["paths"].items():
        for method in methods:
            for headers in wrong if (method, path) not in OPEN else ():
                answer = ask(method.upper(), url + re.sub(r"{\w+}", "1234", path), **headers)
                assert answer.status == 401 and answer.error, (method, path, headers)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_request_along_the_description_is_a_failure_of_ours(
    start: Start, tmp_path: Path
) -> None:
    """schemathesis makes the requests, right ones and wrong ones."""
    most = "1000000"
    limits = ("registrations", "pushes", "posts", "diffs", "results", "claims")
    options = [word for name in limits for word in (f"--{name}", most)]
    hub = start("--open-registration", *options)
    key = hub.agent("fuzz", "admin").key
    for token in (key, ADMIN_KEY):
        done = subprocess.run(
            [
                sys.executable, "-m", "schemathesis.cli", "run", f"{hub.url}/openapi.json",
                "--checks", "not_a_server_error", "--max-examples", "40", "--seed", "1",
                "-H", f"Authorization: Bearer {token}", "--exclude-path-regex", "re(voke|tate)",
                "--suppress-health-check", "all",
            ],
            capture_output=True, text=True, timeout=600, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
