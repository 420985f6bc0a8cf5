"""What a worker of a cluster does to verify: the same checks, and the files that it is given."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

from ctcli.checkpoint.value import RECIPE_NAME
from ctcli.cli.sides import directory_of, expected_checkpoint
from ctcli.cli.telling import Kept, check_memory, first_look, telling, this_worker
from ctcli.engine.work import Failure
from ctcli.errors import CtcliError
from ctcli.storage.opening import open_checkpoint
from ctcli.units import Advance
from ctcli.verifying.options import VerifyOptions
from ctcli.verifying.sharing import Part, View, look_at_files, view_of
from ctcli.verifying.subject import Subject, subject_of

_HINT = "Give every worker the same files, by the same paths."


@dataclass(frozen=True)
class Request:
    """What workers are asked to verify, as data.

    Attributes:
        destination: DST, absolute or on a hub.
        commit: of a DST on a hub.
        source: SRC, likewise; None: there is none to compare with.
        revision: of an SRC on a hub.
        options: what to check; files that they name are absolute.
        view: what the process that asks sees of both.
    """

    destination: str
    commit: str | None
    source: str | None
    revision: str | None
    options: VerifyOptions
    view: View


def check(request: Request, task: str, topic: str) -> Failure | None:
    """See whether this worker can do its share: same DST, same SRC, room in memory.

    Args:
        request: what is verified.
        task: names this call in what is told.
        topic: where it is told that this worker is alive.
    """
    with telling(task, topic):
        return first_look(
            partial(check_memory, request.options.max_memory), partial(_check_view, request)
        )


def look(request: Request, names: Collection[str], task: str, topic: str) -> Part | Failure:
    """Look at the values of files.

    Args:
        request: what is verified.
        names: of the files.
        task: names this call in what is told.
        topic: where progress is told.
    """
    with telling(task, topic) as teller:
        try:
            subject, view = seen_of(request)
            if view != request.view:
                raise CtcliError("DST or SRC has changed since this worker was checked.", _HINT)
            workers = request.options.num_workers or this_worker().state.nthreads
            return look_at_files(subject, names, request.options, workers, teller.advance)
        except CtcliError as error:
            return Failure.of(error)


def _see(request: Request) -> tuple[Subject, View]:
    directory, _ = directory_of(request.destination, request.commit, _untold)
    source = None
    if request.source:
        opened = open_checkpoint(request.source, request.revision)
        source = expected_checkpoint(opened, directory / RECIPE_NAME)
    subject = subject_of(directory, request.options, source)
    return subject, view_of(subject, is_on_hub=request.commit is not None)


def _untold(_title: str, _total: int) -> AbstractContextManager[Advance]:
    return nullcontext(lambda _: None)


def _check_view(request: Request) -> None:
    _, view = seen_of(request)
    if differences := request.view.differences(view):
        raise CtcliError(differences, _HINT)


seen_of = Kept(_see, lambda request, made: made[1] == request.view)
