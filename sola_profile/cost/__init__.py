"""Predicted cost: closed forms from the spec, their polynomial in the number of tokens, memory by liveness."""
