"""Settings of an operator, limits of every request, and the layout of the data folder."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

MB = 1 << 20


@dataclass(frozen=True, slots=True)
class Hourly:
    """Attempts in any 60 minutes. An address may stand for many agents, so it may do more."""

    registrations: int = 10
    """Per address."""
    pushes: int = 100
    """Per agent."""
    posts: int = 100
    """Per agent."""
    diffs: int = 60
    """Per agent."""
    page_diffs: int = 120
    """Per address; of those on pages, which may be read without a key."""
    results: int = 600
    """Per agent; tasks and bests among them."""
    claims: int = 1200
    """Per agent; those that are given back among them."""
    wrong_keys: int = 300
    """Per address."""
    address_factor: int = 20
    """An address may make this many times the attempts of one agent."""


@dataclass(frozen=True, slots=True)
class HubLimits:
    """Sizes and times: of requests, of connections, of one push, of answers by git."""

    bundle_bytes: int = 50 * MB
    json_bytes: int = 64 << 10
    channels: int = 100
    upload_seconds: float = 300.0
    silence_seconds: float = 30.0
    """Maximum pause between two pieces of a body."""

    connections: int = 64
    """Per address."""
    header_seconds: float = 10.0
    """Maximum time from the beginning of a request to the end of its headers."""
    idle_seconds: float = 30.0
    """Maximum pause between two requests of one connection."""
    stall_seconds: float = 60.0
    """Maximum time in which a peer reads nothing of an answer."""

    heads: int = 200
    prerequisites: int = 200
    objects: int = 50_000
    object_bytes: int = 32 * MB
    new_bytes: int = 256 * MB
    commits: int = 5_000
    commit_bytes: int = 128 << 10
    parents: int = 16
    tree_bytes: int = 1 * MB
    entries: int = 100_000
    """Files and folders of one commit."""
    depth: int = 32
    path_bytes: int = 1024

    loose_packs: int = 50
    """Packs that no common index covers; each costs every later git a look."""

    diff_bytes: int = 1 * MB
    diff_seconds: float = 5.0
    fetch_bytes: int = 512 * MB
    fetch_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Settings:
    """One hub."""

    data: Path
    host: str = "127.0.0.1"
    port: int = 8000
    open_registration: bool = False
    private_pages: bool = False
    """Whether pages ask for a key, as the API does."""
    names: tuple[str, ...] = ()
    """Host names under which it is reached, besides where it listens."""
    proxies: tuple[str, ...] = ()
    """Addresses whose X-Forwarded-For is believed."""
    admin_key: str = ""
    hourly: Hourly = field(default_factory=Hourly)
    limits: HubLimits = field(default_factory=HubLimits)


class DataFolder:
    """The paths under `--data`, made if need be, readable by its owner only."""

    def __init__(self, data: Path) -> None:
        self.root = data.absolute()
        self.database = self.root / "hub.sqlite3"
        self.repository = self.root / "commits.git"
        self.incoming = self.root / "incoming"
        """A folder for each push that is being taken in."""
        self.passing = self.root / "passing"
        """Answers on their way out."""
        self.log = self.root / "hub.log"
        self.lock = self.root / "serving.lock"
        """Held by the one process that serves."""
        for folder in (self.root, self.incoming, self.passing):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root.chmod(0o700)


def loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
