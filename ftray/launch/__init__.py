"""Driving a fit: from a configuration to a run on record, in this process or in a child."""
