"""``model.sig``: who stands behind an export. A digest beside a file shows damage; a signature shows where the file comes from.

The file is of the form that the OpenSSF Model Signing tools read: a DSSE envelope around an in-toto statement that lists the
SHA-256 digest of each file. The signature covers PAE(type, statement):
"DSSEv1" SP len(type) SP type SP len(statement) SP statement.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.alias_generators import to_camel

from convoy.contract.bundle import BUNDLE_FILES, Bundle
from convoy.contract.errors import MissingDependencyError, SignatureError
from convoy.contract.files import sha256_file, write_bytes
from convoy.contract.manifest import Sha256

if TYPE_CHECKING:
    from convoy.contract.signing_key import PrivateKey, PublicKey

SIGNATURE_FILE: Final = "model.sig"
PAGE_FILE: Final = "validation.html"
CARD_FILE: Final = "README.md"

_MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
_STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"
_NOT_COVERED: Final = (SIGNATURE_FILE, CARD_FILE, "config.pbtxt")
_MAX_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class SignedBy:
    """What a verified signature says.

    Attributes:
        key_id: SHA-256 digest of the public key's PEM form.
        algorithm: "ECDSA P-256", "Ed25519" ...
        model_name: The name that the model was signed under.
        files: Digest of each file that is covered, by name.
    """

    key_id: str
    algorithm: str
    model_name: str
    files: dict[str, str]


def open_key(path: Path, *, passphrase: Callable[[], str] | None = None) -> PrivateKey:
    """Read a private key ahead of long work, so that a key that does not fit shows at the beginning.

    Args:
        path: A private key in PEM form: ECDSA (P-256, P-384, P-521) or Ed25519.
        passphrase: Asked for the key's passphrase where the key is encrypted, and only then.

    Raises:
        SignatureError: The key cannot be read, or is of another kind.
        MissingDependencyError: The extra ``sign`` is not installed.
    """
    try:
        from convoy.contract.signing_key import load_private_key
    except ImportError as error:
        raise _missing() from error
    return load_private_key(path, passphrase)


def sign_bundle(folder: Path, key: Path | PrivateKey, *, passphrase: Callable[[], str] | None = None) -> Path:
    """Sign an export: the model, the manifest, the report, the goldens, and the report's page where there is one.

    The model card is not covered, since people complete it. Only what passed its validation is signed.

    Args:
        folder: The export, whole.
        key: What ``open_key`` gave, or the path for it.
        passphrase: As for ``open_key``.

    Returns:
        The path of the signature file, replaced where there was one.

    Raises:
        ContractError: The export is not whole or its digests do not hold.
        ValidationFailedError: The export did not pass its validation.
        SignatureError: The key cannot be read, or is of another kind.
        MissingDependencyError: The extra ``sign`` is not installed.
    """
    private = open_key(key, passphrase=passphrase) if isinstance(key, Path) else key
    bundle = Bundle.open(folder)
    bundle.require_passed()
    names = sorted(BUNDLE_FILES + ((PAGE_FILE,) if (folder / PAGE_FILE).is_file() else ()))
    statement = _statement(bundle.manifest.model_name, {name: sha256_file(folder / name) for name in names})
    path = folder / SIGNATURE_FILE
    write_bytes(path, _seal(statement, private))
    return path


def verify_bundle(folder: Path, public_key: Path) -> SignedBy:
    """Check that an export, or the version of a repository that was made from it, is what the owner of a key signed.

    Args:
        folder: Holds ``model.sig`` and the files of the bundle. The report's page may be missing: repositories keep none.
        public_key: The key that one trusts, in PEM form; it comes from its owner, never from the export.

    Returns:
        Which key signed which files.

    Raises:
        SignatureError: There is no signature, it is of another key, or a file was changed since.
        ContractError: The bundle itself is not whole.
        MissingDependencyError: The extra ``sign`` is not installed.
    """
    public = _load_public_key(public_key)
    path = folder / SIGNATURE_FILE
    statement = _open(path, public, public_key)
    files = {resource.name: resource.digest for resource in statement.predicate.resources}
    _check_files(folder, path, files)
    Bundle.open(folder)
    return SignedBy(public.key_id, public.algorithm, statement.subject[0].name, files)


class _Part(BaseModel):
    """What others may have added is not signed for Convoy's purposes, and is not read."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)


class _Resource(_Part):
    name: Annotated[str, StringConstraints(pattern=r"^\.?[A-Za-z0-9_-][A-Za-z0-9._-]*$")]
    algorithm: Literal["sha256"]
    digest: Sha256


class _Serialization(_Part):
    method: Literal["files"]
    hash_type: Literal["sha256"] = Field(alias="hash_type")
    allow_symlinks: bool = Field(alias="allow_symlinks")
    ignore_paths: tuple[str, ...] = Field(default=(), alias="ignore_paths")


class _Predicate(_Part):
    serialization: _Serialization
    resources: tuple[_Resource, ...]


class _SubjectDigest(_Part):
    sha256: Sha256


class _Subject(_Part):
    name: str
    digest: _SubjectDigest


class _Statement(_Part):
    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: Annotated[tuple[_Subject, ...], Field(min_length=1, max_length=1)]
    predicate_type: Literal["https://model_signing/signature/v1.0"]
    predicate: _Predicate


class _DsseSignature(_Part):
    sig: str


class _Envelope(_Part):
    payload: str
    payload_type: Literal["application/vnd.in-toto+json"]
    signatures: Annotated[tuple[_DsseSignature, ...], Field(min_length=1, max_length=1)]


class _KeyHint(_Part):
    hint: str = ""


class _VerificationMaterial(_Part):
    public_key: _KeyHint


class _SignatureDocument(_Part):
    media_type: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]
    verification_material: _VerificationMaterial
    dsse_envelope: _Envelope


_P = TypeVar("_P", bound=_Part)


def _statement(model_name: str, files: dict[str, str]) -> bytes:
    document = {
        "_type": _STATEMENT_TYPE,
        "subject": [{"name": model_name, "digest": {"sha256": _root_digest(files.values())}}],
        "predicateType": _PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": list(_NOT_COVERED),
            },
            "resources": [{"name": name, "algorithm": "sha256", "digest": digest} for name, digest in files.items()],
        },
    }
    return json.dumps(document).encode()


def _seal(statement: bytes, key: PrivateKey) -> bytes:
    document = {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": key.public.key_id}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(statement).decode(),
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(key.sign(_pae(statement))).decode(), "keyid": ""}],
        },
    }
    return (json.dumps(document, indent=2) + "\n").encode()


def _open(path: Path, public: PublicKey, public_key: Path) -> _Statement:
    """The statement of a signature file, parsed from the very bytes that the signature was found to cover."""
    if not path.is_file():
        raise SignatureError(
            f"{path.parent}: expected a signature ({SIGNATURE_FILE}), found none: nobody stands behind this export. "
            "`convoy export --sign KEY` signs one; otherwise ask whoever made it."
        )
    if path.stat().st_size > _MAX_BYTES:
        raise SignatureError(f"{path}: expected a signature of at most {_MAX_BYTES:,} bytes, found {path.stat().st_size:,}.")
    document = _parse(_SignatureDocument, path.read_bytes(), path)
    found = document.verification_material.public_key.hint
    if found and found != public.key_id:
        raise SignatureError(
            f"{path}: expected a signature by the key of {public_key} (SHA-256 {public.key_id[:16]}...), found one by another key "
            f"({found[:16]!r}...). Take the public key of whoever made the export, or do not trust it."
        )
    payload = _decode(document.dsse_envelope.payload, path)
    if not public.verify(_decode(document.dsse_envelope.signatures[0].sig, path), _pae(payload)):
        raise SignatureError(
            f"{path}: the signature is not one by the key of {public_key} over what stands in the file: it is by another key, or "
            "the file was changed. Do not trust this export."
        )
    statement = _parse(_Statement, payload, path)
    resources = statement.predicate.resources
    if statement.subject[0].digest.sha256 != _root_digest(resource.digest for resource in resources):
        raise SignatureError(f"{path}: the digest of the whole does not follow from those of the files: sign the export again.")
    return statement


def _check_files(folder: Path, path: Path, files: dict[str, str]) -> None:
    uncovered = [name for name in BUNDLE_FILES if name not in files]
    if uncovered:
        raise SignatureError(
            f"{path}: expected a signature that covers {', '.join(BUNDLE_FILES)}; it leaves out {', '.join(uncovered)}."
        )
    present = {name for name in files if name in BUNDLE_FILES or (folder / name).exists()}
    changed = sorted(name for name in present if sha256_file(folder / name) != files[name])
    if len(changed) > 1 and "manifest.json" in changed:
        raise SignatureError(
            f"{folder}: {', '.join(changed)} are not the files that were signed: the signature is that of another export, or they "
            "were changed since. Take export and signature from the same place, whole."
        )
    if changed:
        raise SignatureError(f"{folder}: {', '.join(changed)} changed after the export was signed. Take the export again, whole.")
    if PAGE_FILE not in files and (folder / PAGE_FILE).exists():
        raise SignatureError(f"{folder / PAGE_FILE}: is not covered by the signature: remove it, or sign the export again.")


def _pae(payload: bytes) -> bytes:
    return b"DSSEv1 %d %b %d %b" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)


def _root_digest(digests: Iterable[str]) -> str:
    whole = hashlib.sha256()
    for digest in digests:
        whole.update(bytes.fromhex(digest))
    return whole.hexdigest()


def _load_public_key(path: Path) -> PublicKey:
    try:
        from convoy.contract.signing_key import load_public_key
    except ImportError as error:
        raise _missing() from error
    return load_public_key(path)


def _missing() -> MissingDependencyError:
    return MissingDependencyError("signatures need the `cryptography` package: pip install '.[sign]' in Convoy's folder.")


def _parse(document: type[_P], data: bytes, path: Path) -> _P:
    try:
        return document.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise SignatureError(
            f"{path}: expected a signature in the form of OpenSSF Model Signing 1.0; at {where}: {first['msg']}. "
            "Sign the export again."
        ) from error


def _decode(text: str, path: Path) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SignatureError(f"{path}: expected base64, found something else. Sign the export again.") from error
