"""Trials of the store's promises, each with a number: violations of so many attempts."""
