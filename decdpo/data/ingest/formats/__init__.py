"""Records to preferences and ratings, whatever their columns are called."""
