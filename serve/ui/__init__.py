"""The page at `/`: one self-contained file: the router, the expert that answers, its tokens, and live charts."""

from serve.ui.page import router

__all__ = ["router"]
