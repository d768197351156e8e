"""docs/validation.md names every field of the report as the code does.

``python tests/export/evidence/test_document.py`` writes the tables anew from the docstrings.
"""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from pydantic import BaseModel

from convoy.contract import validation
from convoy.contract.agreement import Tolerance
from convoy.contract.bundle import Bundle
from convoy.contract.manifest import Accuracy
from convoy.contract.signature import SIGNATURE_FILE, sign_bundle, verify_bundle

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "validation.md"
BEGIN, END = "<!-- fields: begin (written by tests/export/evidence/test_document.py) -->", "<!-- fields: end -->"
PARTS: tuple[type[BaseModel], ...] = (
    validation.ValidationReport,
    validation.Check,
    Tolerance,
    Accuracy,
    validation.OutputErrors,
    validation.WorstImage,
    validation.ClassScore,
    validation.LayerError,
    validation.Fault,
    validation.PrecisionFacts,
    validation.Speed,
    validation.Flip,
)
SAID_IN_A_SENTENCE: dict[type[BaseModel], dict[str, str]] = {
    Tolerance: {"atol": "The absolute part.", "rtol": "The part that grows with the expected value."},
    validation.ClassScore: {
        "label": "The class.",
        "expected": "The source's probability.",
        "actual": "The file's probability.",
    },
}
"""Parts whose docstring is one sentence for all fields."""


def attributes(part: type[BaseModel]) -> dict[str, str]:
    """What a docstring says of each attribute; a part without such a section says nothing of any."""
    section = inspect.cleandoc(part.__doc__ or "").partition("Attributes:\n")[2].split("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()).replace("``", "`") for name, text in entries} or SAID_IN_A_SENTENCE.get(part, {})


def type_name(annotation: object) -> str:
    text = annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    text = re.sub(r"(?:typing|convoy|collections)\.(?:\w+\.)*", "", text)
    text = re.sub(r"Annotated\[str, .*?\)\]", "str", text)
    return text.replace("NoneType", "None").replace("|", "\\|")


def tables() -> str:
    lines: list[str] = []
    for part in PARTS:
        said = attributes(part)
        first = inspect.cleandoc(part.__doc__ or "").split("\n\n")[0].replace("\n", " ").replace("``", "`")
        lines += ["", f"### {part.__name__}", "", first, "", "| field | type | meaning |", "|---|---|---|"]
        for name, field in part.model_fields.items():
            lines.append(f"| `{name}` | `{type_name(field.annotation)}` | {said.get(name, '')} |")
    return "\n".join([*lines[1:], ""])


def between(text: str) -> str:
    return text.split(BEGIN + "\n")[1].split("\n" + END)[0]


def test_the_tables_are_what_the_code_says() -> None:
    assert between(DOCUMENT.read_text(encoding="utf-8")).strip() == tables().strip(), f"run: python {Path(__file__).name}"


def test_every_part_of_the_report_is_among_them() -> None:
    reached: set[type[BaseModel]] = set()

    def visit(part: type[BaseModel]) -> None:
        reached.add(part)
        for field in part.model_fields.values():
            for name in re.findall(r"convoy\.[\w.]+\.(\w+)", repr(field.annotation)):
                inner = getattr(validation, name, None)
                if isinstance(inner, type) and issubclass(inner, BaseModel) and inner not in reached:
                    visit(inner)

    visit(validation.ValidationReport)
    assert reached == set(PARTS)


def test_every_field_is_explained() -> None:
    missing = [f"{part.__name__}.{name}" for part in PARTS for name in set(part.model_fields) - set(attributes(part))]
    assert missing == []
    assert [part.__name__ for part in PARTS if set(attributes(part)) - set(part.model_fields)] == []


def test_the_commands_for_keys_work(tmp_path: Path) -> None:
    """Each line of the document that calls openssl runs as it stands, and the keys it makes sign and verify."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    block = next(
        code for code in re.findall(r"```sh\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL) if "genpkey" in code
    )
    commands = [line.split("  #")[0].strip() for line in block.splitlines() if line.startswith("openssl")]
    assert len(commands) == 2
    for command in commands:
        subprocess.run(command, shell=True, cwd=tmp_path, check=True, capture_output=True)
    source = DOCUMENT.parents[1] / "model_repository" / "lenet5" / "1"
    folder = tmp_path / "export"
    shutil.copytree(source, folder)
    sign_bundle(folder, tmp_path / "signing-key.pem")
    assert (folder / SIGNATURE_FILE).is_file()
    assert verify_bundle(folder, tmp_path / "signing-key.pub").model_name == Bundle.open(folder).manifest.model_name


if __name__ == "__main__":
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(
        text.replace(f"{BEGIN}\n{between(text)}\n{END}", f"{BEGIN}\n\n{tables().strip()}\n\n{END}"), encoding="utf-8"
    )
