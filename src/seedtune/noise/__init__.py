"""What noise is: a specification (`spec`, numpy) and a fast path with the same bits (`cpu`, numba)."""
