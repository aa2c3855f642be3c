"""Encoders: from a name to a module that gives embeddings, and back to a folder."""
