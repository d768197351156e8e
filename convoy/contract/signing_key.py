"""Keys that sign exports: PEM files, read by the ``cryptography`` package. Nothing here prints or keeps a private key's bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from convoy.contract.errors import SignatureError

_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}
_WANTED: Final = "a key for ECDSA (P-256, P-384, P-521) or Ed25519 in PEM form"
_MAX_BYTES: Final = 1 << 16


@dataclass(frozen=True)
class PublicKey:
    """A key that checks signatures.

    Attributes:
        key_id: SHA-256 digest of its PEM form (SubjectPublicKeyInfo), as 64 hexadecimal digits.
        algorithm: "ECDSA P-256", "Ed25519" ...
    """

    key_id: str
    algorithm: str
    _key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Whether ``signature`` is this key's over ``data``."""
        try:
            if isinstance(self._key, ec.EllipticCurvePublicKey):
                self._key.verify(signature, data, ec.ECDSA(_HASHES[self._key.curve.name]))
            else:
                self._key.verify(signature, data)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class PrivateKey:
    """A key that signs.

    Attributes:
        public: Its other half.
    """

    public: PublicKey
    _key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey = field(repr=False)

    def sign(self, data: bytes) -> bytes:
        """The signature over ``data``: DER for ECDSA, 64 bytes for Ed25519."""
        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            return self._key.sign(data, ec.ECDSA(_HASHES[self._key.curve.name]))
        return self._key.sign(data)


def load_private_key(path: Path, passphrase: Callable[[], str] | None = None) -> PrivateKey:
    """Read a private key.

    Args:
        path: A PEM file.
        passphrase: Asked where the key is encrypted, and only then.

    Raises:
        SignatureError: It cannot be read, is of another kind or form, or the passphrase is missing or wrong.
    """
    data = _read(path, "private")
    if b"PUBLIC KEY-----" in data or data.startswith((b"ssh-", b"ecdsa-")):
        raise SignatureError(f"{path}: expected a private key to sign with, found a public one.")
    if b"OPENSSH PRIVATE KEY" in data:
        raise SignatureError(
            f"{path}: expected {_WANTED}, found OpenSSH's own form. A copy of an ECDSA key becomes PEM with "
            "`ssh-keygen -p -m PKCS8 -f COPY`; `openssl genpkey -algorithm ed25519 -out KEY` makes a new one."
        )
    try:
        try:
            key = serialization.load_pem_private_key(data, None)
        except TypeError as error:  # how the package says: it is encrypted
            if passphrase is None:
                raise SignatureError(f"{path}: is encrypted, and no passphrase was given.") from error
            key = serialization.load_pem_private_key(data, passphrase().encode())
    except UnsupportedAlgorithm as error:
        raise SignatureError(f"{path}: expected {_WANTED}, found another kind or encryption of key.") from error
    except (ValueError, TypeError) as error:  # the message may quote the file: it is left out, and the cause holds no key
        encrypted = b"ENCRYPTED" in data
        raise SignatureError(
            f"{path}: " + ("cannot be opened with this passphrase." if encrypted else f"expected {_WANTED}, found something else.")
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise SignatureError(f"{path}: expected {_WANTED}, found {type(key).__name__.lstrip('_')}.")
    return PrivateKey(_public(key.public_key(), path), key)


def load_public_key(path: Path) -> PublicKey:
    """Read a public key from a PEM file.

    Raises:
        SignatureError: It cannot be read, or is of another kind or form.
    """
    data = _read(path, "public")
    if b"PRIVATE KEY-----" in data:
        raise SignatureError(
            f"{path}: expected a public key, found a private one, which belongs to who signs alone. "
            f"`openssl pkey -in {path.name} -pubout` prints its public half."
        )
    if data.startswith((b"ssh-", b"ecdsa-")):
        raise SignatureError(
            f"{path}: expected {_WANTED}, found OpenSSH's own form. "
            f"`ssh-keygen -e -m PKCS8 -f {path.name}` prints an ECDSA key as PEM."
        )
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{path}: expected {_WANTED}, found something else.") from error
    return _public(key, path)


def _public(key: object, path: Path) -> PublicKey:
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _HASHES:
        algorithm = f"ECDSA P-{key.curve.key_size}"
    elif isinstance(key, ed25519.Ed25519PublicKey):
        algorithm = "Ed25519"
    else:
        found = key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__.removesuffix("PublicKey")
        raise SignatureError(f"{path}: expected {_WANTED}, found {found}.")
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(hashlib.sha256(pem).hexdigest(), algorithm, key)


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise SignatureError(f"{path}: expected a {what} key, but it cannot be read: {error.strerror or error}.") from error
    if len(data) > _MAX_BYTES:
        raise SignatureError(f"{path}: expected a {what} key, found more than {_MAX_BYTES:,} bytes.")
    return data
