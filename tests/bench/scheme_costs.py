"""What each scheme costs the bundled model: python -m tests.bench.scheme_costs.

Prints the rows of the guide's table: size, largest relative weight error, rise of the perplexity on
Python source (8 windows of 512 bytes).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from tests.helpers.processes import ROOT
from tests.helpers.quantizing import run_quantize
from tests.rewrites.quantizing.test_perplexity import WINDOW, WINDOWS, perplexity, python_source

SCHEMES = (
    *("FP8_DYNAMIC", "W8A8", "W8A16", "MXFP8A16", "NVFP4A16"),
    *("MXFP4A16", "W4A16_ASYM", "W4A16", "W3A16"),
)


def main() -> None:
    """Print a row of Markdown for each scheme."""
    source = ROOT / "fixtures" / "pylm"
    text = python_source()
    tokens = torch.tensor(list(text[: WINDOWS * WINDOW])).view(WINDOWS, WINDOW)
    before = perplexity(source, tokens)
    print(f"| source | 100 % | 0 | perplexity {before:.3f} |")
    for scheme in SCHEMES:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder, "made")
            report = run_quantize(source, made, scheme, on_indivisible="smaller-group")
            share = 100 * report.bytes_after / report.bytes_before
            error = 100 * max(report.errors.values())
            rise = 100 * (perplexity(made, tokens) / before - 1)
        print(f"| `{scheme}` | {share:.0f} % | {error:.2g} % | {rise:+.2f} % |", flush=True)


if __name__ == "__main__":
    main()
