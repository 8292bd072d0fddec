"""What to transfer, when and how, and whether more data would help: one pure function on arrays for each answer."""
