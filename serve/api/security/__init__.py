"""Who may send a request, and how large and slow it may be: keys, TLS, bounds of connections and bodies."""
