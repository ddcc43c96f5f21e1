"""Whatever is sent along the OpenAPI description, the answer is one of the contract's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ADMIN_KEY, Start, curl


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
