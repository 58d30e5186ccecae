"""Studies of a stack of layers: how far it reaches, and which of its layers should be softmax."""
