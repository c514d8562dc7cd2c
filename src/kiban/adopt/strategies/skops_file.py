"""A classifier of scikit-learn in the folder of an adopted model: one skops file, which runs no code when it is opened."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from kiban.errors import FormatError
from kiban.files import read_json, verify_folder
from kiban.weights.folder import write_folder

FILE = "model.skops"


def save_classifier(classifier: Any, folder: Path, *, strategy: str, labels: Sequence[str]) -> None:
    """Write `model.skops` (opens with skops, no pickle) and the manifest."""
    import skops.io

    write_folder(
        folder,
        tensors={},
        config={"labels": list(labels)},
        files={FILE: skops.io.dumps(classifier)},
        manifest={"strategy": strategy, "labels": list(labels)},
    )


def load_classifier(folder: Path, trusted: Collection[str]) -> tuple[Any, list[str]]:
    """What save_classifier wrote, and its labels. Raises FormatError if the file asks for types that are not trusted."""
    import skops.io

    verify_folder(folder)
    labels = read_json(folder / "kiban.json")["labels"]
    path = folder / FILE
    try:
        foreign = set(skops.io.get_untrusted_types(file=path)) - set(trusted)
        if foreign:
            names = ", ".join(sorted(foreign))
            raise FormatError(path, why=f"asks for types that a baseline does not use: {names}")
        return skops.io.load(path, trusted=list(trusted)), labels
    except (OSError, BadZipFile) as error:
        raise FormatError(path, why=f"is not a skops file: {error}") from error


def probabilities(classifier: Any, features: Any, num_labels: int) -> NDArray[np.float64]:
    """(N, C) of features (N, ...), N at least 1; a class that the training rows lacked gets 0."""
    told = classifier.predict_proba(features)
    found = np.zeros((len(told), num_labels))
    found[:, classifier.classes_] = told
    return found
