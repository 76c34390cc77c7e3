"""The server's half of MTProto 2.0 cryptography, over Telethon's AES and serialisation.

Nothing here is secret: the keys live as long as the test that made them. It follows
https://core.telegram.org/mtproto (auth_key, description) and https://core.telegram.org/api/srp.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import struct
import time
from dataclasses import dataclass

import rsa
import rsa.prime
from telethon import helpers
from telethon.crypto import AES, AuthKey
from telethon.crypto import rsa as telethon_rsa
from telethon.extensions import BinaryReader
from telethon.tl import TLObject
from telethon.tl import functions as f
from telethon.tl import types as t

# The safe prime that Telegram itself serves. Telethon knows it by heart; any other one it would factorise,
# for hours, before it accepted a password challenge.
PRIME = int(
    "C71CAEB9C6B1C9048E6C522F70F13F73980D40238E3E21C14934D037563D930F"
    "48198A0AA7C14058229493D22530F4DBFA336F6E0AC925139543AED44CCE7C37"
    "20FD51F69458705AC68CD4FE6B6B13ABDC9746512969328454F18FAF8C595F64"
    "2477FE96BB2A941D5BCD1D4AC8CC49880708FA9B378E3C4F3A9060BEE67CF9A4"
    "A4A695811051907E162753B56B0F6B410DBA74D8A84B2A14B3144E0EF1284754"
    "FD17ED950D5965B4B9DD46582DB1178D169C6BC465B0D6FF9CA3928FEF5B9AE4"
    "E418FC15E83EBEA0F87FA9FF5EED70050DED2849F47BF959D956850CE929851F"
    "0D8115F635B105EE2E4E15D04B2454BF6F4FADF034B10403119CD8E3B92FCC5B",
    16,
)
GENERATOR = 3
# The product that a client has to factorise as its proof of work: two primes of 31 bits.
PQ = 1229739323 * 1402015859


class ServerKey:
    """An RSA key that proves to a client, before there is an auth key, that this is its server."""

    def __init__(self) -> None:
        # Eight small primes are found in a moment, two large ones in seconds; nobody attacks a test.
        primes = [rsa.prime.getprime(256) for _ in range(8)]
        self._n, exponent = math.prod(primes), 65537
        self._d = pow(exponent, -1, math.prod(p - 1 for p in primes))
        self.public_pem: str = rsa.PublicKey(self._n, exponent).save_pkcs1().decode("ascii")
        body = b"".join(TLObject.serialize_bytes(int_bytes(x)) for x in (self._n, exponent))
        (self.fingerprint,) = struct.unpack("<q", hashlib.sha1(body).digest()[-8:])

    def decrypt(self, block: bytes) -> bytes:
        """What a client encrypted: a SHA-1, the data, and padding, 255 bytes in all."""
        number = pow(int.from_bytes(block, "big"), self._d, self._n)
        return number.to_bytes(255, "big")

    def trust(self) -> None:
        """Make the Telethon of this process accept servers that hold this key."""
        telethon_rsa.add_key(self.public_pem, old=False)


@functools.cache
def shared_key() -> ServerKey:
    """One key a process, made when first needed: most tests need none."""
    return ServerKey()


def int_bytes(number: int) -> bytes:
    """Big endian, no leading zeros: how MTProto writes large numbers."""
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def random_nonce(size: int) -> int:
    return int.from_bytes(os.urandom(size), "little", signed=True)


class Handshake:
    """One auth key exchange, from the server's side: three questions, three answers, then `auth_key`."""

    def __init__(self, key: ServerKey) -> None:
        self._key = key
        self.auth_key: AuthKey | None = None

    def answer(self, request: TLObject) -> TLObject:
        if isinstance(request, f.ReqPqMultiRequest):
            self._nonce, self._server_nonce = request.nonce, random_nonce(16)
            return t.ResPQ(self._nonce, self._server_nonce, int_bytes(PQ), [self._key.fingerprint])
        if isinstance(request, f.ReqDHParamsRequest):
            return self._dh_params(request)
        if isinstance(request, f.SetClientDHParamsRequest):
            return self._finish(request)
        raise ValueError(f"{type(request).__name__} has no place in a key exchange")

    def _dh_params(self, request: f.ReqDHParamsRequest) -> TLObject:
        inner = BinaryReader(self._key.decrypt(request.encrypted_data)[20:]).tgread_object()
        if (inner.nonce, inner.server_nonce) != (self._nonce, self._server_nonce):
            raise ValueError("the client answered another exchange")
        self._new_nonce = inner.new_nonce
        self._aes = helpers.generate_key_data_from_nonce(self._server_nonce, self._new_nonce)
        self._a = int.from_bytes(os.urandom(256), "big")
        params = bytes(
            t.ServerDHInnerData(
                nonce=self._nonce,
                server_nonce=self._server_nonce,
                g=GENERATOR,
                dh_prime=int_bytes(PRIME),
                g_a=int_bytes(pow(GENERATOR, self._a, PRIME)),
                server_time=int(time.time()),
            )
        )
        plain = hashlib.sha1(params).digest() + params
        plain += os.urandom(-len(plain) % 16)
        return t.ServerDHParamsOk(self._nonce, self._server_nonce, AES.encrypt_ige(plain, *self._aes))

    def _finish(self, request: f.SetClientDHParamsRequest) -> TLObject:
        plain = AES.decrypt_ige(request.encrypted_data, *self._aes)
        inner = BinaryReader(plain[20:]).tgread_object()
        shared = pow(int.from_bytes(inner.g_b, "big"), self._a, PRIME)
        # Telegram's key has all its 256 bytes. Telethon drops leading zeros, sees that the proof does not fit, and
        # makes another key; it must not get away with a short one, which a session string would pad at the end.
        self.auth_key = AuthKey(shared.to_bytes(256, "big"))
        proof = self.auth_key.calc_new_nonce_hash(self._new_nonce, 1)
        return t.DhGenOk(self._nonce, self._server_nonce, proof)


def _message_aes(auth_key: bytes, msg_key: bytes, *, from_client: bool) -> tuple[bytes, bytes]:
    x = 0 if from_client else 8
    a = hashlib.sha256(msg_key + auth_key[x : x + 36]).digest()
    b = hashlib.sha256(auth_key[x + 40 : x + 76] + msg_key).digest()
    return a[:8] + b[8:24] + a[24:], b[:8] + a[8:24] + b[24:]


@dataclass(frozen=True)
class Envelope:
    """A message, with what travels encrypted beside it."""

    salt: int
    session_id: int
    msg_id: int
    body: bytes
    seq: int = 0


def open_message(auth_key: AuthKey, packet: bytes) -> Envelope:
    """Decrypt what a client sent, and refuse it if it was tampered with."""
    msg_key = packet[8:24]
    plain = AES.decrypt_ige(packet[24:], *_message_aes(auth_key.key, msg_key, from_client=True))
    if hashlib.sha256(auth_key.key[88:120] + plain).digest()[8:24] != msg_key:
        raise ValueError("the message key does not fit the message")
    salt, session_id, msg_id, seq, length = struct.unpack("<qqqii", plain[:32])
    return Envelope(salt, session_id, msg_id, plain[32 : 32 + length], seq)


def seal_message(auth_key: AuthKey, message: Envelope) -> bytes:
    """Encrypt a message for a client."""
    head = (message.salt, message.session_id, message.msg_id, message.seq, len(message.body))
    plain = struct.pack("<qqqii", *head) + message.body
    plain += os.urandom(-(len(plain) + 12) % 16 + 12)
    msg_key = hashlib.sha256(auth_key.key[96:128] + plain).digest()[8:24]
    sealed = AES.encrypt_ige(plain, *_message_aes(auth_key.key, msg_key, from_client=False))
    return struct.pack("<Q", auth_key.key_id) + msg_key + sealed


def _sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def _padded(number: int) -> bytes:
    return number.to_bytes(256, "big")


class PasswordCheck:
    """Two-step verification by SRP: the server keeps a verifier, and never sees the password."""

    def __init__(self, password: str) -> None:
        self._salt1, self._salt2 = os.urandom(16), os.urandom(16)
        self._challenges: dict[int, tuple[int, int]] = {}
        inner = _sha256(self._salt2, _sha256(self._salt1, password.encode(), self._salt1), self._salt2)
        slow = hashlib.pbkdf2_hmac("sha512", inner, self._salt1, 100_000)
        x = int.from_bytes(_sha256(self._salt2, slow, self._salt2), "big")
        self._verifier = pow(GENERATOR, x, PRIME)

    def algorithm(self) -> TLObject:
        return t.PasswordKdfAlgoSHA256SHA256PBKDF2HMACSHA512iter100000SHA256ModPow(
            salt1=self._salt1, salt2=self._salt2, g=GENERATOR, p=int_bytes(PRIME)
        )

    def challenge(self) -> tuple[int, bytes]:
        """A fresh (srp_id, B)."""
        srp_id, b = random_nonce(8), int.from_bytes(os.urandom(256), "big")
        k = int.from_bytes(_sha256(_padded(PRIME), _padded(GENERATOR)), "big")
        public = (k * self._verifier + pow(GENERATOR, b, PRIME)) % PRIME
        self._challenges[srp_id] = (b, public)
        return srp_id, _padded(public)

    def knows(self, srp_id: int) -> bool:
        return srp_id in self._challenges

    def verify(self, srp_id: int, a_bytes: bytes, proof: bytes) -> bool:
        """Whether the client's proof M1 answers the challenge, which is spent by the attempt."""
        b, public = self._challenges.pop(srp_id)
        a = int.from_bytes(a_bytes, "big")
        u = int.from_bytes(_sha256(_padded(a), _padded(public)), "big")
        shared = pow(a * pow(self._verifier, u, PRIME), b, PRIME)
        hash_p, hash_g = _sha256(_padded(PRIME)), _sha256(_padded(GENERATOR))
        expected = _sha256(
            bytes(x ^ y for x, y in zip(hash_p, hash_g, strict=True)),
            _sha256(self._salt1),
            _sha256(self._salt2),
            _padded(a),
            _padded(public),
            _sha256(_padded(shared)),
        )
        return proof == expected
