"""The pages about the hub are true: commands run, recipes are valid, messages exist.

Each page is one shell session, in its order, as its reader would type it. `STAND_INS` are all that
is run in another form. A `hub serve` stays in its terminal: here in the background, on a free port.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import typer

from autohypothesis.engine.project import make_repository
from autohypothesis.hub.protocol import PAGE_LIMIT, POST_LIMIT
from autohypothesis.hub.server.settings import Hourly, HubLimits
from autohypothesis.records.normal_form import tree_of
from tests.conftest import copy_of_the_project
from tests.hub.conftest import Agent, Clone, Hub, curl

from .test_documents import FENCE, IDENTITY, ROOT, commit_all, git

HUB_PAGE, AGENTS_PAGE = "docs/hub.md", "program_agenthub.md"
PORTS = ("8000", "8001", "8002")
SERVE = "python orchestrator.py hub serve"
STOP = "# stop the hub: Ctrl-C, or systemctl stop"
STAND_INS = {
    SERVE: f"serve {SERVE}",
    STOP: "stop_first",
    # The reader's edit of train.py.
    "# edit train.py: one idea": "sed -i 's/^MATRIX_LR = .*/MATRIX_LR = 0.07/' train.py",
    # What is thrown away is another commit than the one that was sent before.
    "git reset -q --hard": "git commit -q --allow-empty -m worse; git reset -q --hard",
}
SESSION = """
set -euo pipefail
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT
serve() {
    local port
    port=$(grep -oE -- '--port [0-9]+' <<< "$*" | cut -d' ' -f2)
    "$@" &
    pids+=($!)
    curl -s -o /dev/null --retry 600 --retry-connrefused --retry-delay 1 \\
        "http://127.0.0.1:$port/api/health"
}
stop_first() { kill "${pids[0]}"; wait "${pids[0]}" || true; }
set -x
"""
CURL = """#!/bin/sh
# The real curl; an answer that is a refusal fails, which a reader sees and a test has to.
exec {curl} --fail-with-body "$@"
"""


def free_ports(count: int) -> list[int]:
    """Ports that are free now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def page_lines(page: str) -> str:
    """The `sh` blocks of a page."""
    text = "".join(FENCE.findall((ROOT / page).read_text(encoding="utf-8")))
    for before, after in STAND_INS.items():
        text = re.sub(rf"(?m)^{re.escape(before)}", after, text)
    return text


@pytest.fixture
def reader(tmp_path: Path) -> dict[str, str]:
    """The environment of a user with a home of their own, our Python, and the checking curl."""
    tools, home = tmp_path / "tools", tmp_path / "home"
    tools.mkdir()
    home.mkdir()
    (tools / "curl").write_text(CURL.format(curl=shutil.which("curl")))
    (tools / "curl").chmod(0o755)
    own = {
        "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "AUTOHYPOTHESIS_LOCKS": str(tmp_path / "locks"),
        "GIT_CONFIG_GLOBAL": "/dev/null",
    }
    without = (
        "AGENTHUB_CONFIG", "HUB", "HUB_KEY",
        "AUTOHYPOTHESIS_CONFIG", "AUTOHYPOTHESIS_HUB_ADMIN_KEY",
    )  # fmt: skip
    inherited = {name: value for name, value in os.environ.items() if name not in without}
    return {**inherited, **IDENTITY, **own}


def session(lines: str, cwd: Path, environment: dict[str, str]) -> str:
    """Return what the lines print; each of them has to succeed."""
    for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True):
        lines = lines.replace(name, str(port))
    done = subprocess.run(
        ["bash", "-c", SESSION + lines], cwd=cwd, env=environment,
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-6000:]}"
    return done.stdout


# ── docs/hub.md ─────────────────────────────────────────────────────────────────────────────

ASKED_IN_THE_END = """
before=$(ls "$HOME"/.config/autohypothesis/hubs/*.before)
key=$(python -c "import json, sys; print(json.load(open(sys.argv[1]))['api_key'])" "$before")
number=0
for port in 8000 8002; do
    ask() { curl -s "http://127.0.0.1:$port/api/$1" -H "Authorization: Bearer $key" -o "../$2$number"; }
    ask git/leaves leaves
    leaf=$(python -c "import json, sys; print(json.load(open(sys.argv[1]))[0]['hash'])" "../leaves$number")
    ask "git/fetch/$leaf" bundle
    git bundle verify -q "../bundle$number"
    ask channels/discussion/posts posts
    ask results results
    number=$((number + 1))
done
"""  # noqa: E501


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_of_the_hub_from_its_start_to_a_restored_backup(
    tmp_path: Path, reader: dict[str, str], search: Path
) -> None:
    """The hub after its `git gc` and the one from the backup hold all that was told."""
    session(page_lines(HUB_PAGE) + ASKED_IN_THE_END, search, reader)
    rows = [json.loads(line) for line in (search / "experiments.jsonl").read_text().splitlines()]
    assert len(rows) >= 3
    for number in (0, 1):
        (post,) = json.loads((tmp_path / f"posts{number}").read_text())
        assert post["content"] == "has anyone tried GeLU?"
        told = json.loads((tmp_path / f"results{number}").read_text())
        assert {one["name"].split(":")[0] for one in told} == {row["id"] for row in rows}
        assert {one["status"] for one in told} <= {"keep", "discard", "replicate"}
        assert {one["source"] for one in told} == {"typed"}
    assert (tmp_path / "grace.key").read_text().startswith("ahk_")


def test_the_readme_shows_commands_that_the_page_runs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^python orchestrator\.py hub .+$", readme, re.MULTILINE)
    run = "".join(FENCE.findall((ROOT / HUB_PAGE).read_text(encoding="utf-8")))
    assert len(shown) == 2 and all(line in run for line in shown)


# ── program_agenthub.md ─────────────────────────────────────────────────────────────────────

SCRIPT = """# A stand-in for a training: it prints what one prints.
MATRIX_LR = 0.04
print(f"val_bpb: {1 + abs(MATRIX_LR - 0.08):.6f}")
print("peak_vram_mb: 45060.2")
"""
PAIR = {
    "train.py": SCRIPT,
    "prepare.py": "# data and evaluation\n",
    "pyproject.toml": "[project]\nname = 'autoresearch'\nversion = '0'\n",
}


@dataclass
class Visitor:
    """Another agent, who was here first: a baseline, a better commit, a result and a question."""

    agent: Agent
    clone: Clone
    task_hash: str
    platform_key: str
    commits: list[str]
    result: int = 0

    @classmethod
    def make(cls, hub: Hub, root: Path) -> Visitor:
        clone = Clone.make(root)
        task_hash = sha256((PAIR["prepare.py"] + PAIR["pyproject.toml"]).encode()).hexdigest()
        key = sha256(f"H100\n{task_hash}\n300\n".encode()).hexdigest()
        made = cls(hub.agent("grace"), clone, task_hash, key, [])
        for rate, message in (("0.04", "baseline"), ("0.06", "a higher rate")):
            for name, content in PAIR.items():
                (root / name).write_text(content.replace("MATRIX_LR = 0.04", f"MATRIX_LR = {rate}"))
            clone.git("add", "-A")
            clone.git("commit", "-q", "-m", message)
            made.commits.append(clone.git("rev-parse", "HEAD"))
        return made

    def tell(self) -> None:
        assert self.agent.push(self.clone.bundle()).status == 201
        terms = {"metric": "val_bpb", "direction": "minimize", "min_delta": 0.002}
        task = {"task_hash": self.task_hash, "name": "autoresearch", **terms}
        assert self.agent.send("/api/tasks", task).status == 201
        result = {
            "name": "e-2", "commit": self.commits[-1], "platform": "H100", "metric": "val_bpb",
            "platform_key": self.platform_key, "task_hash": self.task_hash, "value": 1.02,
            "status": "keep", "description": "a higher rate",
        }  # fmt: skip
        self.result = self.agent.send("/api/results", result).json["id"]
        assert self.agent.send("/api/best", {"result": self.result, "expected": None}).status == 200
        self.agent.send("/api/channels", {"name": "discussion"})
        post = {"content": "has anyone gone above 0.1?"}
        assert self.agent.send("/api/channels/discussion/posts", post).status == 201


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    started = Hub(tmp_path / "hub", ("--open-registration",)).start()
    yield started
    started.end()


@pytest.fixture
def search(tmp_path: Path) -> Path:
    """A repository with the pair, on which our command line works."""
    root = tmp_path / "autoresearch"
    root.mkdir()
    for name, content in PAIR.items():
        (root / name).write_text(content)
    shutil.copy2(ROOT / "orchestrator.py", root / "orchestrator.py")
    commit_all(root)
    return root


@pytest.mark.timeout(900)
def test_the_page_for_agents_from_its_start_to_its_end(
    tmp_path: Path, reader: dict[str, str], hub: Hub, search: Path
) -> None:
    """Every line of it, as an agent that comes second; then, what the hub holds."""
    grace = Visitor.make(hub, tmp_path / "grace")
    grace.tell()
    lines = page_lines(AGENTS_PAGE).replace("http://127.0.0.1:8000", hub.url)
    uv = {"UV_NO_SYNC": "1", "UV_PROJECT_ENVIRONMENT": str(Path(sys.executable).parents[1])}
    session(lines, search, {**reader, **uv})
    told = {one["name"]: one for one in grace.agent.get("/api/results?agent=my-machine")}
    check_told(dict(told), grace)
    (best,) = grace.agent.get("/api/best")
    assert best["result"]["id"] == told["higher-rate-1"]["id"]
    verified = grace.agent.get(f"/api/results/{grace.result}")
    assert (verified["state"], verified["reproduced"]) == ("reproduced", 1)
    assert grace.agent.get("/api/claims") == [], "the result has closed the claim"
    check_talk(grace.agent)


def check_told(told: dict[str, Any], grace: Visitor) -> None:
    """One result for each thing, whether its line came too or not."""
    mine = told.pop("higher-rate-1")
    assert (mine["value"], mine["source"], mine["memory_gb"]) == (1.01, "typed", 44.0)
    assert mine["post_id"] is not None, "the line and the result are one"
    edited = SCRIPT.replace("MATRIX_LR = 0.04", "MATRIX_LR = 0.07").encode()
    assert mine["tree"] == tree_of({"train.py": edited}), "the page's shell makes the normal form"
    again = told.pop(f"again-{grace.result}")
    assert (again["verifies"], again["value"]) == (grace.result, 1.02)
    (line,) = told.values()
    assert line["source"] == "line" and "a little higher" in line["description"]
    pushed = grace.agent.get("/api/git/commits?agent=my-machine")
    assert mine["commit"] in [one["hash"] for one in pushed]
    assert any(one["hash"].startswith(line["commit"]) for one in pushed)


def check_talk(agent: Agent) -> None:
    posts = agent.get("/api/channels/discussion/posts")
    question = posts[-1]["id"]
    assert [one["parent_id"] for one in posts] == [question, None, question, None]


def blocks(language: str) -> list[str]:
    text = (ROOT / HUB_PAGE).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_an_orphan_branch_takes_the_lock_file_that_uv_made(tmp_path: Path) -> None:
    """In a clone and in a repository that `new` makes, as in those of the published protocol."""
    clone, made = tmp_path / "clone", tmp_path / "made"
    copy_of_the_project(clone)
    assert not (clone / "uv.lock").exists() and (clone / ".python-version").exists()
    commit_all(clone)
    make_repository(made)
    for root, more in ((clone, ["pyproject.toml"]), (made, [])):
        (root / "uv.lock").write_text("version = 1\n")
        git(root, "checkout", "-q", "--orphan", "agenthub")
        git(root, "reset", "-q")
        git(root, "add", "train.py", "prepare.py", "uv.lock", *more)
        git(root, "commit", "-qm", "baseline")
        files = ["prepare.py", *more, "train.py", "uv.lock"]
        assert git(root, "ls-tree", "--name-only", "HEAD").split() == files


def test_the_messages_that_are_explained_are_said_somewhere() -> None:
    page = (ROOT / HUB_PAGE).read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(.+?)` \| ", page.split("## When something is refused")[1], re.M)
    assert len(rows) > 15
    folders = (ROOT / "autohypothesis" / "hub", ROOT / "autohypothesis" / "commands")
    said = [
        text
        for folder in folders
        for path in folder.rglob("*.py")
        for text in strings(ast.parse(path.read_bytes()))
    ]
    for row in rows:
        chunks = re.split(r"\b[A-Z]{3,}\b", row)
        pattern = re.compile(".+".join(map(re.escape, chunks)), re.DOTALL)
        whole = re.compile(re.escape(row))
        assert any(pattern.search(text) or whole.search(text) for text in said), row


def strings(tree: ast.AST) -> list[str]:
    """Every text of a module, with a mark where a value is put in."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (one.value if isinstance(one, ast.Constant) else "\0" for one in node.values)
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def test_the_limits_that_are_named_are_the_defaults() -> None:
    from autohypothesis.commands.main import app

    root: Any = typer.main.get_command(app)
    serve = root.commands["hub"].commands["serve"]
    defaults = {name: one.default for one in serve.params for name in one.opts}
    page = (ROOT / HUB_PAGE).read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(--[a-z-]+)` \| (\d+) \| ", page, re.M))
    assert {name: int(value) for name, value in rows.items()} == {
        name: value
        for name, value in defaults.items()
        if isinstance(value, int) and not isinstance(value, bool) and name != "--port"
    }
    limits, text = HubLimits(), page.split("## Limits")[1]
    assert Hourly().address_factor == 20 and "An address may do twenty times" in text
    assert (limits.json_bytes, POST_LIMIT) == (64 << 10, 32 << 10)
    assert f"{PAGE_LIMIT:,} rows" in text and f"{limits.diff_bytes >> 20} MB of a diff" in text
    assert f"{limits.commits:,} commits and {limits.objects:,} objects" in text


# ── recipes ─────────────────────────────────────────────────────────────────────────────────


def needs(program: str) -> str:
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"{program} is not installed, so its recipe was not checked")
    return found


def checked(words: list[str], **options: Any) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder};
    proxy_temp_path {folder};
    fastcgi_temp_path {folder};
    uwsgi_temp_path {folder};
    scgi_temp_path {folder};
{recipe}}}
"""


@pytest.fixture
def behind_nginx(tmp_path: Path) -> Iterator[list[str]]:
    """How curl comes to a hub behind a proxy as the page has it: over TLS, by its name."""
    nginx, openssl = needs("nginx"), needs("openssl")
    options = ("--name", "hub.example.org", "--proxy", "127.0.0.1", "--open-registration")
    hub, port = Hub(tmp_path / "hub", options).start(), free_ports(1)[0]
    certificate, key = tmp_path / "fullchain.pem", tmp_path / "privkey.pem"
    subject = ["-subj", "/CN=hub.example.org", "-addext", "subjectAltName=DNS:hub.example.org"]
    files = ["-keyout", str(key), "-out", str(certificate), "-days", "2"]
    checked([openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject, *files])
    (recipe,) = blocks("nginx")
    for before, after in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/letsencrypt/live/hub.example.org", str(tmp_path)),
        ("http://127.0.0.1:8000", hub.url),
    ):
        assert before in recipe
        recipe = recipe.replace(before, after)
    (tmp_path / "nginx.conf").write_text(NGINX.format(folder=tmp_path, recipe=recipe))
    words = [nginx, "-p", str(tmp_path), "-e", "stderr", "-c", str(tmp_path / "nginx.conf")]
    checked([*words, "-t"])
    process = subprocess.Popen(words)
    way = ["--cacert", str(certificate), "--connect-to", f"hub.example.org:443:127.0.0.1:{port}"]
    try:
        patience = ["--retry", "60", "--retry-connrefused", "--retry-delay", "1", "--fail"]
        checked(["curl", "-s", *patience, *way, "https://hub.example.org/api/health"])
        yield way
    finally:
        process.terminate()
        process.wait(30)
        hub.end()


def test_a_push_over_tls_through_the_recipe_for_nginx(
    behind_nginx: list[str], tmp_path: Path
) -> None:
    way = behind_nginx
    register = (*way, "-X", "POST", "-H", "Content-Type: application/json")
    name, clone = "https://hub.example.org", Clone.make(tmp_path / "clone")
    answer = curl(*register, "-d", '{"id":"ada"}', f"{name}/api/register")
    ada = Agent(name, "ada", answer.json["api_key"])
    (clone.root / "large.bin").write_bytes(os.urandom(3 << 20))
    head = clone.commit("more than nginx takes by itself")
    push = ("-X", "POST", "--data-binary", f"@{clone.bundle()}")
    assert ada("/api/git/push", *way, *push).json == {"hashes": [head]}
    assert len(ada(f"/api/git/fetch/{head}", *way).body) > 3 << 20
    outside = ("-H", "X-Forwarded-For: 203.0.113.7")
    for number in range(11):
        words = (*register, *outside, "-d", f'{{"id":"a{number}"}}')
        answer = curl(*words, f"{name}/api/register")
    assert answer.status == 429 and "address 203.0.113.7" in answer.error


def test_caddy_takes_its_recipe(tmp_path: Path) -> None:
    caddy = needs("caddy")
    (recipe,) = blocks("caddy")
    (tmp_path / "Caddyfile").write_text(recipe)
    words = [caddy, "validate", "--adapter", "caddyfile", "--config", str(tmp_path / "Caddyfile")]
    home = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    assert "Valid configuration" in checked(words, env={**os.environ, **home})


def test_the_unit_is_one_for_systemd(tmp_path: Path) -> None:
    analyze = needs("systemd-analyze")
    (recipe,) = blocks("ini")
    assert recipe.count("/opt/autohypothesis/.venv/bin/autohypothesis ") == 1
    unit = tmp_path / "autohypothesis-hub.service"
    unit.write_text(recipe.replace("/opt/autohypothesis/.venv/bin/autohypothesis", sys.executable))
    said = checked([analyze, "verify", "--man=no", str(unit)])
    assert unit.name not in said, said


def test_the_tunnel_is_one_for_ssh() -> None:
    ssh = needs("ssh")
    (recipe,) = blocks("console")
    said = checked([ssh, "-F", "/dev/null", "-G", *recipe.split()[1:]])
    assert "localforward 8000 [127.0.0.1]:8000" in said
    assert "hostname hub.example.org" in said
