"""Sweeps: what is tried, and what came of it. The trials themselves run in `ftray.cluster`."""
