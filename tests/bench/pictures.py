"""The pictures of README, from real runs on the bundled checkpoint; takes Chromium.

python -m tests.bench.pictures
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.helpers.processes import ROOT

COLUMNS = 104
COMMANDS = (
    "ctcli inspect pylm",
    "ctcli quantize pylm DST --scheme W4A16 --group-size 64",
    "ctcli verify DST --against pylm --html DST.html",
)
WIDTH, HEIGHT = 920, 640  # of the part of verify's page that is shown
# Lines of each output that are shown; the first screen of inspect goes on.
SHOWN = (26, 30, 12)


def main() -> None:
    """Run the commands as in a terminal, and write `.github/terminal.svg` and `verify.png`."""
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "COLUMNS": str(COLUMNS),
        "FORCE_COLOR": "1",
        "TERM": "xterm-256color",
    }
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "fixtures" / "pylm", Path(folder, "pylm"))
        for command, shown in zip(COMMANDS, SHOWN, strict=True):
            words = [sys.executable, "-m", *command.split()]
            done = subprocess.run(
                words, cwd=folder, env=environment, capture_output=True, text=True, check=True
            )
            console.print(Text(f"$ {command}", style="bold green"))
            for line in done.stdout.splitlines()[:shown]:
                console.print(Text.from_ansi(line), soft_wrap=False)
            console.print()
        photograph(Path(folder, "DST.html"))
    picture = console.export_svg(title="ctcli", unique_id="ctcli")
    # No font is fetched for it: the reader's own monospaced one does.
    picture = re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL)
    (ROOT / ".github" / "terminal.svg").write_text(picture, encoding="utf-8")


def photograph(page: Path) -> None:
    """Write the upper part of a page as `.github/verify.png`, in light colours."""
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if browser is None:
        raise SystemExit("there is no Chromium to show verify's page")
    flags = ("--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu")
    picture = f"--screenshot={ROOT / '.github' / 'verify.png'}"
    size = f"--window-size={WIDTH},{HEIGHT}"
    subprocess.run([browser, *flags, picture, size, page.as_uri()], check=True, capture_output=True)


if __name__ == "__main__":
    main()
