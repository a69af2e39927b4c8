"""Floor 6: one web page over a project folder, read-only: runs, sweeps, catalogue, deployments."""
