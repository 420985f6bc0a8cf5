"""The rewrites: by the command's name, its options and the function that takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, TypeVar

from ctcli.checkpoint.value import Checkpoint
from ctcli.checkpoint.value import Step as Table
from ctcli.console import Report
from ctcli.rewrites.equalizing.options import EqualizeOptions
from ctcli.rewrites.exporting.options import ExportOptions
from ctcli.rewrites.options import RewriteOptions
from ctcli.rewrites.quantizing.options import QuantizeOptions
from ctcli.rewrites.reindex import ReindexOptions
from ctcli.rewrites.sources.options import ConvertOptions, DequantizeOptions
from ctcli.rewrites.sparsifying.options import SparsifyOptions
from ctcli.rewrites.surgery.options import FuseOptions, RotateOptions
from ctcli.storage.destination import DIRECTORY, Form
from ctcli.storage.layout import OneFileOutput

Options = TypeVar("Options", bound=RewriteOptions)
Made = Checkpoint | OneFileOutput
Work = Callable[[Checkpoint], tuple[Made, Report]]


@dataclass(frozen=True)
class Rewrite(Generic[Options]):
    """A command that makes a checkpoint of another.

    Attributes:
        options: its options.
        function: takes a checkpoint and the options; its module, beside theirs, and its name. Help
            does not import it.
    """

    options: type[Options]
    function: str

    def step(self, options: Options) -> Step:
        """The rewrite with these options."""
        module, _, name = self.function.partition(":")
        function = getattr(import_module(f"ctcli.rewrites.{module}"), name)
        given = {key: value for key, value in options.recipe.items() if value is not None}
        table = {"use": name.replace("_", "-"), **given}
        return Step(lambda each: function(each, options), options.form, options.links, (table,))


@dataclass(frozen=True)
class Step:
    """A rewrite with its options.

    Attributes:
        rewrite: what it does.
        form: of what it makes.
        link: whether shards that do not change become links.
        tables: the same as steps of a recipe.
    """

    rewrite: Work
    form: Form = DIRECTORY
    link: bool = False
    tables: Sequence[Table] = ()


# In the order of the help.
REWRITES: Mapping[str, Rewrite[Any]] = {
    "reindex": Rewrite(ReindexOptions, "reindex:reindex"),
    "fuse-norms": Rewrite(FuseOptions, "surgery.fuse_norms:fuse_norms"),
    "rotate": Rewrite(RotateOptions, "surgery.rotate:rotate"),
    "equalize": Rewrite(EqualizeOptions, "equalizing.equalize:equalize"),
    "sparsify": Rewrite(SparsifyOptions, "sparsifying.sparsify:sparsify"),
    "quantize": Rewrite(QuantizeOptions, "quantizing.quantize:quantize"),
    "dequantize": Rewrite(DequantizeOptions, "sources.dequantize:dequantize"),
    "convert": Rewrite(ConvertOptions, "sources.convert:convert"),
    "export-bin": Rewrite(ExportOptions, "exporting.export_bin:export_bin"),
}
