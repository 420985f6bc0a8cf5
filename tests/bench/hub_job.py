"""A job on a hub, from shards to a published checkpoint: its time, disk and memory, and kills.

The hub is the tests' own, in this process; the job runs in another one. A slow network is played
by a hub that sends and takes so many bytes a second on each connection, of which there are two.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.races import HUB_MODEL
from tests.helpers.checkpoints import file_hashes
from tests.helpers.hub import Fault, Hub
from tests.helpers.watching import Watch

_SOURCE, _MADE, _TOKEN = "org/model", "org/made", "hf_the_one_good_token"
_DOWNLOAD = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from ctcli.storage.hub.files import list_hub
from ctcli.storage.hub.streamed import StreamedFile, stream_files
files = stream_files(list_hub(sys.argv[1], None)[0].values(), Path(sys.argv[2])).values()
def through(file):
    file.fetch(lambda nbytes: None)
    file.release()
list(ThreadPoolExecutor(2).map(through, [f for f in files if isinstance(f, StreamedFile)]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.hub_job", description=__doc__)
    parser.add_argument("--scheme", default="W4A16")
    parser.add_argument("--max-disk", default="700MB")
    parser.add_argument("--rate-mb", type=int, default=60, help="of a connection, each way")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "ctcli-bench")
    options = parser.parse_args()
    source = options.folder / "hub-model"
    if not source.exists():
        maker = [sys.executable, "-m", "tests.bench.make_checkpoint", str(source), *HUB_MODEL]
        subprocess.run(maker, check=True)
    work = options.folder / "hub-work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with Hub() as hub:
        hub.add(_SOURCE, source)
        environment = {
            **os.environ,
            **hub.env(work / "home", _TOKEN),
            "PYTHONPATH": str(Path.cwd()),
        }
        _Job(hub, options, work, environment).show()


class _Job:
    def __init__(
        self,
        hub: Hub,
        options: argparse.Namespace,
        work: Path,
        environment: dict[str, str],
    ) -> None:
        self._hub, self._options, self._work = hub, options, work
        self._environment = environment
        quantize = [sys.executable, "-m", "ctcli", "quantize", "--scheme", options.scheme]
        self._local = [*quantize, _SOURCE, str(work / "local"), "--quiet"]
        streamed = (_SOURCE, f"hf://{_MADE}", "--stream", "--max-disk", options.max_disk)
        self._job = [*quantize, *streamed, "--overwrite", "--quiet"]

    def show(self) -> None:
        """Time the stages and the whole, then kill it again and again."""
        self._timed(self._local)  # fills the cache
        shutil.rmtree(self._work / "local")
        computing = self._timed(self._local)
        rate = self._options.rate_mb * 1_000_000
        for place in ("/cdn/", "/storage/"):
            self._hub.inject(Fault("", times=10**9, path_prefix=place, rate=rate))
        fetch = [sys.executable, "-c", _DOWNLOAD, _SOURCE, str(self._work / "fetched")]
        fetching = self._timed(fetch)
        output = sum(path.stat().st_size for path in (self._work / "local").iterdir())
        sending = output / 2 / rate
        whole = self._timed(self._job)
        slowest = max(computing, fetching, sending)
        print(
            f"computing alone {computing:.1f} s, fetching {fetching:.1f} s, sending {sending:.1f} s"
        )
        print(f"the job {whole:.1f} s: {whole / slowest:.2f} of the slowest stage")
        self._hub.heal()
        self._kill(whole)

    def _timed(self, command: list[str]) -> float:
        start = time.perf_counter()
        subprocess.run(command, env=self._environment, cwd=self._work, check=True)
        return time.perf_counter() - start

    def _kill(self, seconds: float) -> None:
        """Kill the job at random until it has been killed often enough, then let it end."""
        rng, kills = random.Random(0), 0
        del self._hub.repos[_MADE]
        place = self._work / ("." + _MADE.replace("/", "--") + ".ctcli-partial")
        watch = Watch(place, self._work / "watched")
        watched = watch.command(*self._job[3:])
        while True:
            job = subprocess.Popen(watched, env=self._environment, cwd=self._work)
            if kills < self._options.kills:
                time.sleep(rng.uniform(1, max(2, seconds / 12)))
                job.send_signal(signal.SIGKILL)
            if job.wait() == 0:
                break
            kills += 1
        made = self._hub.contents(_MADE)
        (self._work / "made").mkdir()
        for name, content in made.items():
            (self._work / "made" / name).write_bytes(content)
        expected, found = file_hashes(self._work / "local"), file_hashes(self._work / "made")
        different = [name for name in expected if expected[name] != found.get(name)]
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000
        print(f"killed {kills} times; different from the local run: {different or 'nothing'}")
        print(f"at most {watch.bytes / 1e6:.0f} MB of disk and {memory:.0f} MB of memory")


if __name__ == "__main__":
    main()
