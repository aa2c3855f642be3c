"""Reading and writing a run directory."""
