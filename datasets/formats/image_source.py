"""Bounds on the work that an image file can ask of Pillow, whose readers take each piece of a file in Python."""

import io

from PIL import Image

SMALL = 1024
"""Bytes. Headers and the ends of chunks are read in smaller pieces, pixels in larger ones."""
MOST_READS = 20_000
"""Small reads of one file: enough for a PNG of 80 MB in chunks of 8 kB."""
MOST_SCANS = 100
"""Passes over the pixels of a progressive JPEG; encoders make about ten."""
MOST_COMMENTS = 1000
"""In the pixels of a PPM written as text, which Pillow copies once per comment."""


class ImageSource(io.BytesIO):
    """An image file in memory. Raises ValueError if it is read in too many small pieces."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.reads_left = MOST_READS

    def read(self, size: int | None = -1) -> bytes:
        """As io.BytesIO.read."""
        found = super().read(size)
        self.reads_left -= len(found) < SMALL
        if self.reads_left < 0:
            raise ValueError("it consists of too many small pieces")
        return found


def check_pieces(image: Image.Image, source: ImageSource) -> None:
    """Raise ValueError for an opened image that would take very long to decode; set how often decoding may read."""
    content = source.getvalue()
    if image.format == "JPEG" and content.count(b"\xff\xda") > MOST_SCANS:
        raise ValueError(f"it has more than {MOST_SCANS} scans")
    if content[:2] in (b"P1", b"P2", b"P3") and content.count(b"#") > MOST_COMMENTS:
        raise ValueError(f"it has more than {MOST_COMMENTS} comments")
    if image.format == "BMP":
        source.reads_left += 4 * image.width * image.height  # run lengths are read one by one
