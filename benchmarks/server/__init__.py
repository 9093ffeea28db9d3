"""Shared parts of the benchmarks that use a real server: the command line, the process and its metrics."""

from benchmarks.server.command import at_least, bundle_of, command_line, show
from benchmarks.server.process import Scrape, ServerProcess, server_process

__all__ = ["Scrape", "ServerProcess", "at_least", "bundle_of", "command_line", "server_process", "show"]
