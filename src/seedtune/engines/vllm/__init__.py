"""The engine on vLLM: `engine` decodes, `worker` runs within vLLM's workers and holds the center."""
