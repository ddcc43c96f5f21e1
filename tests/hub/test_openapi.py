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
    assert curl(f"{hub.url}/docs").status == 200


@pytest.mark.slow
def test_no_request_along_the_description_is_a_failure_of_ours(
    start: Start, tmp_path: Path
) -> None:
    """schemathesis makes the requests, right ones and wrong ones."""
    most = "1000000"
    limits = ("--registrations", most, "--pushes", most, "--posts", most, "--diffs", most)
    hub = start("--open-registration", *limits)
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
