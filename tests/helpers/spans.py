"""Nodes that read files, evaluated in the least spans there are."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ctcli.engine.perform import SourceReader
from ctcli.lazy.evaluate import Evaluator
from ctcli.lazy.nodes import Axis, Node

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Block


def in_least_spans(node: Node, axis: Axis) -> Block:
    """The weight that a node decodes, its rows (columns) as few at a time as belong together."""
    node = replace(node, axis=axis)
    length, together = node.shape[axis], node.together[axis]
    with SourceReader(lambda _: None) as reader:
        parts = [
            yielded.outputs["weight"].copy()
            for start in range(0, length, together)
            for yielded in Evaluator(reader, {}).compute(node, start, min(start + together, length))
        ]
    return np.concatenate(parts, axis)
