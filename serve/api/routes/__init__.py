"""The routes, one file a subject; each has a `router(...)` that `app` includes."""

READ = ["GET", "HEAD"]
"""Methods of the routes that only read: HEAD gets the headers of the reply to GET."""
