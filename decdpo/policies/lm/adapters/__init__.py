"""What is trained beside a frozen language model: shared adapters, and personal parts."""
