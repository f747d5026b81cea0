"""A checksum inside a safetensors file: other readers still accept the file, ours detects any changed bit."""

import hashlib
import os
from io import BufferedRandom, BufferedReader
from pathlib import Path

# SHA-256 of the whole file with zeros in place of the digest. Processors have instructions for SHA-256: one core of an
# AMD EPYC hashes 1.7 GiB/s (SHA-1 1.8, BLAKE2b 0.9, MD5 0.7).
_ZEROS = b"0" * 64
PLACE = {"seal_sha256": _ZEROS.decode()}
"""Metadata for a file that will be sealed; "progress" must be the only other key."""

_START = b'{"__metadata__":{'
_ENTRY = b'"seal_sha256":"' + _ZEROS + b'"'
_BEFORE, _, _AFTER = (_START + _ENTRY + b',"progress":"').partition(_ZEROS)
_FROM = 8 + len(_BEFORE)
_TO = _FROM + len(_ZEROS)
"""Byte range of the digest: after the eight bytes of the header's length and the start of the header."""


def seal(path: Path) -> None:
    """Write the checksum into a file that was saved with `PLACE` in its metadata, and flush the file to disk."""
    with path.open("r+b") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
        file.seek(8)
        file.write(_checksum_first(header))
        digest = _digest(file)
        file.seek(_FROM)
        file.write(digest)
        file.flush()
        os.fsync(file.fileno())


def check_seal(path: Path) -> None:
    """Raise ValueError if a sealed file has changed. Files without a seal pass."""
    with path.open("rb") as file:
        start = file.read(_TO + len(_AFTER))
        # The text on either side identifies a sealed file, because the damage may be in one of them.
        sealed = start[8:_FROM] == _BEFORE or start[_TO:] == _AFTER
        if sealed and start[_FROM:_TO] != _digest(file):
            raise ValueError("damaged: its bytes do not match its checksum")


def _checksum_first(header: bytes) -> bytes:
    """The header with the checksum before "progress": safetensors writes metadata keys in arbitrary order."""
    if header.startswith(_START + _ENTRY):
        return header
    return _START + _ENTRY + b"," + header.removeprefix(_START).replace(b"," + _ENTRY, b"", 1)


def _digest(file: BufferedRandom | BufferedReader) -> bytes:
    """SHA-256 of the file with zeros in place of the digest, as 64 hexadecimal digits."""
    file.seek(0)
    digest = hashlib.sha256(file.read(_FROM) + _ZEROS)
    file.seek(_TO)
    return hashlib.file_digest(file, lambda: digest).hexdigest().encode()
