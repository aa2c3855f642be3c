"""From a user's data to the rows of a step."""
