"""How good is it, and how far did it move."""
