"""Policies: models that give an answer its log-probability, and the objective over them."""
