"""Panza: drafts your mail in your voice, on your own computer."""
