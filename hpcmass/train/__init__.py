"""Floor 3: one rank's training: recipe, ranks, loop, checkpoint, estimators, the model bundle, own scripts.

Imports nothing by itself, since its modules need torch.
"""
