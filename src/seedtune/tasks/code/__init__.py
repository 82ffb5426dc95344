"""Tasks whose completions are programs, which run in the sandbox."""
