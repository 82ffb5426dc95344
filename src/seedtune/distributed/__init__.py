"""Many replicas on a Ray cluster: which one decodes which chunk, what crosses the network, and how all are held to the
same bits. Only `ray_*.py` import Ray.
"""

from .cluster import Cluster
from .dispatcher import Dispatcher

__all__ = ["Cluster", "Dispatcher"]
