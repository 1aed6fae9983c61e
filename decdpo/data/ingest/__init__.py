"""From source files to judgments: readers of files, formats of preferences, the store of pairs."""
