"""The command line: options in, one thin function a command."""

from ctcli.cli.program import app, main

__all__ = ["app", "main"]
