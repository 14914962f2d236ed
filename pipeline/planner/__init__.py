"""Planner: what every stage costs before it runs, from model configurations and what the samples look like."""
