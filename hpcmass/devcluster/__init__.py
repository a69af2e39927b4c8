"""Floor 3: a real Slurm of several nodes on this one machine, for development, tests and learning.

`nodes`, `settings` and `render` are pure: what the cluster looks like, and the text of its files. `claim`,
`network`, `processes`, `database` and `daemons` do one thing each to the machine. `cluster` puts them together.
Standard library only.
"""

from hpcmass.devcluster.cluster import Cluster
from hpcmass.devcluster.nodes import NODES, Node
from hpcmass.devcluster.packages import missing_packages
from hpcmass.devcluster.settings import Settings
from hpcmass.devcluster.status import ClusterStatus, default_folder

__all__ = [
    "NODES",
    "Cluster",
    "ClusterStatus",
    "Node",
    "Settings",
    "default_folder",
    "missing_packages",
]
