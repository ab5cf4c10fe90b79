"""SHA-256 whose state can be saved, so that a resumed run ends with the digest of the whole run.

hashlib's digests cannot be saved. The bytes are kept beside hashlib's digest, and once there are many, the oldest
are folded into the eight numbers that are SHA-256's state. Folding is plain Python and takes about 5 us for 8 bytes,
so it waits until a state is asked for.

Source: NIST, FIPS 180-4, Secure Hash Standard, 2015.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, Self

import numpy as np

__all__ = ["ResumableSHA256"]

_KEPT = 2**18  # bytes that a state holds as they are
_MOST = 2**24  # bytes that memory holds
_PIECE = 2**16  # bytes that are folded at once, so that folding many takes little memory
_MASK = 0xFFFFFFFF


def _primes(count: int) -> list[int]:
    found: list[int] = []
    number = 2
    while len(found) < count:
        if all(number % prime for prime in found):
            found.append(number)
        number += 1
    return found


def _cube_root_bits(number: int) -> int:
    """The first 32 bits of the fraction of a cube root."""
    root: int = round((number << 96) ** (1 / 3))
    while root**3 > number << 96:
        root -= 1
    while (root + 1) ** 3 <= number << 96:
        root += 1
    return root & _MASK


_ROUNDS = tuple(_cube_root_bits(prime) for prime in _primes(64))
_START = tuple(math.isqrt(prime << 64) & _MASK for prime in _primes(8))


def _fold(state: tuple[int, ...], content: bytes) -> tuple[int, ...]:
    """The state after whole blocks of 64 bytes."""
    words = np.zeros((64, len(content) // 64), np.uint32)
    words[:16] = np.frombuffer(content, ">u4").reshape(-1, 16).T

    def turned(word: np.ndarray, by: int) -> np.ndarray:
        return (word >> np.uint32(by)) | (word << np.uint32(32 - by))

    for n in range(16, 64):
        early, late = words[n - 15], words[n - 2]
        first = turned(early, 7) ^ turned(early, 18) ^ (early >> np.uint32(3))
        second = turned(late, 17) ^ turned(late, 19) ^ (late >> np.uint32(10))
        words[n] = words[n - 16] + first + words[n - 7] + second
    words += np.array(_ROUNDS, np.uint32)[:, None]
    for block in words.T.tolist():
        a, b, c, d, e, f, g, h = state
        for word in block:
            turns = (e >> 6 | e << 26) ^ (e >> 11 | e << 21) ^ (e >> 25 | e << 7)
            h += (turns & _MASK) + (e & f ^ ~e & g) + word
            turns = (a >> 2 | a << 30) ^ (a >> 13 | a << 19) ^ (a >> 22 | a << 10)
            total = h + (turns & _MASK) + (a & b ^ a & c ^ b & c)
            a, b, c, d, e, f, g, h = total & _MASK, a, b, c, (d + h) & _MASK, e, f, g
        state = tuple((x + y) & _MASK for x, y in zip(state, (a, b, c, d, e, f, g, h), strict=True))
    return state


class ResumableSHA256:
    """SHA-256 of bytes that come bit by bit, as hashlib computes it, with a `state` to go on from.

    >>> digest = ResumableSHA256()
    >>> digest.update(b"abc")
    >>> again = ResumableSHA256.from_state(digest.state())
    >>> again.update(b"def")
    >>> import hashlib
    >>> again.hexdigest() == hashlib.sha256(b"abcdef").hexdigest()
    True
    """

    def __init__(self) -> None:
        #: hashlib's digest of everything; None if the first bytes are known by their state alone.
        self._whole: Any = hashlib.sha256()
        self._state, self._folded, self._rest = _START, 0, bytearray()

    def update(self, content: bytes) -> None:
        """Add bytes."""
        if self._whole is not None:
            self._whole.update(content)
        self._rest += content
        if len(self._rest) > _MOST:  # a little each time: folding all of it would take many seconds
            self._fold(_MOST - _PIECE)

    def _fold(self, kept: int) -> None:
        """Fold the oldest bytes, in whole blocks, until only about `kept` are left as they are."""
        while (size := min(_PIECE, max(0, len(self._rest) - kept)) // 64 * 64) > 0:
            self._state = _fold(self._state, bytes(self._rest[:size]))
            self._folded += size
            del self._rest[:size]

    def hexdigest(self) -> str:
        """The digest in 64 hexadecimal digits."""
        if self._whole is not None:
            return str(self._whole.hexdigest())
        self._fold(0)  # once, and not each time that the digest is asked for
        length = self._folded + len(self._rest)
        padding = b"\x80" + bytes(-(length + 9) % 64) + (8 * length).to_bytes(8, "big")
        return b"".join(n.to_bytes(4, "big") for n in _fold(self._state, bytes(self._rest) + padding)).hex()

    def state(self) -> dict[str, Any]:
        """What `from_state` takes: numbers, and an array of bytes."""
        if len(self._rest) > _KEPT:
            self._fold(0)
        return {
            "numbers": list(self._state),
            "folded": self._folded,
            "rest": np.frombuffer(bytes(self._rest), np.uint8),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The digest that had this state. Raises ValueError or TypeError for another state."""
        digest = cls()
        digest._state, digest._folded = tuple(int(n) & _MASK for n in state["numbers"]), int(state["folded"])
        if len(digest._state) != 8 or digest._folded % 64 or not 0 <= digest._folded < 2**60:
            raise ValueError("this is no state of SHA-256")
        if digest._folded:
            digest._whole = None
        digest.update(state["rest"].astype(np.uint8).tobytes())
        return digest
