"""Models of runs that are measured or exported, not trained."""
