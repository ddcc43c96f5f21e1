"""The fleet's key, and what is signed with it: DSSE envelopes, and the bytes under a signature.

The Ed25519 key is made on first use in the user's configuration folder, which no sandbox shows; its
public half lies beside it. What is believed is pinned there too: every `*.pub` in the folder, or
the files that a caller names. Nothing in a repository says which key to trust.

An installation that was updated without its new library has no key: its runs go on unsigned, and
`verify` says so.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from autohypothesis.errors import RecordError, SignatureError, UsageError
from autohypothesis.records.files import make_private, parse_json, read_bytes, to_json, write_new
from autohypothesis.system import user_config_folder

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

_KEY_LIMIT = 16 * 1024
_PRIVATE = 0o600
ID_LENGTH = 16
"""Characters of a key's id that people are shown."""


class Signer(NamedTuple):
    """The fleet's own key."""

    key_id: str
    private: Ed25519PrivateKey

    def sign(self, content: bytes) -> str:
        """Return the signature of some bytes, in base64."""
        return base64.b64encode(self.private.sign(content)).decode()


class Keys(NamedTuple):
    """The public keys that are trusted, by id."""

    by_id: Mapping[str, Ed25519PublicKey]

    def check(self, key_id: str, signature: str, content: bytes) -> None:
        """See that a trusted key has signed some bytes.

        Raises:
            SignatureError: in words that follow the name of what is signed.
        """
        from cryptography.exceptions import InvalidSignature

        if (key := self.by_id.get(key_id)) is None:
            raise SignatureError(f"is signed by the key {key_id[:ID_LENGTH]!r}, not a trusted one")
        try:
            key.verify(base64.b64decode(signature, validate=True), content)
        except (InvalidSignature, ValueError):
            raise SignatureError("does not fit its signature: it was edited") from None


def keys_folder() -> Path:
    """Return the folder of the fleet's key and of the public keys that are trusted."""
    return user_config_folder() / "keys"


def private_key_file() -> Path:
    return keys_folder() / "fleet.pem"


def own_signer() -> Signer | None:
    """Return the fleet's key, made now if there is none; None where none can be had.

    That is where the library is not installed, or the folder cannot be written.

    Raises:
        RecordError: the file of the key is damaged.
    """
    return _signer(keys_folder())


@lru_cache(maxsize=8)
def _signer(folder: Path) -> Signer | None:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ModuleNotFoundError:
        return None
    path = private_key_file()
    try:
        if not path.exists():
            make_private(folder)
            write_new(path, _private_text(Ed25519PrivateKey.generate()), mode=_PRIVATE)
        content = read_bytes(path, _KEY_LIMIT)
    except OSError:
        return None
    except RecordError:
        if path.exists():
            raise
        return None
    try:
        private = serialization.load_pem_private_key(content, None)
    except ValueError:
        private = None
    if not isinstance(private, Ed25519PrivateKey):
        raise RecordError(
            f"{path} holds no Ed25519 key",
            hint="put the right one back; if it is lost, move it away and a new one is made",
        )
    public = private.public_key()
    text = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    beside = folder / "fleet.pub"
    if not beside.exists():
        write_new(beside, text)
    return Signer(key_id(public), private)


def _private_text(private: Ed25519PrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    text: bytes = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return text


def key_id(public: Ed25519PublicKey) -> str:
    """Return the SHA-256 of a public key's 32 bytes."""
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()


def trusted_keys(files: Sequence[Path] = ()) -> Keys:
    """Return the keys in `files`; without any, the fleet's own and those pinned beside it.

    Raises:
        UsageError: a file that was named holds no public key.
    """
    if files:
        return Keys({key_id(key): key for key in map(_public_key, files)})
    own = own_signer()
    keys = [own.private.public_key()] if own is not None else []
    keys += map(_public_key, sorted(keys_folder().glob("*.pub")))
    return Keys({key_id(key): key for key in keys})


def _public_key(path: Path) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = serialization.load_pem_public_key(read_bytes(path.resolve(), _KEY_LIMIT))
        if isinstance(key, Ed25519PublicKey):
            return key
    except (FileNotFoundError, RecordError, ValueError):
        pass
    raise UsageError(
        f"{path} holds no Ed25519 public key",
        hint=f"a fleet's is {keys_folder() / 'fleet.pub'} on its machine",
    )


# ── envelopes ───────────────────────────────────────────────────────────────────────────────


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed, as the specification of DSSE v1 has them (PAE)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sealed_envelope(signer: Signer, payload_type: str, value: Any) -> bytes:
    """Return a signed DSSE envelope around `value` as JSON."""
    payload = to_json(value).encode()
    signature = signer.sign(pre_authentication_encoding(payload_type, payload))
    envelope = {
        "payloadType": payload_type,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": signer.key_id, "sig": signature}],
    }
    return (to_json(envelope, indent=2) + "\n").encode()


def open_envelope(content: bytes, payload_type: str, keys: Keys) -> dict[str, Any]:
    """Return what a trusted key has signed.

    Raises:
        SignatureError: in words that follow the name of the file.
    """
    try:
        envelope = parse_json(content)
        payload = base64.b64decode(envelope["payload"], validate=True)
        signatures: Iterable[Mapping[str, str]] = envelope["signatures"]
        named = [(str(each["keyid"]), str(each["sig"])) for each in signatures]
        if envelope["payloadType"] != payload_type or not named:
            raise ValueError
    except (ValueError, TypeError, KeyError, binascii.Error):
        raise SignatureError("is no signed envelope") from None
    signed = pre_authentication_encoding(payload_type, payload)
    known = [pair for pair in named if pair[0] in keys.by_id] or named[:1]
    keys.check(*known[0], signed)
    value = parse_json(payload)
    if not isinstance(value, dict):
        raise SignatureError("holds no object")
    return value
