"""The rewrites: by the command's name, its options and the function that takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ctcli.checkpoint.value import Checkpoint, StepTable
from ctcli.console import Report
from ctcli.rewrites.options import RewriteOptions
from ctcli.storage.destination import DIRECTORY, Form
from ctcli.storage.layout import OneFileOutput

Made = Checkpoint | OneFileOutput
RewriteFunction = Callable[[Checkpoint], tuple[Made, Report]]


@dataclass(frozen=True)
class Rewrite:
    """A command that makes a checkpoint of another; imported when it is asked for.

    Attributes:
        declared: where its options are, below `ctcli.rewrites`: module and class.
        function: takes a checkpoint and the options: module and function.
    """

    declared: str
    function: str

    @property
    def options(self) -> type[RewriteOptions]:
        """Its options."""
        found: type[RewriteOptions] = _imported(self.declared)
        return found

    def step(self, options: RewriteOptions) -> Step:
        """The rewrite with these options."""
        function = _imported(self.function)
        given = {key: value for key, value in options.recipe.items() if value is not None}
        table = {"use": function.__name__.replace("_", "-"), **given}
        return Step(lambda each: function(each, options), options.form, options.links, (table,))


def _imported(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(f"ctcli.rewrites.{module}"), name)


@dataclass(frozen=True)
class Step:
    """A rewrite with its options.

    Attributes:
        rewrite: what it does.
        form: of what it makes.
        link: whether shards that do not change become links.
        tables: the same as steps of a recipe.
    """

    rewrite: RewriteFunction
    form: Form = DIRECTORY
    link: bool = False
    tables: Sequence[StepTable] = ()


# In the order of the help.
REWRITES: Mapping[str, Rewrite] = {
    "reindex": Rewrite("reindex:ReindexOptions", "reindex:reindex"),
    "fuse-norms": Rewrite("surgery.options:FuseOptions", "surgery.fuse_norms:fuse_norms"),
    "rotate": Rewrite("surgery.options:RotateOptions", "surgery.rotate:rotate"),
    "equalize": Rewrite("equalizing.options:EqualizeOptions", "equalizing.equalize:equalize"),
    "sparsify": Rewrite("sparsifying.options:SparsifyOptions", "sparsifying.sparsify:sparsify"),
    "quantize": Rewrite("quantizing.options:QuantizeOptions", "quantizing.quantize:quantize"),
    "dequantize": Rewrite("sources.options:DequantizeOptions", "sources.dequantize:dequantize"),
    "convert": Rewrite("sources.options:ConvertOptions", "sources.convert:convert"),
    "export-bin": Rewrite("exporting.options:ExportOptions", "exporting.export_bin:export_bin"),
}
