"""Do exported files load, and answer alike, in the oldest and the newest ONNX Runtime that servers carry?

``python -m benchmarks.onnxruntime_versions [--json]`` makes an environment for each version (pip installs it, once, into a cache
folder) and replays the goldens of the shipped LeNet5 and of fresh exports there, in the precisions that there are, with nothing of
Convoy beside them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click

from benchmarks._networks import build_subject
from benchmarks.harness import Figure, benchmark
from benchmarks.peers.environment import clean_environment, default_cache, environment
from convoy.contract.errors import ConvoyError
from convoy.export import EvaluationSet, ModelFacts, Reduction, export_classifier

OLDEST: Final = "1.19.2"
NEWEST: Final = "1.27"
_ANY_DROP: Final = 0.99
_ROOT: Final = Path(__file__).resolve().parent.parent
_REPLAY: Final = Path(__file__).with_name("_replay.py")
NETWORKS: Final = ("lenet5", "resnet18", "mobilenet_v3_small", "densenet121")


def runtime_environment(version: str, cache: Path) -> Path:
    """The Python of an environment that holds one version of ONNX Runtime; made where it is not there yet.

    Args:
        version: "1.19.2", or "1.27" for the newest of that line.
        cache: Where environments are kept.

    Raises:
        ConvoyError: pip cannot install it.
    """
    exactly = version if version.count(".") == 2 else f"{version}.*"
    numpy = "numpy<2" if version.startswith("1.19") else "numpy<3"
    return environment(f"onnxruntime-{version}", [f"onnxruntime=={exactly}", numpy], cache)


def replay(version: str, folders: Sequence[Path], cache: Path) -> dict[str, Any]:
    """What ``_replay.py`` says of some exports under one version of ONNX Runtime.

    Args:
        version: As for ``runtime_environment``.
        folders: Export folders, or version folders of a repository.
        cache: Where environments are kept.

    Raises:
        ConvoyError: The script fails as a whole.
    """
    python = runtime_environment(version, cache)
    done = subprocess.run(
        [str(python), "-I", str(_REPLAY), *map(str, folders)], capture_output=True, text=True, check=False, env=clean_environment()
    )
    if done.returncode:
        raise ConvoyError(f"onnxruntime {version}: the replay failed: {done.stderr.strip()[-500:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def fresh_exports(networks: Sequence[str], precisions: Sequence[str], folder: Path) -> Iterator[Path]:
    """Export networks with weights as if trained, in each precision; the accuracy is not what is looked at here."""
    for name in networks:
        subject = build_subject(name, 120)
        facts = ModelFacts(name, subject.labels, subject.image, subject.preprocessing)
        evaluation = EvaluationSet(subject.source, subject.test, subject.test_labels)
        for precision in precisions:
            reduction = None
            if precision != "fp32":
                reduction = Reduction("int8" if precision == "int8" else "fp16", _ANY_DROP, subject.train)
            out = folder / f"{name}-{precision}"
            export_classifier(subject.classifier, facts, evaluation, out, reduction=reduction)
            yield out


@benchmark("onnxruntime_versions", packages=("torch", "onnx", "onnxruntime-gpu", "numpy"))
@click.option("--versions", default=f"{OLDEST},{NEWEST}", show_default=True, help="Of ONNX Runtime, with commas.")
@click.option("--networks", default=",".join(NETWORKS), show_default=True, help="Exported anew, with commas.")
@click.option("--precisions", default="fp32,fp16,int8", show_default=True, help="With commas.")
@click.option("--cache", type=click.Path(path_type=Path), default=None, help="Where environments are kept.")
def main(versions: str, networks: str, precisions: str, cache: Path | None) -> Iterator[Figure]:
    """Replay exports in old and new ONNX Runtimes."""
    with tempfile.TemporaryDirectory(prefix="convoy-versions-") as folder:
        shipped = _ROOT / "model_repository" / "lenet5" / "1"
        folders = [shipped, *fresh_exports(networks.split(","), precisions.split(","), Path(folder))]
        for version in versions.split(","):
            answer = replay(version, folders, cache or default_cache())
            for path in folders:
                found = answer["exports"][str(path)]
                name = "lenet5 as shipped" if path == shipped else path.name
                wrong = 1 if "error" in found else sum(out["n_outside"] + out["n_decisions"] for out in found["outputs"].values())
                if "error" in found:
                    print(f"{name} in {answer['version']}: {found['error']}", file=sys.stderr)
                yield Figure.of(f"{name} in ONNX Runtime {answer['version']}: wrong answers", [wrong], "elements", "== 0")


if __name__ == "__main__":
    main()
