"""Pages, tables and figures made from what a run left behind."""
