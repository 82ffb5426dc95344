"""The algorithm, pure: numbers in, numbers out. No model, no engine, no file."""
