"""The run folder: what is durable, and how it is read."""
