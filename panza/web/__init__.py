"""The page: a Gradio front end on this computer only. Importing this starts nothing and imports no Gradio."""

from panza.web.server import serve

__all__ = ["serve"]
