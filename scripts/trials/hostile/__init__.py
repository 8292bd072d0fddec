"""Caches made by an attacker: `trial` says how they are tried, the other files what is done to them."""
