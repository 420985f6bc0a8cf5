"""What people see: results on stdout; progress, warnings and errors on stderr."""

from ctcli.console.results import Report, Result, ResultSection
from ctcli.console.terminal import Terminal

__all__ = ["Report", "Result", "ResultSection", "Terminal"]
