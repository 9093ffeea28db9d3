"""Online: serve a bundle, many experts in one batch."""
