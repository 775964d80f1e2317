"""What a run has written in its store, and how it is read: below what trains, reports and coordinates."""
