"""Floor 3: what a replica saw, in files: windows, drift from the training data, labels that come later.

`observer` is what a replica holds; everything else reads its files, in any other process.
"""
