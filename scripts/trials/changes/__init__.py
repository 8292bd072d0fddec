"""What must be noticed, and what must not matter: `trial` says how they are tried, the other files what is changed."""
