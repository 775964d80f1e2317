"""What a run achieved: numbers from the ledger, as tables, plots, JSON and one self-contained page."""
