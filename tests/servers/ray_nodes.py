"""Two machines of a Ray cluster, as far as Ray can tell: `python -m tests.ray_nodes`.

Prints a line of JSON, the cluster's address and the raylet process of the second machine; ends when
its standard input does.
"""

import json
import sys

SETTINGS = {
    # How soon a machine that does not answer is held for dead.
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 2,
}


def main() -> None:
    """Start them, say where they are, and wait."""
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={**options, "include_dashboard": False, "_system_config": SETTINGS},
    )
    second = cluster.add_node(**options)
    cluster.wait_for_nodes()
    [raylet] = second.all_processes["raylet"]
    print(json.dumps({"address": cluster.address, "raylet": raylet.process.pid}), flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
