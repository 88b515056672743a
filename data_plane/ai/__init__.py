"""LLM traffic: the inner chat format, adapters per provider, balancing, signing and stream framing."""
