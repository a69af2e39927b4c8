"""Floor 3: a real Slurm of several nodes on this one machine, for development, tests and learning."""
