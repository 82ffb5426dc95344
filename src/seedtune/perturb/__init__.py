"""Noise on a model: which parameters move (`scope`), and how they move (`full`, `lowrank`) around the `centre`."""
