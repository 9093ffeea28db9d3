"""The APIs that clients speak: OpenAI's completions, chats and responses, and Anthropic's messages."""
