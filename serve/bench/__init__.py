"""Load on an OpenAI-compatible server: requests for many experts at a chosen rate, and what their users wait for."""
