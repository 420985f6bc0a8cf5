"""`verify --cluster`: the values are looked at by the workers of a Dask cluster."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ctcli import __version__
from ctcli.cli.verify_worker import Request, check, look, seen_of
from ctcli.console import Terminal
from ctcli.engine.cluster import Crew, connected
from ctcli.storage.naming import parse_source
from ctcli.verifying.options import VerifyOptions
from ctcli.verifying.scanning import Scanned, bytes_to_read, tasks_of
from ctcli.verifying.sharing import Part, names_of, together, view_of
from ctcli.verifying.subject import Subject


def scan_on_cluster(
    cluster: str,
    destination: str,
    commit: str | None,
    options: VerifyOptions,
    terminal: Terminal,
    subject: Subject,
) -> Scanned:
    """Have the workers of a cluster look at everything.

    Args:
        cluster: where it is.
        destination: DST.
        commit: of a DST on a hub.
        options: what to check.
        terminal: is told of progress.
        subject: DST, as this process sees it.

    Raises:
        CtcliError: what one process says, too; or what is wrong with workers.
    """
    tasks_of(subject.checks, options.max_memory)
    request = _request(destination, commit, options, subject)
    seen_of.keep(request, (subject, request.view))
    parts: list[Part] = []
    with connected(cluster, options.num_workers) as client:
        crew = Crew(
            client,
            partial(check, request),
            partial(look, request),
            terminal.notify,
            terminal.warn,
            parts.append,
            again="Run the same command again.",
        )
        count = crew.gather(__version__)
        nbytes = bytes_to_read(subject.checks) + sum(file.size for file in subject.hashed)
        with terminal.progress(f"verify on {count} workers", nbytes) as advance:
            crew.write([(name,) for name in names_of(subject)], __version__, advance)
    return together(subject, parts)


def _request(
    destination: str, commit: str | None, options: VerifyOptions, subject: Subject
) -> Request:
    """What the workers are told."""
    source, manifest = None, options.sha256
    if options.against and subject.source:
        source = parse_source(options.against).elsewhere
    return Request(
        parse_source(destination).elsewhere,
        commit,
        source,
        subject.source.origin.commit if subject.source else None,
        replace(options, html=None, sha256=manifest.resolve() if manifest else None),
        view_of(subject, is_on_hub=commit is not None),
    )
