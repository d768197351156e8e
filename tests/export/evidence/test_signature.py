"""model.sig: what it proves, and every way in which it must refuse."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from convoy.contract.bundle import BUNDLE_FILES, Bundle
from convoy.contract.errors import ContractError, MissingDependencyError, SignatureError, ValidationFailedError
from convoy.export.evidence import (
    CARD_FILE,
    PAGE_FILE,
    SIGNATURE_FILE,
    open_key,
    render_card,
    render_page,
    sign_bundle,
    verify_bundle,
)

MakeBundle = Callable[..., Bundle]
KINDS: dict[str, Callable[[], Any]] = {
    "ECDSA P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ECDSA P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ECDSA P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
}


def write_keys(
    folder: Path,
    key: Any,
    *,
    name: str = "key",
    form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8,
    passphrase: str = "",
) -> tuple[Path, Path]:
    encryption: Any = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase.encode())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, encryption))
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path, KINDS["ECDSA P-256"]())


@pytest.fixture
def signed(make_bundle: MakeBundle, keys: tuple[Path, Path]) -> Path:
    bundle = make_bundle("signed")
    (bundle.folder / PAGE_FILE).write_text(render_page(bundle), encoding="utf-8")
    (bundle.folder / CARD_FILE).write_text(render_card(bundle), encoding="utf-8")
    sign_bundle(bundle.folder, keys[0])
    return bundle.folder


@pytest.mark.parametrize("kind", KINDS)
def test_what_one_key_signs_its_public_half_verifies(kind: str, make_bundle: MakeBundle, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, KINDS[kind]())
    folder = make_bundle().folder
    assert sign_bundle(folder, private) == folder / SIGNATURE_FILE
    found = verify_bundle(folder, public)
    assert found.algorithm == kind
    assert found.model_name == "lenet5"
    assert found.key_id == hashlib.sha256(public.read_bytes()).hexdigest()
    assert found.files == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sorted(BUNDLE_FILES)}


def test_openssl_verifies_the_signature_too(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    envelope = json.loads((signed / SIGNATURE_FILE).read_bytes())["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"])
    (tmp_path / "pae").write_bytes(b"DSSEv1 28 application/vnd.in-toto+json %d " % len(payload) + payload)
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    command = ["openssl", "dgst", "-sha256", "-verify", str(keys[1]), "-signature", "sig", "pae"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0


def test_a_signature_that_the_specification_describes_is_accepted(make_bundle: MakeBundle, tmp_path: Path) -> None:
    """Built here from the published form alone: other tools' fields, names in another order, the key's hint left out."""
    folder = make_bundle().folder
    key = KINDS["ECDSA P-256"]()
    _, public = write_keys(tmp_path, key)
    names = sorted(BUNDLE_FILES, reverse=True)
    digests = [hashlib.sha256((folder / name).read_bytes()).digest() for name in names]
    statement = {
        "predicateType": "https://model_signing/signature/v1.0",
        "_type": "https://in-toto.io/Statement/v1",
        "predicate": {
            "resources": [
                {"digest": digest.hex(), "name": name, "algorithm": "sha256"} for name, digest in zip(names, digests, strict=True)
            ],
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": True, "other": 1},
        },
        "subject": [{"name": "by another tool", "digest": {"sha256": hashlib.sha256(b"".join(digests)).hexdigest()}}],
    }
    payload = json.dumps(statement).encode()
    signature = key.sign(b"DSSEv1 28 application/vnd.in-toto+json %d %b" % (len(payload), payload), ec.ECDSA(hashes.SHA256()))
    document = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": base64.b64encode(signature).decode()}],
        },
    }
    (folder / SIGNATURE_FILE).write_text(json.dumps(document))
    assert verify_bundle(folder, public).model_name == "by another tool"


@pytest.mark.parametrize("name", [*BUNDLE_FILES, PAGE_FILE])
def test_a_change_anywhere_in_a_signed_file_is_found(name: str, signed: Path, keys: tuple[Path, Path]) -> None:
    path = signed / name
    whole = path.read_bytes()
    for place in {0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 2, len(whole) - 1}:
        for bit in (0x01, 0x80):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            with pytest.raises(SignatureError, match=f"{name} changed after the export was signed"):
                verify_bundle(signed, keys[1])
    for other in (whole[:-1], whole + b"\n", b""):
        path.write_bytes(other)
        with pytest.raises(SignatureError):
            verify_bundle(signed, keys[1])
    path.write_bytes(whole)
    assert PAGE_FILE in verify_bundle(signed, keys[1]).files


def test_every_byte_of_what_is_signed_counts(signed: Path, keys: tuple[Path, Path]) -> None:
    path = signed / SIGNATURE_FILE
    document = json.loads(path.read_bytes())
    payload = base64.b64decode(document["dsseEnvelope"]["payload"])
    for place in range(len(payload)):
        changed = payload[:place] + bytes([payload[place] ^ 1]) + payload[place + 1 :]
        document["dsseEnvelope"]["payload"] = base64.b64encode(changed).decode()
        path.write_text(json.dumps(document))
        with pytest.raises(SignatureError, match="is not one by the key"):
            verify_bundle(signed, keys[1])


def test_every_byte_of_the_signature_counts(signed: Path, keys: tuple[Path, Path]) -> None:
    path = signed / SIGNATURE_FILE
    document = json.loads(path.read_bytes())
    signature = base64.b64decode(document["dsseEnvelope"]["signatures"][0]["sig"])
    for place in range(len(signature)):
        changed = signature[:place] + bytes([signature[place] ^ 1]) + signature[place + 1 :]
        document["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(changed).decode()
        path.write_text(json.dumps(document))
        with pytest.raises(SignatureError, match="is not one by the key"):
            verify_bundle(signed, keys[1])


def test_a_signature_by_another_key_is_refused(signed: Path, tmp_path: Path) -> None:
    _, other = write_keys(tmp_path, KINDS["ECDSA P-256"](), name="other")
    with pytest.raises(SignatureError, match=r"expected a signature by the key of .*other\.pub.*found one by another key"):
        verify_bundle(signed, other)
    path = signed / SIGNATURE_FILE
    document = json.loads(path.read_bytes())
    document["verificationMaterial"]["publicKey"]["hint"] = hashlib.sha256(other.read_bytes()).hexdigest()
    path.write_text(json.dumps(document))
    with pytest.raises(SignatureError, match="is not one by the key"):
        verify_bundle(signed, other)


def test_a_signature_of_another_export_is_refused(signed: Path, keys: tuple[Path, Path], make_bundle: MakeBundle) -> None:
    other = make_bundle("other", n_classes=11).folder
    shutil.copyfile(signed / SIGNATURE_FILE, other / SIGNATURE_FILE)
    with pytest.raises(SignatureError, match="the signature is that of another export, or they were changed since"):
        verify_bundle(other, keys[1])


def test_an_unsigned_export_is_refused(make_bundle: MakeBundle, keys: tuple[Path, Path]) -> None:
    with pytest.raises(SignatureError, match=r"expected a signature .*found none"):
        verify_bundle(make_bundle().folder, keys[1])


def test_a_version_of_a_repository_verifies_without_the_page(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    version = tmp_path / "repository" / "lenet5" / "1"
    version.mkdir(parents=True)
    for name in (*BUNDLE_FILES, SIGNATURE_FILE):
        shutil.copyfile(signed / name, version / name)
    (version / "config.pbtxt").write_text("name: 'lenet5'")
    assert verify_bundle(version, keys[1]).model_name == "lenet5"


@pytest.mark.parametrize("name", BUNDLE_FILES)
def test_a_file_that_is_missing_is_refused(name: str, signed: Path, keys: tuple[Path, Path]) -> None:
    (signed / name).unlink()
    with pytest.raises(ContractError, match=name):
        verify_bundle(signed, keys[1])


def test_a_page_that_was_put_beside_later_is_refused(make_bundle: MakeBundle, keys: tuple[Path, Path]) -> None:
    folder = make_bundle().folder
    sign_bundle(folder, keys[0])
    (folder / PAGE_FILE).write_text("all is well")
    with pytest.raises(SignatureError, match="is not covered by the signature"):
        verify_bundle(folder, keys[1])


def test_the_card_may_be_completed_after_signing(signed: Path, keys: tuple[Path, Path]) -> None:
    (signed / CARD_FILE).write_text("with a licence")
    assert CARD_FILE not in verify_bundle(signed, keys[1]).files


@pytest.mark.parametrize("verdict", ["failed", "undecided"])
def test_what_did_not_pass_is_not_signed(verdict: str, make_bundle: MakeBundle, keys: tuple[Path, Path]) -> None:
    folder = make_bundle(verdict=verdict).folder
    with pytest.raises(ValidationFailedError):
        sign_bundle(folder, keys[0])
    assert not (folder / SIGNATURE_FILE).exists()


def test_the_passphrase_is_asked_for_only_where_it_is_needed(make_bundle: MakeBundle, tmp_path: Path) -> None:
    folder = make_bundle().folder
    asked: list[str] = []

    def passphrase() -> str:
        asked.append("asked")
        return "correct horse"

    plain, _ = write_keys(tmp_path, KINDS["Ed25519"](), name="plain")
    sign_bundle(folder, plain, passphrase=passphrase)
    assert asked == []
    locked, public = write_keys(tmp_path, KINDS["Ed25519"](), name="locked", passphrase="correct horse")
    sign_bundle(folder, locked, passphrase=passphrase)
    assert asked == ["asked"]
    assert verify_bundle(folder, public).algorithm == "Ed25519"
    with pytest.raises(SignatureError, match="is encrypted, and no passphrase was given"):
        sign_bundle(folder, locked)
    with pytest.raises(SignatureError, match="cannot be opened with this passphrase"):
        sign_bundle(folder, locked, passphrase=lambda: "wrong")


def test_a_key_can_be_opened_ahead(make_bundle: MakeBundle, tmp_path: Path) -> None:
    locked, public = write_keys(tmp_path, KINDS["Ed25519"](), passphrase="correct horse")
    key = open_key(locked, passphrase=lambda: "correct horse")
    assert "PRIVATE" not in repr(key)
    folder = make_bundle().folder
    sign_bundle(folder, key)
    assert verify_bundle(folder, public).key_id == key.public.key_id
    with pytest.raises(SignatureError, match="cannot be read"):
        open_key(tmp_path / "missing")


def test_the_older_pem_form_of_elliptic_curves_is_read(make_bundle: MakeBundle, tmp_path: Path) -> None:
    form = serialization.PrivateFormat.TraditionalOpenSSL
    private, public = write_keys(tmp_path, KINDS["ECDSA P-256"](), form=form)
    assert private.read_bytes().startswith(b"-----BEGIN EC PRIVATE KEY")
    folder = make_bundle().folder
    sign_bundle(folder, private)
    verify_bundle(folder, public)


def test_keys_of_other_kinds_and_forms_are_refused(signed: Path, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    before = (signed / SIGNATURE_FILE).read_bytes()
    rsa_private, rsa_public = write_keys(tmp_path, rsa.generate_private_key(public_exponent=65537, key_size=2048), name="rsa")
    koblitz_private, koblitz_public = write_keys(tmp_path, ec.generate_private_key(ec.SECP256K1()), name="koblitz")
    ssh_private, _ = write_keys(tmp_path, KINDS["Ed25519"](), name="ssh", form=serialization.PrivateFormat.OpenSSH)
    (tmp_path / "text").write_text("not a key")
    (tmp_path / "ssh.line").write_text("ssh-ed25519 AAAAC3Nza me@here")
    (tmp_path / "large").write_bytes(b"-" * (1 << 17))
    for private, message in (
        (rsa_private, "found RSA"),
        (koblitz_private, "found secp256k1"),
        (ssh_private, "found OpenSSH's own form"),
        (keys[1], "found a public one"),
        (tmp_path / "text", "found something else"),
        (tmp_path / "large", "more than 65,536 bytes"),
        (tmp_path / "missing", "cannot be read"),
        (tmp_path, "cannot be read"),
    ):
        with pytest.raises(SignatureError, match=message):
            sign_bundle(signed, private)
    for public, message in (
        (rsa_public, "found .*RSA"),
        (koblitz_public, "found secp256k1"),
        (keys[0], "found a private one"),
        (tmp_path / "ssh.line", "found OpenSSH's own form"),
        (tmp_path / "text", "found something else"),
        (tmp_path / "missing", "cannot be read"),
    ):
        with pytest.raises(SignatureError, match=message):
            verify_bundle(signed, public)
    assert (signed / SIGNATURE_FILE).read_bytes() == before


def test_no_message_holds_a_key(signed: Path, tmp_path: Path) -> None:
    private, _ = write_keys(tmp_path, KINDS["Ed25519"]())
    lines = private.read_text().splitlines()
    (tmp_path / "damaged.pem").write_text("\n".join([lines[0], lines[1][:-8] + "AAAAAAA=", lines[2]]))
    for call in (lambda: verify_bundle(signed, private), lambda: sign_bundle(signed, tmp_path / "damaged.pem")):
        with pytest.raises(SignatureError) as caught:
            call()
        chain: BaseException | None = caught.value
        while chain is not None:
            assert lines[1][8:24] not in str(chain)
            chain = chain.__cause__ or chain.__context__


@pytest.mark.parametrize(
    "damage",
    [
        lambda document: {},
        lambda document: {**document, "mediaType": "text/plain"},
        lambda document: {**document, "dsseEnvelope": {**document["dsseEnvelope"], "payloadType": "text/plain"}},
        lambda document: {**document, "dsseEnvelope": {**document["dsseEnvelope"], "payload": "*"}},
        lambda document: {**document, "dsseEnvelope": {**document["dsseEnvelope"], "signatures": []}},
        lambda document: {**document, "dsseEnvelope": {**document["dsseEnvelope"], "signatures": [{"sig": "é"}]}},
        lambda document: [document],
        lambda document: "x" * (1 << 21),
    ],
)
def test_a_damaged_signature_file_is_refused(damage: Callable[[Any], Any], signed: Path, keys: tuple[Path, Path]) -> None:
    path = signed / SIGNATURE_FILE
    path.write_text(json.dumps(damage(json.loads(path.read_bytes()))))
    with pytest.raises(SignatureError, match=r"model\.sig: expected"):
        verify_bundle(signed, keys[1])


def sign_statement(folder: Path, key: Any, resources: list[dict[str, str]]) -> None:
    """A well-signed statement of anything at all."""
    from convoy.contract import signature
    from convoy.contract.signing_key import load_private_key

    whole = hashlib.sha256(b"".join(bytes.fromhex(resource["digest"]) for resource in resources)).hexdigest()
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "x", "digest": {"sha256": whole}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {"serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False}, "resources": resources},
    }
    (folder / SIGNATURE_FILE).write_bytes(signature._seal(json.dumps(statement).encode(), load_private_key(key)))


def test_a_signature_must_cover_the_whole_bundle_and_nothing_outside(signed: Path, keys: tuple[Path, Path]) -> None:
    resources = [
        {"name": name, "algorithm": "sha256", "digest": hashlib.sha256((signed / name).read_bytes()).hexdigest()}
        for name in BUNDLE_FILES
    ]
    sign_statement(signed, keys[0], resources[:-1])
    with pytest.raises(SignatureError, match=r"it leaves out goldens\.npz"):
        verify_bundle(signed, keys[1])
    for name in ("../secret", "/etc/passwd", "a/b", ".."):
        sign_statement(signed, keys[0], [*resources, {**resources[0], "name": name}])
        with pytest.raises(SignatureError):
            verify_bundle(signed, keys[1])


def test_without_the_extra_it_says_what_to_install(signed: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "convoy.contract.signing_key", raising=False)
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(MissingDependencyError, match=r"\.\[sign\]"):
        verify_bundle(signed, keys[1])
    with pytest.raises(MissingDependencyError, match=r"\.\[sign\]"):
        sign_bundle(signed, keys[0])
