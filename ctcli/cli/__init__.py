"""The command line: options in, one thin function a command, exit codes out."""

from ctcli.cli.program import app, main

__all__ = ["app", "main"]
