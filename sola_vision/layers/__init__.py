"""The pieces of a backbone: mixers, channel mix, patch embedding and merging, bridges, head.

Each module states its closed-form cost (``sola_vision.terms.Terms``, one image) beside its ``forward``. Tokens are
``(B, N, C)`` in raster order with their ``Grid``, ``N = rows · columns``.
"""

# rows and columns of tokens
Grid = tuple[int, int]
