"""Datasets as users have them (`dataset`), and the tokenized prompts of a run (`prompts`)."""

from .dataset import load

__all__ = ["load"]
