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
from collections.abc import Iterable, Sequence
from contextlib import suppress
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
"""Paths that every program may read: programs and libraries of the system, /proc and /sys."""
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
"""Terminals: in bubblewrap a program's own; with Landlock alone they would be the user's."""
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
        leaves_notes: whether it may leave something for the next process beside the content of
            files: in System V memory, message queues, modes, times and attributes of files.
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
    leaves_notes: bool = True


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
"""Imported as a module, since Python compiles a script anew each time: 6 ms of every run."""


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
    temporary = all_names([granted.temporary] if granted.temporary else []) if alone else {"/tmp"}
    hidden = {*granted.held_out, *(_unseen(granted) if alone else granted.hidden)}
    return {
        "confine": True,
        "landlock": confine.landlock_abi() > 0,
        "drop_capabilities": alone,
        "close_sockets": alone and not granted.network,
        "close_shared": alone or not granted.leaves_notes,
        "close_notes": not granted.leaves_notes,
        "read": sorted(all_names(granted.read)),
        "hidden": sorted(all_names(hidden)),
        "listed": ["/"] if Path("/") in granted.read else [],
        "protected": sorted(all_names(granted.protected)),
        "write": sorted(all_names(granted.write)),
        "private": [*sorted(temporary), *(["/dev/shm"] if granted.leaves_notes else [])],
        "use": use,
        "fill": ["/proc" if not alone or _proc_is_guarded() else "/proc/self"],
    }


def _proc_is_guarded() -> bool:
    """Return whether nothing below /proc but processes can be written: CUDA names its threads
    there.

    Root on a bare machine could set the kernel's parameters; in a container they are read-only.
    """
    if os.geteuid() != 0:
        return True
    with suppress(OSError):
        return bool(os.statvfs("/proc/sys").f_flag & os.ST_RDONLY)
    return False


def _bwrap(granted: SandboxSpec) -> list[str]:
    hidden = _real_names(_unseen(granted))
    mounts = [(name, ["--ro-bind-try", name, name]) for name in _not_yet_seen(granted, hidden)]
    empty = ["/"] if Path("/") not in granted.read else []
    for name in hidden:
        if os.path.isdir(name):
            mounts.append((name, ["--tmpfs", name]))
            empty += [] if name == "/tmp" and granted.temporary is not None else [name]
        elif os.path.exists(name):
            mounts.append((name, ["--ro-bind", os.devnull, name]))
    mounts += [
        (str(path), _covered(path, granted, number)) for number, path in enumerate(granted.held_out)
    ]
    for option, paths in (
        ("--bind", granted.write),
        ("--ro-bind-try", (*granted.fixed, *granted.protected)),
    ):
        for path in paths:
            names = (name for name in all_names([path]) if not _is_linked(name, granted, hidden))
            mounts += [(name, [option, str(path), name]) for name in names]
    if granted.temporary is not None:
        mounts.append(("/tmp", ["--bind", str(granted.temporary), "/tmp"]))
    words = ["bwrap", "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    words += ["--cap-drop", "ALL", *([] if granted.network else ["--unshare-net"])]
    # The sort is stable: of two mounts at one place the later one, that grants more, is on top.
    for _, mount in sorted(mounts, key=lambda mount: mount[0].rstrip("/").count("/")):
        words += mount
    words += ["--dev", "/dev", "--tmpfs", "/dev/shm", "--proc", "/proc"]
    for name in _kernel_settings():
        words += ["--ro-bind", name, name]
    for node in _gpu_nodes() if granted.gpus else ():
        words += ["--dev-bind-try", node, node]
    # What stands for a hidden folder is memory: nothing is to be filled into it.
    for name in sorted(empty):
        words += ["--remount-ro", name]
    return words


def _kernel_settings() -> list[str]:
    """Return the writable settings below /proc: root could change the machine there."""
    return sorted(
        entry.path
        for entry in os.scandir("/proc")
        if not entry.name.isdigit() and not entry.is_symlink()
        if entry.is_dir() or entry.stat().st_mode & 0o222
    )


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
    """Return the hidden paths and, where they are not granted by name, the folders of which a
    program gets its own: /tmp, and /run with the sockets of services."""
    private = {tempfile.gettempdir(), "/tmp", "/var/tmp", "/run"}
    if granted.network and os.path.isdir(RESOLVER):
        run = (*glob.glob("/run/*"), *glob.glob("/run/systemd/*"))
        private = {*private, *run} - {"/run", "/run/systemd", RESOLVER}
    there = [Path(name) for name in sorted(private) if os.path.isdir(name) or os.path.isfile(name)]
    return [*granted.hidden, *(path for path in there if path not in granted.read)]


def _not_yet_seen(granted: SandboxSpec, hidden: set[str]) -> list[str]:
    """Return the readable paths, without those in a folder that is mounted already.

    bubblewrap cannot make a mount point below a folder that is read-only.
    """
    names = all_names(granted.read) - {"/proc"}
    opened = names | all_names(granted.write)
    unseen = []
    for name in sorted(names):
        parents = map(str, Path(name).parents)
        did_you_mean = next((parent for parent in parents if parent in opened | hidden), None)
        if did_you_mean is None or did_you_mean in hidden:
            unseen.append(name)
    return unseen


def _is_linked(name: str, granted: SandboxSpec, hidden: set[str]) -> bool:
    """Return whether a link that the program sees leads to `name`, where nothing can be mounted.

    It is reached under its real name then. A link in a folder that is not shown leads nowhere.
    """
    for link in (folder for folder in Path(name).parents if folder.is_symlink()):
        opened = all_names(granted.read)
        around = next((each for each in map(str, link.parents) if each in opened | hidden), None)
        if around in opened - hidden:
            return True
    return False


def _gpu_nodes() -> list[str]:
    return sorted(node for pattern in _GPUS for node in glob.glob(pattern))


def all_names(paths: Iterable[Path]) -> set[str]:
    """Return every path as it is given and as it really is, where links lead there."""
    given = [os.path.abspath(path) for path in paths]
    return {*given, *_real_names(given)}


def _real_names(paths: Iterable[Path | str]) -> set[str]:
    """Return the paths without links. The folder of a path is resolved once for all that lie in
    it: there are hundreds of secrets, in few folders, and each program that starts waits for this.
    """
    folders: dict[str, str] = {}
    names = set()
    for path in paths:
        folder, name = os.path.split(os.path.abspath(path))
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        real = os.path.join(folders[folder], name)
        names.add(os.path.realpath(real) if os.path.islink(real) else real)
    return names


def system_folders() -> tuple[Path, ...]:
    """Return the folders that any program needs to run at all; they hold no user's data."""
    return existing(map(Path, (*SYSTEM, *(f"/etc/{name}" for name in SETTINGS), RESOLVER)))


def existing(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Return those of `paths` that are there."""
    return tuple(path for path in paths if os.path.lexists(path))


def secret_places() -> tuple[Path, ...]:
    """Return where keys, tokens and passwords lie on this machine, as far as that is known.

    Places where nothing lies yet are among them: a key may be made while a run lasts.
    """
    homes = {os.path.expanduser("~"), *glob.glob("/home/*"), "/root"}
    names = [
        os.path.join(home, name)
        for home in sorted(filter(os.path.isdir, homes))
        for name in SECRETS
    ]
    names += [*SYSTEM_SECRETS, str(user_config_folder())]
    names += glob.glob(os.path.expanduser("~/.agenthub_creds*"))  # with the ones before it
    if elsewhere := os.environ.get("AGENTHUB_CONFIG"):
        names.append(os.path.abspath(os.path.expanduser(elsewhere)))
    return tuple(map(Path, names))


def python_folders(python: Path) -> set[Path]:
    """Return the installation of a Python interpreter, and the one that it is based on."""
    folders: set[Path] = set()
    for file in {python, Path(os.path.realpath(python))}:
        prefix = file.parent.parent
        if glob.glob(f"{glob.escape(str(prefix))}/lib*/python3*"):
            folders.add(prefix)
        with suppress(OSError, UnicodeDecodeError):
            for line in (prefix / "pyvenv.cfg").read_text(encoding="utf-8").splitlines():
                name, _, base = line.partition("=")
                if name.strip() == "home" and os.path.isabs(base.strip()):
                    folders.add(Path(base.strip()).parent)
    return folders - {Path("/")}


def _programs(program: str) -> set[Path]:
    """Return the files that the program itself needs: its file, its Python, and the launcher's."""
    file = Path(program)
    folders = {Path(confine.__file__), Path(cache_from_source(confine.__file__))}
    folders |= {Path(sys.prefix), Path(sys.base_prefix), file, Path(os.path.realpath(file))}
    if file.name.startswith(("python", "pypy")):
        folders |= python_folders(file)
    return folders - {Path("/")}


@lru_cache(maxsize=2)
def best_kind(*, gpus: bool = False) -> Kind:
    """Return the best sandbox that works on this machine for this user; asked once per process.

    A kind that `doctor` saw fail is not taken again until it sees it work.
    """
    best = noted_limit()
    kinds: tuple[Kind, ...] = ("bwrap", "landlock")
    if best is not None:
        kinds = () if best == "none" else (best,)
    return next((kind for kind in kinds if works(kind, gpus=gpus)), "none")


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
    """Return the best kind that `doctor` saw work here, where a better one failed; or None."""
    try:
        noted = json.loads(_note().read_bytes()[:4096])
        most = noted["most"] if noted["host"] == host_id() else None
    except (OSError, ValueError, TypeError, KeyError):
        return None
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
