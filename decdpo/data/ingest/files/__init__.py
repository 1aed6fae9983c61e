"""Source files to records: where they lie, how they are packed, what wrote them."""
