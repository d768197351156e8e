"""The cookbook, block by block, as a reader would run it: against a real server that serves the `lenet5` that comes along."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import inspect
import io
import ipaddress
import os
import re
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from convoy.contract import errors
from convoy.serving.client import AsyncClient, Client
from convoy.serving.client._failure import GRPC_STATUS, HTTP_STATUS
from convoy.serving.client._retry import RETRIED
from convoy.serving.triton import TritonServer

ROOT = Path(__file__).parents[2]
COOKBOOK = ROOT / "docs" / "cookbook.md"
BIN = Path(sys.executable).parent
SAMPLES = "Before you start"
MIGRATION = "Moving over from tritonclient, line by line"


@dataclass(frozen=True)
class Block:
    """A block of the page: its language and text, where it stands, and what is to be printed."""

    language: str
    text: str
    line: int
    printed: str | None

    @property
    def file_name(self) -> str | None:
        """The name that a program is to be saved under, where its first line says one."""
        found = re.match(r"# (\w+\.py)\n", self.text) if self.language == "python" else None
        return found[1] if found else None

    @property
    def code(self) -> CodeType:
        """Compiled so that tracebacks name the lines of the page."""
        return compile("\n" * self.line + self.text, str(COOKBOOK), "exec")

    def check(self, stdout: str) -> None:
        """Compare what was printed with what the page says; `...` stands for anything."""
        comments = re.findall(r"# -> (.*)$", self.text, re.MULTILINE)
        assert not (comments and self.printed), self.line
        expected = "\n".join(comments) if self.printed is None else self.printed.rstrip("\n")
        actual = "\n".join(line.rstrip() for line in stdout.splitlines())
        pattern = ".*".join(re.escape(part) for part in expected.split("..."))
        assert re.fullmatch(pattern, actual, re.DOTALL), f"{COOKBOOK.name}:{self.line}: expected\n{expected}\nfound\n{actual}"


def sections(page: str) -> dict[str, list[Block]]:
    """The blocks of each section; a block `text` belongs to the one before it."""
    found: dict[str, list[Block]] = {}
    heading = ""
    for match in re.finditer(r"^## ([^\n]+)$|^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        if match[1]:
            heading = match[1]
            continue
        assert match[2] in ("python", "sh", "text"), match[0]
        block = Block(match[2], match[3], page[: match.start()].count("\n") + 1, None)
        blocks = found.setdefault(heading, [])
        if block.language == "text":
            before = blocks.pop()
            assert before.printed is None
            block = Block(before.language, before.text, before.line, block.text)
        blocks.append(block)
    return found


PAGE = COOKBOOK.read_text(encoding="utf-8")
SECTIONS = sections(PAGE)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """What `convoy serve` starts in a clone, on free ports. Its own: the page unloads and loads the model."""
    repository = tmp_path_factory.mktemp("cookbook") / "model_repository"
    shutil.copytree(ROOT / "model_repository", repository)
    with TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0) as server:
        yield server


@pytest.fixture(scope="module")
def page(server: TritonServer) -> dict[str, list[Block]]:
    """The page with the ports of this server in the place of Triton's own."""
    text = PAGE.replace("localhost:8001", f"localhost:{server.ports['grpc']}")
    return sections(text.replace("localhost:8000", f"localhost:{server.ports['http']}"))


@pytest.fixture
def folder(page: dict[str, list[Block]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that a reader works in, with the samples; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    run(page[SAMPLES], tmp_path)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def run(blocks: list[Block], folder: Path) -> None:
    """Run a section's blocks in one namespace, and compare what they print."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        if block.language == "sh":
            if block.text != "convoy serve\n":  # which is the fixture's
                block.check(run_shell(block, folder))
        elif block.file_name:
            (folder / block.file_name).write_text(block.text, encoding="utf-8")
        else:
            stdout = io.StringIO()
            with redirect_stdout(stdout):
                exec(block.code, namespace)
            block.check(stdout.getvalue())


def run_shell(block: Block, folder: Path) -> str:
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", "-ec", block.text]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
    return done.stdout if block.printed is not None else ""


@pytest.mark.integration
@pytest.mark.parametrize("heading", [heading for heading in SECTIONS if heading not in (SAMPLES, "TLS and headers")])
def test_every_block_of_a_section_runs_and_prints_what_the_page_says(
    heading: str, page: dict[str, list[Block]], folder: Path
) -> None:
    run(page[heading], folder)


@pytest.mark.integration
def test_the_blocks_about_tls_run_where_a_proxy_wants_to_know_who_calls(
    server: TritonServer, page: dict[str, list[Block]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    context = write_certificates(folder)
    with tls_proxy(server.ports["grpc"], context) as grpcs, tls_proxy(server.ports["http"], context) as https:
        blocks = [
            Block(
                block.language,
                block.text.replace("grpcs://models.example.org", f"grpcs://localhost:{grpcs}").replace(
                    "https://models.example.org", f"https://localhost:{https}"
                ),
                block.line,
                block.printed,
            )
            for block in page["TLS and headers"]
        ]
        run(blocks, folder)


def test_a_block_that_prints_something_else_is_noticed() -> None:
    for text, printed in (("print(1)  # -> 2\n", None), ("print(1)\n", None), ("print(1)\n", "2\n"), ("1  # -> 1\n", None)):
        with pytest.raises(AssertionError, match="expected"):
            run([Block("python", text, 1, printed)], Path())
    run([Block("python", "print([1, 2, 3])  # -> [1, ..., 3]\n", 1, None)], Path())


def test_every_program_that_is_saved_is_run_or_imported() -> None:
    for heading, blocks in SECTIONS.items():
        for block in blocks:
            if block.file_name:
                module = block.file_name.removesuffix(".py")
                used = rf"^(from {module} import|(python|pytest -q) {module}\.py$)"
                assert any(re.search(used, other.text, re.MULTILINE) for other in blocks if other is not block), (heading, module)


def test_every_public_method_is_shown() -> None:
    shown = set(re.findall(r"\bclient\.(\w+)\(", PAGE))
    for kind in (Client, AsyncClient):
        methods = {name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}
        assert methods
        assert methods - shown == set()


def table(heading: str) -> list[list[str]]:
    """The rows of a section's table, without its head."""
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if line.startswith("| ")]
    return rows[1:]


def test_the_table_of_errors_is_the_client_s_own() -> None:
    rows = {row[0].strip("`"): row for row in table("Errors")}
    kinds = {kind.__name__: kind for kind in errors.ClientError.__subclasses__()}
    assert kinds
    assert rows.keys() == kinds.keys()
    assert not any(kind.__subclasses__() for kind in kinds.values())
    for name, (_, statuses, _, again, _) in rows.items():
        assert set(re.findall(r"`([A-Z_]+)`", statuses)) == {code for code, kind in GRPC_STATUS.items() if kind is kinds[name]}
        assert {int(code) for code in re.findall(r"\b\d{3}\b", statuses)} == {
            code for code, kind in HTTP_STATUS.items() if kind is kinds[name]
        }
        assert again == ("yes" if kinds[name] in RETRIED else "no")


def test_the_table_of_tritonclient_names_what_both_have() -> None:
    import tritonclient.grpc
    import tritonclient.http

    rows = table(MIGRATION)
    theirs = set(re.findall(r"\bclient\.(\w+)\(", "\n".join(left for left, _ in rows)))
    ours = set(re.findall(r"\bclient\.(\w+)\(", "\n".join(right for _, right in rows)))
    assert len(theirs) > 8
    for name in theirs:
        assert hasattr(tritonclient.grpc.InferenceServerClient, name)
        assert hasattr(tritonclient.http.InferenceServerClient, name)
    for name in ours:
        assert hasattr(Client, name)


def test_the_contents_name_every_section() -> None:
    contents = re.findall(r"^\[[^]]+\]\(#([\w-]+)\)", PAGE, re.MULTILINE)
    headings = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert contents == anchors[1:]
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= set(anchors)


def write_certificates(folder: Path) -> ssl.SSLContext:
    """An authority (``ca.pem``) and a caller whom it vouches for (``me.pem``, ``me.key``); a proxy's context."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now = datetime.datetime.now(datetime.timezone.utc)
    authority = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")])

    def write(name: str, key: ec.EllipticCurvePrivateKey, *, is_authority: bool = False) -> None:
        local = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        subject = issuer if is_authority else x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(identifier, critical=False)
            .add_extension(local, critical=False)
            .sign(authority, hashes.SHA256())
        )
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / f"{name}.key").write_bytes(key.private_bytes(*pem))

    write("ca", authority, is_authority=True)
    write("me", ec.generate_private_key(ec.SECP256R1()))
    write("proxy", ec.generate_private_key(ec.SECP256R1()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "proxy.pem", folder / "proxy.key")
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@contextlib.contextmanager
def tls_proxy(to_port: int, context: ssl.SSLContext) -> Iterator[int]:
    """A proxy with TLS before a port of this machine; gives its own port."""
    loop = asyncio.new_event_loop()
    started = threading.Event()
    port = 0

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", to_port)
        await asyncio.gather(pump(reader, server_writer), pump(server_reader, writer))

    async def serve() -> None:
        nonlocal port
        server = await asyncio.start_server(connect, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        started.set()
        async with server:
            await ended.wait()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait(others, timeout=5) if others else None

    ended = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert started.wait(10)
        yield port
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(20)
        loop.close()
