"""The table of measured errors in a model card: as wide blank as filled in, and true."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from ctcli.storage.errors_table import errors_table, fill, filled
from tests.conftest import Ctcli

LAYERS = [f"layers.{i}.mlp" for i in range(3)]


def rows(card: str) -> dict[str, list[str]]:
    """The cells of each kind of module."""
    lines = [line.strip("| ").split("|") for line in card.splitlines() if line.startswith("| `")]
    return {kind.strip(" `"): [cell.strip() for cell in cells] for kind, *cells in lines}


def test_it_says_what_the_summary_says(cli: Ctcli, pylm: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = cli("quantize", pylm, out, "--scheme", "FP8_DYNAMIC", "--json")
    modules = json.loads(done.stdout)["modules"]
    table = rows((out / "README.md").read_text())
    assert len(table) == 7
    for kind, (count, error, largest) in table.items():
        own = [m["relative_error"] for name, m in modules.items() if name.endswith(kind[-9:])]
        assert len(own) == int(count) == 4
        assert largest == f"{100 * max(own):.3g} %"
        assert min(own) <= float(error.rstrip(" %")) / 100 * 1.005 <= max(own) * 1.01


@pytest.mark.parametrize(
    ("squares", "error", "largest"),
    [
        ([(1.0, 100.0), (4.0, 100.0), (0.0, 100.0)], "12.9 %", "20 %"),
        ([(0.0, 0.0), (0.0, 0.0), (0.0, 0.0)], "0 %", "0 %"),
        ([(1e-300, 3.0), (1e-13, 3.0), (2e-14, 3.0)], "1.15e-05 %", "1.83e-05 %"),
        ([(math.inf, 1.0), (1.0, 1e-300), (math.nan, 1.0)], "nan %", "nan %"),
        ([(1.0, 1e-300), (0.0, 1e-300), (0.0, 1e-300)], "5.77e+151 %", "1e+152 %"),
    ],
)
def test_it_is_as_long_whatever_the_errors_are(
    squares: list[tuple[float, float]], error: str, largest: str
) -> None:
    blank = "\n".join(["before", *errors_table(LAYERS), "behind"]).encode()
    found = dict(zip(reversed(LAYERS), squares, strict=True))
    card = filled(blank, found)
    assert len(card) == len(blank)
    assert rows(card.decode()) == {"layers.*.mlp": ["3", error, largest]}
    assert filled(card, dict.fromkeys(LAYERS, (1.0, 1.0))) == card


def test_one_of_other_modules_stays_blank() -> None:
    blank = "\n".join(errors_table(LAYERS)).encode()
    assert filled(blank, {LAYERS[0]: (1.0, 2.0)}) == blank
    assert filled(b"no table", {}) == b"no table"


def test_names_cannot_break_it_and_very_many_are_summed_up() -> None:
    (name,) = rows("\n".join(errors_table(["a|`b\n\x1b\ud800"])))
    assert name == "a??b???"
    heads = [*rows("\n".join(errors_table([f"x{i}.up" for i in range(50)]))).items()]
    assert heads == [("*.up", ["50", "-", "-"])]
    assert rows("\n".join(errors_table([f"x{i}" for i in range(1, 50)]))) == {"*": ["49", "-", "-"]}


def test_a_card_that_is_a_link_to_the_sources_is_left_alone(tmp_path: Path) -> None:
    source, card = tmp_path / "source", tmp_path / "README.md"
    source.write_bytes(blank := "\n".join(errors_table(LAYERS)).encode())
    card.hardlink_to(source)
    source.chmod(0o640)
    fill(card, dict.fromkeys(LAYERS, (1.0, 4.0)), fsync=True)
    assert source.read_bytes() == blank
    assert rows(card.read_text()) == {"layers.*.mlp": ["3", "50 %", "50 %"]}
    assert card.stat().st_mode & 0o777 == 0o640
    assert {*tmp_path.iterdir()} == {source, card}
