"""The demo: code search on the Python sources that every machine already has."""
