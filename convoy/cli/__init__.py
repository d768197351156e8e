"""The command line: ``convoy COMMAND``. One module a command; each is imported only when it is asked for."""

from __future__ import annotations

from convoy.cli.program import main as main
