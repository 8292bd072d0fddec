"""Two small images inside the program, to see whether a machine still makes the features that it should.

A JPEG that is stored turned and with halved colour, and a PNG with partial transparency: between them they touch the
decoder, orientation, colour conversion, the background rule, resizing and the network.
"""

from __future__ import annotations

from importlib import resources

REFERENCE_IMAGES = tuple(
    resources.files(__package__).joinpath(name).read_bytes() for name in ("reference.jpg", "reference.png")
)
