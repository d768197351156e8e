"""Replay the goldens of exports in whatever ONNX Runtime runs this script: plain numpy and onnxruntime, nothing of Convoy.

``python _replay.py FOLDER...`` prints one JSON document: the version, and for each folder and output the largest difference, how
many elements lie outside the report's tolerance, and how many decisions differ; or the error.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime


def replay(folder: Path) -> dict[str, dict[str, float]]:
    """What the file answers to its goldens, in one batch and image by image."""
    report = json.loads((folder / "validation.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = {}
    with np.load(folder / "goldens.npz") as goldens:
        images = goldens["image"]
        together = session.run(names, {"image": images})
        alone = [session.run(names, {"image": image[None]}) for image in images]
        for i, name in enumerate(names):
            expected = goldens[name].astype(np.float64)
            tolerance = report["tolerances"][name]
            allowed = tolerance["atol"] + tolerance["rtol"] * np.abs(expected)
            rows = {"max_abs_diff": 0.0, "n_outside": 0, "n_decisions": 0}
            for actual in (together[i], np.concatenate([answers[i] for answers in alone])):
                diff = np.abs(actual - expected)
                clear = np.sort(expected, axis=1)[:, -1] - np.sort(expected, axis=1)[:, -2] > 2 * tolerance["atol"]
                rows["max_abs_diff"] = max(rows["max_abs_diff"], float(diff.max()))
                rows["n_outside"] += int((~(diff <= allowed)).sum())  # NaN is outside
                rows["n_decisions"] += int((clear & (actual.argmax(axis=1) != expected.argmax(axis=1))).sum())
            found[name] = rows
    return found


def main(folders: list[str]) -> None:
    """Print what all folders say."""
    answers: dict[str, dict[str, object]] = {}
    for folder in folders:
        try:
            answers[folder] = {"outputs": replay(Path(folder))}
        except Exception as error:  # noqa: BLE001 whatever an old runtime says of a file
            answers[folder] = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps({"version": onnxruntime.__version__, "exports": answers}))


if __name__ == "__main__":
    main(sys.argv[1:])
