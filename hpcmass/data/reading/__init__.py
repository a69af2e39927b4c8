"""How rows get from the shards into a batch: strategies, and which one fits a dataset where it lies."""
