"""The files and nodes of a plan by name and key: what a job, which is data, refers to."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ctcli.lazy.nodes import Node, all_nodes
from ctcli.storage.layout import Copy, OutputFile


class Written(NamedTuple):
    """Where an output of a node goes."""

    file: str
    output: str
    offset: int


@dataclass(frozen=True)
class Graph:
    """What is to be made; two processes with the same plan have equal ones.

    Attributes:
        files: the output files that are still to be written, by name, in order.
        link: whether files that are taken over whole become links, where the disk can.
    """

    files: Mapping[str, OutputFile]
    link: bool = False

    @classmethod
    def of(cls, files: Iterable[OutputFile], link: bool = False) -> Graph:
        """The graph of some files."""
        return cls({file.name: file for file in files}, link)

    @cached_property
    def homes(self) -> Mapping[Node, tuple[str, ...]]:
        """The names of the files that take outputs of each node."""
        found: dict[Node, tuple[str, ...]] = {}
        for name, file in self.files.items():
            only = (name,)
            for node in file.nodes:
                found[node] = (*found[node], name) if node in found else only
        return found

    @cached_property
    def targets(self) -> Mapping[str, tuple[Written, ...]]:
        """Where the outputs of each node go, by its key; those of complete files are left out."""
        found: dict[str, list[Written]] = {}
        for file in self.files.values():
            for part in file.computed:
                target = Written(file.name, part.tensor.output, part.offset)
                found.setdefault(part.tensor.node.key, []).append(target)
        return {key: tuple(targets) for key, targets in found.items()}

    @cached_property
    def nodes(self) -> Mapping[str, Node]:
        """Every node that a job may name: those that are written, and their values."""
        found: dict[str, Node] = {}
        for node in all_nodes(node for file in self.files.values() for node in file.nodes):
            assert found.setdefault(node.key, node) is node, f"two nodes have the key {node.key}"
        return found

    def links(self, file: OutputFile) -> bool:
        """Whether a file is to become a link."""
        return self.link and file.verbatim is not None

    def copy_at(self, name: str, offset: int) -> Copy | None:
        """The run of bytes that goes to an offset of a file; None: its bytes are known."""
        copies = self.files[name].copies
        place = bisect_right(copies, offset, key=lambda copy: copy.offset)
        return copies[place - 1] if place else None
