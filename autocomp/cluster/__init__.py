"""A Ray cluster: found or started, objects made on its nodes, calls that outlive a process."""
