"""Sweeps: models x targets x budgets x seeds, one search after the other, with one table and one page for all."""
