"""The sandbox: what a program may read, write and reach, and which means of the kernel hold it.

Two layers. bubblewrap (`bwrap`) shows the program another disk: only what is granted is there, with
processes, /tmp, shared memory and network of its own. Landlock, applied by confine.py just before
the program begins, holds for files, signals and sockets, needs nothing installed and no rights, and
is all there is where user namespaces are forbidden. Nothing else of the package knows the options
of either. What each leaves open is said in docs/trust.md.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any, Literal

from autohypothesis import confine
from autohypothesis.system import LINUX, host_id, user_config_folder

Kind = Literal["bwrap", "landlock", "none"]
"""bwrap: bubblewrap, with Landlock inside where the kernel has it. landlock: that alone."""

SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/nix/store",
    "/gnu/store", "/snap", "/home/linuxbrew/.linuxbrew", "/sys", "/proc",
)  # fmt: skip
"""What every program may read: programs and libraries of the system, and what the kernel tells."""
SETTINGS = (
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ld.so.preload", "passwd", "group", "hosts",
    "nsswitch.conf", "host.conf", "resolv.conf", "gai.conf", "services", "protocols", "localtime",
    "timezone", "locale.alias", "locale.conf", "default/locale", "machine-id", "os-release",
    "debian_version", "lsb-release", "alternatives", "ssl/certs", "ssl/openssl.cnf", "ssl/cert.pem",
    "ca-certificates", "pki/ca-trust", "pki/tls/certs", "crypto-policies", "mime.types", "magic",
    "gitconfig", "fonts", "OpenCL", "vulkan", "nvidia", "nvidia-container-runtime", "python3",
    "python3.10", "python3.11", "python3.12", "python3.13", "libnl-3", "numa", "terminfo",
)  # fmt: skip
"""Below /etc. The rest of it holds passwords, host keys and the settings of services."""
RESOLVER = "/run/systemd/resolve"

SECRETS = (
    ".ssh", ".gnupg", ".aws", ".azure", ".boto", ".kube", ".docker", ".netrc", "_netrc",
    ".git-credentials", ".gitconfig.local", ".pypirc", ".npmrc", ".yarnrc", ".yarnrc.yml", ".gem",
    ".cargo/credentials", ".cargo/credentials.toml", ".terraform.d", ".vault-token", ".pgpass",
    ".my.cnf", ".password-store", ".mozilla", ".thunderbird", ".config/google-chrome",
    ".config/chromium", ".local/share/keyrings", ".config/git/credentials", ".config/gcloud",
    ".config/gh", ".config/hub", ".config/glab-cli", ".config/rclone", ".config/op", ".config/sops",
    ".config/wandb", ".config/huggingface", ".config/autohypothesis", ".config/kaggle", ".kaggle",
    ".huggingface", ".cache/huggingface/token", ".cache/huggingface/stored_tokens", ".wandb",
    ".comet.config", ".neptune", ".modal.toml", ".runpod", ".vast_api_key", ".config/vastai",
    ".agenthub", ".claude", ".claude.json", ".config/claude", ".anthropic",
    ".codex", ".gemini", ".config/opencode", ".local/share/opencode", ".openai", ".config/openai",
    ".aider.conf.yml", ".continue", ".cursor", ".env", ".envrc", ".secrets", ".bash_history",
    ".zsh_history", ".python_history", ".node_repl_history", ".psql_history", ".mysql_history",
    ".lesshst", ".viminfo", ".wget-hsts", ".config/systemd", ".local/state", ".gitconfig",
    ".config/git", ".bashrc", ".bash_profile", ".bash_login", ".profile", ".zshrc", ".zshenv",
    ".zprofile", ".config/fish", ".local/share/fish", ".pam_environment", ".config/environment.d",
    ".config/containers", ".config/pypoetry", ".config/pip", ".pip", ".config/doctl",
    ".config/configstore", ".config/goose", ".config/Code", ".vscode-server", ".config/Cursor",
    ".config/BraveSoftware", ".config/microsoft-edge", ".local/share/uv/credentials",
    ".local/share/jupyter/runtime", ".jupyter", ".s3cfg", ".oci", ".databrickscfg", ".lambda_cloud",
    ".sky", ".m2/settings.xml", ".gradle/gradle.properties", ".streamlit", ".ipython",
    ".config/hf", ".config/cohere", ".config/replicate", ".config/heroku", ".config/stripe",
    ".snowflake", ".dbt", ".cloudflared", ".config/ngrok", ".ngrok2", ".fly", ".config/flyctl",
    ".step", ".putty", ".rhosts", ".authinfo", ".authinfo.gpg", ".config/gh-copilot",
    ".config/github-copilot", ".local/share/TabNine",
)  # fmt: skip
"""Below every home folder: keys, tokens, what people typed, and what their shells are told."""
SYSTEM_SECRETS = (
    "/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-", "/etc/sudoers",
    "/etc/sudoers.d", "/etc/ssh", "/etc/ssl/private", "/etc/pki/tls/private", "/etc/kubernetes",
    "/etc/docker", "/etc/munge", "/etc/krb5.keytab", "/etc/NetworkManager/system-connections",
    "/etc/wireguard", "/etc/openvpn", "/var/lib/kubelet", "/var/lib/docker", "/var/lib/sss",
    "/var/lib/private", "/var/backups", "/var/mail", "/var/spool", "/var/log", "/boot",
)  # fmt: skip

_DEVICES = ("null", "zero", "full", "random", "urandom")
_TERMINALS = ("tty", "ptmx", "pts")
"""In bubblewrap a program's own; with Landlock alone they would be the user's."""
_GPUS = ("/dev/nvidia*", "/dev/nvidia-caps/*", "/dev/dri", "/dev/kfd", "/dev/infiniband")
_PROBE_TIMEOUT_S = 20.0
_CUDA_STARTS = """
import ctypes, sys
try:
    cuda = ctypes.CDLL("libcuda.so.1")
except OSError:
    sys.exit(0)  # no driver here: nothing that a sandbox could take away
sys.exit(0 if cuda.cuInit(0) == 0 else 1)
"""


@dataclass(frozen=True)
class SandboxSpec:
    """A sandbox of one kind, and what it grants to one program. Of several listed folders around a
    path the innermost decides.

    Attributes:
        kind: what applies it; "none" grants everything.
        read: files and folders that it may read.
        write: folders that it may change.
        hidden: files and folders inside of `read` that it does not see.
        held_out: files inside of `read` that it sees, with their size, and cannot read.
        fixed: files inside of `write` that stay as they are; without bubblewrap the caller looks.
        protected: folders inside of `write` that stay as they are; with Landlock alone nothing new
            can then be made in the folders around them.
        temporary: a private folder for its temporary files: its /tmp in bubblewrap; None: none.
        network: whether it may open connections; without, it has a loopback of its own at most.
        gpus: whether it sees the GPUs of the machine.
    """

    kind: Kind
    read: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()
    hidden: tuple[Path, ...] = ()
    held_out: tuple[Path, ...] = ()
    fixed: tuple[Path, ...] = ()
    protected: tuple[Path, ...] = ()
    temporary: Path | None = None
    network: bool = False
    gpus: bool = False


UNCONFINED = SandboxSpec("none")


def confined(
    words: Sequence[str], spec: SandboxSpec, *, parent: int = 0, alive: int = 0
) -> list[str]:
    """Return the command that runs `words` in a sandbox.

    Args:
        words: an absolute path of a program, and its arguments.
        parent: a process that the program does not outlive, where the caller cannot see to it:
            nothing may be set between fork and exec where there are threads.
        alive: for the same a pipe, inherited by the program, whose other end the parent holds.
    """
    if spec.kind == "none":
        if not parent or not LINUX:
            return list(words)
        return [*_launcher({"parent": parent, "alive": alive}), *words]
    spec = replace(spec, read=(*spec.read, *_programs(words[0])))
    policy = {**_policy(spec), "alive": alive}
    if spec.kind == "landlock":
        return [*_launcher({**policy, "parent": parent}), *words]
    inside = [*_launcher(policy), *words] if confine.landlock_abi() else words
    return [*_bwrap(spec), "--", *inside]  # bwrap itself dies with its parent


_LAUNCH = "import sys; sys.path.insert(0, sys.argv.pop(1)); import confine; confine.main(sys.argv)"
"""As a module, since Python compiles a script anew each time: 6 ms of every run."""


def _launcher(policy: dict[str, Any]) -> list[str]:
    folder = os.path.dirname(confine.__file__)
    return [sys.executable, "-I", "-S", "-c", _LAUNCH, folder, json.dumps(policy)]


def _policy(granted: SandboxSpec) -> dict[str, Any]:
    """Return the document that confine.py reads.

    bubblewrap keeps network and processes apart; Landlock inside of it hides again what is hidden.
    """
    alone = granted.kind == "landlock"
    use = [f"/dev/{name}" for name in (*_DEVICES, *(() if alone else _TERMINALS))]
    use += _gpu_nodes() if granted.gpus else []
    everything = Path("/") in granted.read
    temporary = all_names([granted.temporary] if granted.temporary else []) if alone else {"/tmp"}
    hidden = {*granted.held_out, *(_unseen(granted) if alone else granted.hidden)}
    return {
        "confine": True,
        "landlock": confine.landlock_abi() > 0,
        "drop_capabilities": alone,
        "close_sockets": alone and not granted.network,
        "close_shared": alone,
        "read": sorted(all_names(granted.read)),
        "hidden": sorted(all_names(hidden)),
        "listed": ["/"] if everything else [],
        "protected": sorted(all_names(granted.protected)),
        "write": sorted(all_names(granted.write)),
        "private": [*sorted(temporary), "/dev/shm"],
        "use": use,
        "fill": ["/proc" if not alone or _proc_is_guarded() else "/proc/self"],
    }


def _proc_is_guarded() -> bool:
    """Whether nothing below /proc but processes can be written: CUDA names its threads there.

    Root on a bare machine could set the kernel's parameters; in a container they are read-only.
    """
    if os.geteuid() != 0:
        return True
    try:
        return bool(os.statvfs("/proc/sys").f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _bwrap(granted: SandboxSpec) -> list[str]:
    words = ["bwrap", "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    words += ["--cap-drop", "ALL"]
    words += [] if granted.network else ["--unshare-net"]
    hidden = _real_names(_unseen(granted))
    mounts = [(to, ["--ro-bind-try", to, to]) for to in _not_yet_seen(granted, hidden)]
    empty = ["/"] if Path("/") not in granted.read else []
    for real in hidden:
        if os.path.isdir(real):
            mounts.append((real, ["--tmpfs", real]))
            empty += [] if real == "/tmp" and granted.temporary is not None else [real]
        elif os.path.exists(real):
            mounts.append((real, ["--ro-bind", os.devnull, real]))
    mounts += [(str(path), _covered(path, granted, n)) for n, path in enumerate(granted.held_out)]
    for path in granted.write:
        mounts += [(to, ["--bind", str(path), to]) for to in all_names([path])]
    for path in (*granted.fixed, *granted.protected):
        mounts += [(to, ["--ro-bind-try", str(path), to]) for to in all_names([path])]
    if granted.temporary is not None:
        mounts.append(("/tmp", ["--bind", str(granted.temporary), "/tmp"]))
    # The sort is stable: of two mounts at one place the later one, that grants more, is on top.
    for _, mount in sorted(mounts, key=lambda one: one[0].rstrip("/").count("/")):
        words += mount
    words += ["--dev", "/dev", "--tmpfs", "/dev/shm", "--proc", "/proc"]
    for name in _kernel_settings():
        words += ["--ro-bind", name, name]
    for node in _gpu_nodes() if granted.gpus else ():
        words += ["--dev-bind-try", node, node]
    # What stands for a hidden folder is memory: nothing is to be filled into it.
    return words + [word for real in sorted(empty) for word in ("--remount-ro", real)]


def _kernel_settings() -> list[str]:
    """Return the writable settings below /proc: root could change the machine there."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() or entry.is_symlink():
            continue
        if entry.is_dir() or entry.stat().st_mode & 0o222:
            found.append(entry.path)
    return sorted(found)


def _covered(path: Path, granted: SandboxSpec, number: int) -> list[str]:
    """Cover what is held out with a blank, where Landlock inside cannot: without it, and below
    /tmp, which is granted as a whole. A file keeps its size, by which programs check their data.
    """
    real = os.path.realpath(path)
    if confine.landlock_abi() and not real.startswith("/tmp/"):
        return []
    if os.path.isdir(real):
        return ["--tmpfs", real]
    if granted.temporary is None:
        return ["--ro-bind", os.devnull, real]
    blank = granted.temporary / f".held-out-{number}"
    with open(blank, "wb") as file:
        file.truncate(os.stat(real).st_size)
    return ["--ro-bind", str(blank), real]


def _unseen(granted: SandboxSpec) -> list[Path]:
    """Return the hidden paths, without those that are granted by name."""
    private = [one for one in _private_folders(granted.network) if one not in granted.read]
    return [*granted.hidden, *private]


def _not_yet_seen(granted: SandboxSpec, hidden: set[str]) -> list[str]:
    """Return the readable paths, without those in a folder that is mounted already.

    bubblewrap cannot make a mount point below a folder that is read-only.
    """
    names = all_names(granted.read) - {"/proc"}
    opened = names | all_names(granted.write)
    found = []
    for name in sorted(names):
        around = (str(parent) for parent in Path(name).parents)
        nearest = next((one for one in around if one in opened or one in hidden), None)
        if nearest is None or nearest in hidden:
            found.append(name)
    return found


def _private_folders(network: bool) -> list[Path]:
    """Folders of which a program gets its own: /tmp, and /run with the sockets of services."""
    places = {tempfile.gettempdir(), "/tmp", "/var/tmp", "/run"}
    if network and os.path.isdir(RESOLVER):
        places = {*places - {"/run"}, *(p for p in glob.glob("/run/*") if p != "/run/systemd")}
        places |= {p for p in glob.glob("/run/systemd/*") if p != RESOLVER}
    return [Path(one) for one in sorted(places) if os.path.isdir(one) or os.path.isfile(one)]


def _gpu_nodes() -> list[str]:
    return sorted(node for pattern in _GPUS for node in glob.glob(pattern))


def all_names(paths: Iterable[Path]) -> set[str]:
    """Return every path as it is said and as it really is, where links lead there."""
    said = [os.path.abspath(path) for path in paths]
    return {*said, *_real_names(said)}


def _real_names(paths: Iterable[Path | str]) -> set[str]:
    """The paths without links. What a path lies in is resolved once for all that lie there: there
    are hundreds of secrets, in few folders, and each program that starts waits for this."""
    folders: dict[str, str] = {}
    found = set()
    for path in paths:
        folder, name = os.path.split(os.path.abspath(path))
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        real = os.path.join(folders[folder], name)
        found.add(os.path.realpath(real) if os.path.islink(real) else real)
    return found


def system_folders() -> tuple[Path, ...]:
    """Return the folders that any program needs to run at all; they hold no user's data."""
    named = [*SYSTEM, *(f"/etc/{name}" for name in SETTINGS), RESOLVER]
    return tuple(Path(one) for one in named if os.path.lexists(one))


def secret_places() -> tuple[Path, ...]:
    """Where keys, tokens and passwords lie on this machine, as far as their places are known.

    Places where nothing lies yet are among them: a key may be made while a run lasts.
    """
    homes = {home for home in (os.path.expanduser("~"), *glob.glob("/home/*"), "/root")
             if os.path.isdir(home)}  # fmt: skip
    named = [os.path.join(home, name) for home in sorted(homes) for name in SECRETS]
    named += [*SYSTEM_SECRETS, str(user_config_folder())]
    named += glob.glob(os.path.expanduser("~/.agenthub_creds*"))  # with the ones before it
    if elsewhere := os.environ.get("AGENTHUB_CONFIG"):
        named.append(os.path.abspath(os.path.expanduser(elsewhere)))
    return tuple(Path(one) for one in named)


def python_folders(python: Path) -> set[Path]:
    """The installation that a Python interpreter belongs to, and the one that it is based on."""
    found: set[Path] = set()
    for file in {python, Path(os.path.realpath(python))}:
        prefix = file.parent.parent
        if glob.glob(f"{glob.escape(str(prefix))}/lib*/python3*"):
            found.add(prefix)
        found |= set(_base_of(prefix))
    return {one for one in found if one != Path("/")}


def _base_of(environment: Path) -> Iterator[Path]:
    """The installation that a virtual environment was made from."""
    try:
        lines = (environment / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        name, _, value = line.partition("=")
        if name.strip() == "home" and os.path.isabs(value.strip()):
            yield Path(value.strip()).parent


def _programs(program: str) -> set[Path]:
    """Return the files that the program itself needs: its file, its Python, and the launcher's."""
    file = Path(program)
    launcher = {Path(confine.__file__), Path(cache_from_source(confine.__file__))}
    found = {Path(sys.prefix), Path(sys.base_prefix), *launcher}
    found |= {file, Path(os.path.realpath(file))}
    if file.name.startswith(("python", "pypy")):
        found |= python_folders(file)
    return {one for one in found if one != Path("/")}


@lru_cache(maxsize=2)
def best_kind(*, gpus: bool = False) -> Kind:
    """Return the best sandbox that works on this machine for this user; asked once per process.

    A kind that `doctor` saw fail is not taken again until it sees it work.
    """
    lowered = noted_limit()
    for kind in ("bwrap", "landlock"):
        if not (lowered and kind == "bwrap") and lowered != "none" and works(kind, gpus=gpus):
            return kind
    return "none"


def works(kind: Kind, *, gpus: bool = False) -> bool:
    """Return whether a small program starts and ends well in a sandbox of this kind.

    With `gpus` the program starts CUDA, where the machine has a driver.
    """
    if kind == "none" or not LINUX:
        return kind == "none"
    if kind == "bwrap" and shutil.which("bwrap") is None:
        return False
    if kind == "landlock" and not confine.landlock_abi():
        return False
    words = [sys.executable, "-I", "-S", "-c", _CUDA_STARTS] if gpus else ["/bin/true"]
    with tempfile.TemporaryDirectory(prefix="ah-") as folder:
        spec = SandboxSpec(kind, system_folders(), temporary=Path(folder), gpus=gpus)
        try:
            done = subprocess.run(
                confined(words, spec),
                capture_output=True,
                timeout=_PROBE_TIMEOUT_S,
                start_new_session=True,  # a Ctrl-C must not say that none works
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
    return done.returncode == 0


def _note() -> Path:
    return user_config_folder() / "sandbox.json"


def noted_limit() -> Kind | None:
    """The best kind that `doctor` saw work on this machine, where a better one failed; or None."""
    try:
        noted = json.loads(_note().read_bytes()[:4096])
    except (OSError, ValueError):
        return None
    if not isinstance(noted, dict) or noted.get("host") != host_id():
        return None
    most = noted.get("most")
    return most if most in ("landlock", "none") else None


def note_limit(most: Kind | None, reason: str = "") -> None:
    """Remember for this machine that nothing better than `most` works; None: all of it does."""
    path = _note()
    if most is None:
        path.unlink(missing_ok=True)
    else:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(json.dumps({"host": host_id(), "most": most, "reason": reason}) + "\n")
    best_kind.cache_clear()


def existing(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Return those of `paths` that are there."""
    return tuple(path for path in paths if os.path.lexists(path))
