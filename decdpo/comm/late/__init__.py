"""Messages that are late: by a schedule, or as they arrive."""
