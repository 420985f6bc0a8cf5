"""Time commands against other tools on large checkpoints: whole processes, run in turn."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.races import COMPUTING, RACES, Race, floor
from tests.bench.timing import race, remove, report, report_chain, words_of


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("races", nargs="*", help=f"of {', '.join(RACES)}; default: all")
    parser.add_argument("--runs", type=int, default=5, help="counted runs (default: 5)")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="RACE:NAME=COMMAND",
        help="one more contender, from an environment of its own, with {src}, {made} and {dst}: "
        "'reindex:llm-compressor=venv/bin/llmcompressor.reindex_fused_weights {src} {dst}'",
    )
    parser.add_argument(
        "--peers",
        action="append",
        default=[],
        metavar="SCRIPT=PYTHON",
        help="the Python of an environment that has the package of a script of this folder, which "
        "then takes part: model_free_ptq=venv/bin/python",
    )
    parser.add_argument(
        "--mb", type=int, default=2500, help="size of quantized sources (default: %(default)s)"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "ctcli-bench",
        help="for checkpoints, which are kept, and outputs (default: %(default)s)",
    )
    arguments = parser.parse_args()
    pythons = dict(each.split("=", 1) for each in arguments.peers)
    for name in arguments.races or RACES:
        known = {
            script: command.replace("{peer}", pythons[script])
            for script, command in RACES[name].peers.items()
            if script in pythons
        }
        peers = known | dict(
            peer.removeprefix(f"{name}:").split("=", 1)
            for peer in arguments.peer
            if peer.startswith(f"{name}:")
        )
        src = _checkpoint(arguments.folder, RACES[name]) if RACES[name].checkpoint else ""
        print(f"\n{name}: {arguments.runs} runs each, on {os.cpu_count()} cores, {src}")
        places = {
            "src": str(src),
            "dst": str(arguments.folder / "out"),
            "made": str(arguments.folder / "made"),
            "python": sys.executable,
            "mb": str(arguments.mb),
        }
        remove(arguments.folder / "made")
        if made := RACES[name].made:
            subprocess.run(words_of(made, places), check=True)
        commands = {**RACES[name].commands, **peers}
        samples = race(commands, places, arguments.runs, RACES[name].is_cold)
        print("\n".join(report(samples)))
        if COMPUTING in samples:
            read, written = _size(places["src"]), _size(places["made"])
            print(floor(samples, read, written, os.cpu_count() or 1))
        if RACES[name].is_chain:
            print(report_chain(samples))


def _size(place: str) -> int:
    """Bytes of a file, or of those in a directory."""
    path = Path(place)
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))


def _checkpoint(folder: Path, race: Race) -> Path:
    path = folder / "-".join(word.removeprefix("--") for word in race.checkpoint)
    if not path.exists():
        print(f"making {path}")
        partial = path.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        command = [sys.executable, "-m", "tests.bench.make_checkpoint", str(partial)]
        subprocess.run([*command, *race.checkpoint], check=True)
        partial.rename(path)
    return path


if __name__ == "__main__":
    main()
