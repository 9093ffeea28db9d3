"""Tokens to text and back: `codec` holds the tokenizer; `choice` makes the text of one choice, up to a stop string."""
