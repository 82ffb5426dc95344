"""Prompts and rewards: the built-in tasks, a user's own dataset and reward functions, and the pool that scores."""
