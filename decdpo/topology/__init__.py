"""Who talks to whom, and with what weight: graphs, mixing matrices and their schedules."""
