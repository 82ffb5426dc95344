"""Replicas at work: the plan of an iteration, and who carries it out."""
