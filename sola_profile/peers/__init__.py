"""What a PyTorch user would run instead of the compiled operators, as well as it can be written in PyTorch.

Every function takes what the operator of ``sola_vision.ops`` takes, ``(B, N, H, D)`` or ``(B, N, C)``, and returns the
same, contiguous as the projection behind it wants it. ``table.py`` says which of them stand beside which operator.
"""
