"""What runs, when, where, and with which record.

The chain of stages as a person works with it: configuration (`config`, `experiment`), the graph of
what has to exist (`graph`, `identity`), what of it exists already (`store`, `decisions`), running
the rest (`runner`, `executors`, `manifests`), and showing it (`progress`, `tracking`, `figures`, `report`, `cli`).
Nothing here imports torch, transformers, Ray or MLflow until something has to run.
"""
