"""Structured outputs: schemas, regular expressions, choices and tool calls, as grammars that mask the next token."""
