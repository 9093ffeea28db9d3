"""What the benchmarks that ask a real server share: the command line, the process, and what it says of itself."""

from benchmarks.server.command import at_least, bundle_of, command_line, show
from benchmarks.server.process import Scrape, ServerProcess, server_process

__all__ = ["Scrape", "ServerProcess", "at_least", "bundle_of", "command_line", "server_process", "show"]
