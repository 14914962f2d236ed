"""Sweeps: many students from one graph, each point over several seeds, and what the difference is worth."""
