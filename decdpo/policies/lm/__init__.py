"""What only language models need: their texts as tokens, and how answers are scored."""
