"""`ctcli export-bin` in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ctcli.engine.plan import Settings, check_resources, make_plan
from ctcli.engine.run import execute
from ctcli.errors import CtcliError
from ctcli.rewrites.exporting.export_bin import export_bin
from ctcli.rewrites.exporting.options import ExportOptions
from ctcli.rewrites.exporting.report import ExportReport
from ctcli.storage.opening import open_checkpoint


def export(source: Path, destination: Path, *, workers: int = 2, **options: Any) -> ExportReport:
    """Export `source`; options are those of `ExportOptions`."""
    chosen = ExportOptions(**options)
    made, report = export_bin(open_checkpoint(str(source)), chosen)
    plan = make_plan(made.lay_out(destination.name), destination, Settings(workers, 2 * 10**9))
    check_resources(plan)
    return report.with_errors(execute(plan, lambda _: None))


def refusal(source: Path, **options: Any) -> Sequence[str]:
    """The reasons why `source` is not exported."""
    chosen = ExportOptions(**options)
    with pytest.raises(CtcliError) as refused:
        export_bin(open_checkpoint(str(source)), chosen)
    return list(refused.value.problems)
