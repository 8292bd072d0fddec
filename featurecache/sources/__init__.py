"""Where samples come from, and how an input's bytes become an array."""
