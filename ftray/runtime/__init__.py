"""What the loop knows of the world: ranks, collectives, and the way out."""
