"""How one message moves: passed, read in place, through pinned memory, or from the device."""
