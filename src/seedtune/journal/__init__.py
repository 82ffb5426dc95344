"""What happened: the journal, from which the weights follow, and the rest of a run's folder."""
