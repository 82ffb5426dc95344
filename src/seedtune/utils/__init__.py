"""Files, processes, signals, messages on the terminal, and facts about the machine."""
