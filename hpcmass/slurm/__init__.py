"""Floor 3: what is said to Slurm and what it answers.

`script`, `commands`, `parse` and `messages` are pure text; `client` runs the commands; `submission` is the only
module that knows submitit.
"""
