"""Tasks in the format of ARC-AGI. The JSON files here are of our own making."""
