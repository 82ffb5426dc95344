"""Datasets of reasoning-gym: their items, made once; and their scorers, behind a guard."""
