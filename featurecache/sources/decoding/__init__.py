"""From the bytes of an image or a text to the array that a network sees, by the rules of store/FORMAT.md."""
