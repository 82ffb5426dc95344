"""The same task, model and number of generations for several methods."""
