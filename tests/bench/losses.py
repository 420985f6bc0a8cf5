"""Let a cluster come to harm again and again: `python -m tests.bench.losses [RUNS] [MB]`.

A job on a scheduler and four workers, whose links to the scheduler take 20 ms each way, meets with
one of the faults below in turn, at a random moment. Then the cluster is made whole, and the same
command runs to its end. Whenever DST is there, it is what one process makes; and where the job
could not be done, there is an error of one line. Before that, four workers fetch from a hub and
push to it, over links that take 50 ms each way.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tests.bench.kills import finish, start
from tests.fuzzing.checkpoints import write_large
from tests.helpers.checkpoints import file_hashes, hashes_but_card
from tests.helpers.clusters import Cluster, Process
from tests.helpers.delaying import DelayedLink
from tests.helpers.hub import Hub
from tests.helpers.processes import HANG_SECONDS

_DELAY, _FAR = 0.02, 0.05  # seconds
_WORKERS = 4
_FULL = "import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, (400_000,) * 2);"
_FULL += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"


@dataclass(frozen=True)
class Job:
    """A job on a cluster, and a fault that it meets with.

    Attributes:
        cluster: scheduler and workers.
        workers: those to which something may happen.
        process: the job.
    """

    cluster: Cluster
    workers: Sequence[Process]
    process: Process

    def kill(self) -> None:
        """A worker is killed."""
        random.choice(self.workers).kill()

    def terminate(self) -> None:
        """A worker is asked to end."""
        random.choice(self.workers).terminate()

    def freeze(self) -> None:
        """A worker stands still until others have made its file."""
        frozen = random.choice(self.workers)
        frozen.send_signal(signal.SIGSTOP)
        self.process.wait(HANG_SECONDS)
        frozen.send_signal(signal.SIGCONT)

    def lose_scheduler(self) -> None:
        """The scheduler is killed."""
        self.cluster.scheduler.kill()

    def lose_client(self) -> None:
        """The job itself is killed."""
        self.process.kill()

    def nothing(self) -> None:
        """A worker was not as it should be from the start."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong.

    Attributes:
        happens: while the job is under way.
        preparation: of one worker: lines of Python that run in it before anything else.
        mount: what that worker sees in place of SRC or of DST's folder.
        expected: what is said of it, whatever becomes of the job; empty: nothing need be.
    """

    happens: Callable[[Job], None] = Job.nothing
    preparation: str = ""
    mount: str = ""
    expected: str = ""


FAULTS: Mapping[str, Fault] = {
    "killed": Fault(Job.kill),
    "terminated": Fault(Job.terminate),
    "frozen": Fault(Job.freeze),
    "no scheduler": Fault(Job.lose_scheduler),
    "no client": Fault(Job.lose_client),
    "full disk": Fault(preparation=_FULL, expected="is full"),
    "another version": Fault(
        preparation="import ctcli; ctcli.__version__ = '99.1'", expected="it has ctcli 99.1"
    ),
    "another SRC": Fault(
        mount="mount --bind {0}/other {0}/source", expected="another size or time"
    ),
    "no permission": Fault(
        mount="mount --bind {0}/place {0}/place && mount -o remount,ro,bind {0}/place {0}/place",
        expected="Read-only file system",
    ),
}


def words(folder: Path, address: str) -> list[str | Path]:
    """The command."""
    places = (folder / "source", folder / "place" / "out")
    return ["quantize", *places, "--scheme", "FP8_BLOCK", "--cluster", address]


def meet(name: str, folder: Path, seconds: float, whole: Mapping[str, str]) -> str:
    """Let a job meet with a fault, and do it again without; returns how the first one ended."""
    fault, out = FAULTS[name], folder / "place" / "out"
    place = folder / f"cluster-{time.monotonic_ns()}"
    with Cluster(place) as cluster, DelayedLink(cluster.port, _DELAY) as link:
        workers = [_add(cluster, link.port) for _ in range(_WORKERS - 1)]
        within = fault.mount.format(folder)
        workers.append(_add(cluster, link.port, fault.preparation, within))
        cluster.wait()
        process = start(words(folder, f"tcp://127.0.0.1:{link.port}"), {})
        time.sleep(random.uniform(0.3, 1) * seconds)
        fault.happens(Job(cluster, workers, process))
        _, said = process.communicate(timeout=HANG_SECONDS)
    assert "Traceback" not in said, said
    assert fault.expected in said, said
    if process.returncode > 0:
        assert any(line.startswith("error: ") for line in said.splitlines()), said
    assert out.exists() == (process.returncode == 0), said
    with Cluster(folder / f"cluster-{time.monotonic_ns()}") as cluster:
        cluster.add()
        finish(words(folder, cluster.address), {})
    assert file_hashes(out) == whole, "other bytes than one process makes"
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    return f"{name}: " + ("done" if process.returncode == 0 else f"status {process.returncode}")


def _add(cluster: Cluster, port: int, preparation: str = "", mount: str = "") -> Process:
    within = ("unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh") if mount else ()
    return cluster.add(preparation, scheduler=f"tcp://127.0.0.1:{port}", within=within)


def push(folder: Path) -> float:
    """Have a cluster fetch from a hub and push to it over slow links; returns how long it takes."""
    quantize = ("quantize", "org/model")
    scheme = ("--scheme", "FP8_BLOCK")
    with Hub() as hub, DelayedLink(hub.port, _FAR) as link:
        hub.add("org/model", folder / "source")
        env = {**hub.env(folder / "home", hub.token), "PWD": str(folder / "work")}
        (folder / "work").mkdir()
        finish([*quantize, folder / "alone", *scheme], env)
        hub.url, hub.elsewhere = (f"http://{h}:{link.port}" for h in ("127.0.0.1", "localhost"))
        env["HF_ENDPOINT"] = hub.url
        with Cluster(folder / "hub", env) as cluster, DelayedLink(cluster.port, _FAR) as way:
            for _ in range(_WORKERS):
                _add(cluster, way.port)
            cluster.wait()
            where = ("--stream", "--cluster", f"tcp://127.0.0.1:{way.port}")
            seconds = finish([*quantize, "hf://org/made", *scheme, *where], env)
        made = hub.contents("org/made")
    found = {name: sha256(content).hexdigest() for name, content in made.items()}
    expected = hashes_but_card(folder / "alone")
    assert {name: found.get(name) for name in expected} == expected
    return seconds


def main() -> None:
    """Meet with as many faults as the arguments say."""
    runs, megabytes = [*map(int, sys.argv[1:]), *(50, 100)[len(sys.argv) - 1 :]]
    ends: Counter[str] = Counter()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_large(folder / "source", megabytes)
        subprocess.run(["cp", "-r", folder / "source", folder / "other"], check=True)
        (folder / "place").mkdir()
        out = folder / "place" / "out"
        finish(["quantize", folder / "source", out, "--scheme", "FP8_BLOCK"], {})
        whole = file_hashes(out)
        with Cluster(folder / "cluster") as cluster:
            for _ in range(_WORKERS):
                cluster.add()
            cluster.wait()
            subprocess.run(["rm", "-r", out], check=True)
            seconds = finish(words(folder, cluster.address), {})
        print(f"to a hub over links of {_FAR:g} s each way: {push(folder):.1f} s", flush=True)
        for number in range(runs):
            subprocess.run(["rm", "-rf", out], check=True)
            ends[meet([*FAULTS][number % len(FAULTS)], folder, seconds, whole)] += 1
            print(dict(ends), flush=True)
    print(f"{runs} runs, all whole in the end, {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
