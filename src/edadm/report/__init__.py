"""What the measurements say: tables of numbers, plots and the one-page report."""
