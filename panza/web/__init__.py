"""The page: a Gradio front end on this computer only. Importing this starts nothing."""
