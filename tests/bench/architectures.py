"""What becomes of a tiny model of every decoder-only type of transformers: `nox -s architectures`.

Arguments are model types; none: all. A line each, with what is exact, refused, unknown or wrong;
where a type is unknown, the names of its tensors, from which a record can be made.
"""

from __future__ import annotations

import re
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ctcli.models.families import FAMILIES
from tests.helpers.architectures import CHAINS, proof
from tests.helpers.every_model import TYPES
from tests.helpers.tiny_models import read

_NUMBER = re.compile(r"(?<=\.)[0-9]+(?=\.|$)")


def report(model_type: str) -> list[str]:
    """Print what a type admits; the verdicts, in the order of `CHAINS`."""
    with tempfile.TemporaryDirectory() as folder:
        tied = model_type in FAMILIES and FAMILIES[model_type].tied
        found = proof(model_type, Path(folder), tied=tied)
        print(f"{model_type:22}", "  ".join(f"{c} {v}" for c, v in found.items()), flush=True)
        if model_type not in FAMILIES:
            tensors = read(Path(folder) / "source")[1]
            shapes = {_NUMBER.sub("*", name): [*tensor.shape] for name, tensor in tensors.items()}
            print(*(f"    {name} {shape}" for name, shape in shapes.items()), sep="\n")
    return [verdict.partition(":")[0].partition(" ")[0] for verdict in found.values()]


def main() -> int:
    """Report on the types that are named, or all; 1 where a record is wrong."""
    warnings.filterwarnings("ignore")
    quiet: Any = logging
    quiet.disable_progress_bar()
    quiet.set_verbosity_error()
    types = sys.argv[1:] or TYPES
    verdicts = [report(model_type) for model_type in types]
    for i, chain in enumerate(CHAINS):
        counts = Counter(each[i] for each in verdicts)
        print(f"{chain}: {', '.join(f'{n} {verdict}' for verdict, n in counts.most_common())}")
    return int(any("WRONG" in each for each in verdicts))


if __name__ == "__main__":
    raise SystemExit(main())
