"""A Ray cluster on this machine: prints the address of its head; reads "add" and "kill", of a second node, and obeys.

A driver is served by a node of its own machine, here by the head if it comes before the second node.
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    print(cluster.address, flush=True)
    node = None
    for line in sys.stdin:
        if line == "add\n":
            node = cluster.add_node(num_cpus=1)
        else:
            cluster.remove_node(node, allow_graceful=False)
        print(line, end="", flush=True)
    cluster.shutdown()
