"""The engine on transformers: `engine` holds the model, `decoder` decodes with continuous batching and prefix sharing
on a `kv_cache`, `logprobs` scores given texts; `reference` is transformers' own `generate`.
"""
