"""Start the Gradio page on the mail in PANZA_HOME."""

from panza.assistant import Assistant
from panza.home import open_home
from panza.web import serve

if __name__ == "__main__":
    serve(Assistant(open_home()))
