"""How `shard` works: what is decided first, what lies on disk meanwhile, and who does which part of it."""
